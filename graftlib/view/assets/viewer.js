/* The page's own script. Names come from models and are not trusted: they reach the page through textContent and
   SVG attributes that hold numbers, never as markup. Colours are chosen from a fixed list of kinds. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const KINDS = ["conv", "depthwise", "grouped", "transposed_conv", "linear", "attention", "embedding", "recurrent",
    "norm", "bias", "other", "mixed"];
  const SVG = "http://www.w3.org/2000/svg";
  const NODE_H = 42, GAP_Y = 26, GAP_X = 22, GUTTER = 44, PAD = 14, HEAD = 34, TITLE = 64, STRAIT = 220;
  const FINE = 0.36;             // below this scale no text can be read: what is alike is drawn in one piece
  const APART = "#legend, #scale, #map";   // what lies on the picture and is not of it
  const MANY = 400;              // links that are drawn one by one
  const NARROW = 640;            // pixels that show one model at a time
  const $ = (id) => document.getElementById(id);
  const sheet = $("sheet"), svg = $("picture"), panel = $("panel"), tip = $("tip"), results = $("results"), search = $("search");
  const digits = new Intl.NumberFormat("en-US"), number = (n) => digits.format(n);
  const short = (n) => n < 1e3 ? String(n) : n < 1e6 ? +(n / 1e3).toPrecision(3) + " k"
    : n < 1e9 ? +(n / 1e6).toPrecision(3) + " M" : +(n / 1e9).toPrecision(3) + " G";
  const plural = (n, word) => number(n) + " " + word + (n === 1 ? "" : word.endsWith("s") ? "es" : "s");

  // ---- the model of the picture ------------------------------------------------------------------------------
  const text = (value) => Array.isArray(value) ? value.map(text) : data.words[value];
  /* Columns to records; a column whose name ends in "$" holds numbers of words. */
  function rows(table) {
    const columns = Object.entries(table).map(([name, values]) => name.endsWith("$") ? [name.slice(0, -1), values.map(text)] : [name, values]);
    return columns[0][1].map((_, i) => Object.fromEntries(columns.map(([name, values]) => [name, values[i]])));
  }
  let serial = 0;
  const graphs = data.graphs.map((raw, g) => {
    const parameters = rows(raw.parameters).map((p) => ({ ...p, classes: p.axes.map(() => []), nodes: [] }));
    const nodes = rows(raw.nodes).map((node, i) => ({
      ...node, g, i, id: serial++, parameters: node.parameters || [], in_shapes: node.in_shapes || [], out_shapes: node.out_shapes || [],
      repeats: node.repeats || 1, open: !!node.open, children: [], inbound: [], outbound: [], bonds: [],
    }));
    nodes.forEach((node) => {
      const up = nodes[node.parent];
      node.level = up ? up.level + 1 : 0;
      const base = up ? up.base : "";
      if (up && !node.path) node.path = base ? base + "." + node.label : node.label;
      node.base = node.form === "module" ? node.path : base;
      if (up) up.children.push(node.i);
      node.parameters.forEach((p) => parameters[p].nodes.push(node));
    });
    for (let i = nodes.length - 1; i >= 0; i--) {
      const node = nodes[i];
      node.missed = node.children.length ? node.children.every((c) => nodes[c].missed) : node.form === "layer" && !node.calls;
      if (!node.children.length) continue;
      node.in_shapes = nodes[node.children[0]].in_shapes;
      node.out_shapes = nodes[node.children.at(-1)].out_shapes;
    }
    const edges = [];
    for (let i = 0; i < raw.edges.length; i += 3) {
      const [u, v, shape] = raw.edges.slice(i, i + 3);
      edges.push([u, v]);
      nodes[u].outbound.push([v, text(shape)]);
      nodes[v].inbound.push([u, text(shape)]);
    }
    const classes = rows(raw.classes);
    classes.forEach((each, c) => each.members.forEach(([p, axis]) => parameters[p].classes[axis].push(c)));
    const layers = nodes.filter((node) => node.form === "layer").length;
    const stopped = raw.stopped === null ? undefined : nodes.find((node) => node.parent >= 0 && node.path === raw.stopped);
    return { stopped, name: raw.name, tracer: raw.tracer, g, nodes, parameters, classes, layers, edges: lift(nodes, edges), tab: nodes[Math.min(1, nodes.length - 1)] };
  });
  /* What an edit keeps of a class, a flag a unit, and what its units are worth. */
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  data.units.forEach(([g, c, kept, levels, low, high]) => {
    const each = graphs[g].classes[c], flags = bytes(kept), worth = bytes(levels);
    each.kept = kept ? Array.from({ length: each.size }, (_, i) => flags[i >> 3] >> 7 - (i & 7) & 1) : null;
    each.worth = levels ? { low, high, of: Array.from(worth, (level) => level / 255) } : null;
    each.stay = each.kept ? each.kept.reduce((a, b) => a + b, 0) : each.size;
  });
  const nodeAt = ([g, i]) => graphs[g].nodes[i];
  const links = rows(data.links).map((link, n) => ({ ...link, n, from: nodeAt(link.source), to: nodeAt(link.target) }));
  function bond(link) {
    for (let node = link.from; node; node = parentOf(node)) node.bonds.push(link);
    for (let node = link.to; node; node = parentOf(node)) if (node.bonds.at(-1) !== link) node.bonds.push(link);
  }
  links.forEach(bond);
  const hiddenKinds = new Set();
  let chosen = null, chosenLink = null, hovered = null, found = null, coupled = null, pinned = null, only = 0;
  let drawn = new Map(), bundles = [], stamp = 0;

  function parentOf(node) { return node.parent < 0 ? null : graphs[node.g].nodes[node.parent]; }

  /* Every edge joins two siblings where its two ends first share a parent: [leaf, leaf, parent, sibling, sibling]. */
  function lift(nodes, edges) {
    nodes.forEach((node) => { node.flow = new Map(); });
    return edges.map(([u0, v0]) => {
      let u = u0, v = v0;
      while (nodes[u].level > nodes[v].level) u = nodes[u].parent;
      while (nodes[v].level > nodes[u].level) v = nodes[v].parent;
      while (nodes[u].parent !== nodes[v].parent) { u = nodes[u].parent; v = nodes[v].parent; }
      nodes[nodes[u].parent].flow.set(u + ">" + v, [u, v]);
      return [nodes[u0], nodes[v0], nodes[nodes[u].parent], nodes[u], nodes[v]];
    });
  }

  /* The nearest ancestor that is drawn, the node itself where it is. */
  function visible(node) {
    let shown = node;
    for (let up = parentOf(node); up; up = parentOf(up)) if (!up.open) shown = up;
    return shown;
  }
  const narrow = () => size.width < NARROW && graphs.length > 1;
  const shownGraphs = () => narrow() ? [graphs[only]] : graphs;

  // ---- layout: each open module lays out its own children ----------------------------------------------------
  const ruler = document.createElement("canvas").getContext("2d");
  const widths = new Map();
  function textWidth(text, font) {
    const key = font + text;
    if (!widths.has(key)) { ruler.font = font; widths.set(key, ruler.measureText(text).width); }
    return widths.get(key);
  }
  const clip = (text, most) => text.length <= most ? text : text.slice(0, most - 9) + "\u2026" + text.slice(-8);
  const family = getComputedStyle(document.body).fontFamily;
  const title = (node) => clip(node.form === "root" ? "model" : node.label, 34);
  const facts = (node) => clip((node.kind === node.label && !node.elements ? "operation" : node.kind)
    || (node.form === "fold" ? "repeated" : node.children.length ? plural(node.children.length, "part") : ""), 26);
  const amount = (node) => node.elements ? short(node.elements) : "";
  const badge = (node) => node.repeats > 1 ? "\u00d7" + node.repeats : "";
  let size = { width: 0, height: 0 }, space = { w: 1, h: 1 };
  const plans = new Map();       // equal sizes and edges are laid out alike

  function measure(graph, node) {
    if (node.laid) return;
    node.laid = true;
    const first = textWidth(title(node), "600 12.5px " + family) + (node.repeats > 1 ? 40 : 0);
    const second = textWidth(facts(node), "11px " + family) + textWidth(amount(node), "11px " + family) + 14;
    const width = Math.max(104, Math.ceil(Math.max(first, second) + 28 + (node.children.length ? 20 : 0)));
    if (!node.open || !node.children.length) { node.w = node.form === "root" ? 160 : width; node.h = NODE_H; return; }
    const inside = node.children.map((i) => graph.nodes[i]);
    inside.forEach((child) => measure(graph, child));
    const plan = arrange(inside, node.flow.values());
    inside.forEach((child, i) => { [child.x, child.y] = plan.at[i]; child.place = i; });
    const root = node.form === "root";
    node.wires = plan.wires;
    node.w = Math.max(plan.w + (root ? 0 : 2 * PAD), root ? 0 : width + 12);
    node.h = plan.h + (root ? 0 : HEAD + PAD);
    node.dx = (node.w - plan.w) / 2;
    node.dy = root ? 0 : HEAD;
  }
  function forget(node) { for (let up = node; up; up = parentOf(up)) up.laid = false; }

  /* Sizes and edges to places and wires. Siblings stand in execution order. Wherever all edges that cross lead to one
     node, the picture is cut: each part is a layered graph of its own, and the parts fill columns from left to right. */
  function arrange(inside, flow) {
    const place = new Map(inside.map((child, i) => [child.i, i]));
    const edges = [...flow].map(([u, v]) => [place.get(u), place.get(v)]);
    const key = inside.map((child) => child.w + "x" + child.h).join(" ") + "|" + edges.join(" ");
    if (plans.has(key)) return plans.get(key);
    const count = inside.length, reach = new Array(count).fill(-1);
    edges.forEach(([i, j]) => { reach[Math.min(i, j)] = Math.max(reach[Math.min(i, j)], i, j); });
    const starts = [0];
    for (let b = 1, far = -1; b < count; b++) {
      far = Math.max(far, reach[b - 1]);
      if (far <= b) starts.push(b);
    }
    const partOf = new Array(count);
    const parts = starts.map((start, s) => {
      const part = { start, end: starts[s + 1] ?? count, inner: [], outer: [] };
      for (let i = start; i < part.end; i++) partOf[i] = part;
      return part;
    });
    edges.forEach(([i, j]) => {
      const part = partOf[Math.min(i, j)];
      (partOf[i] === partOf[j] ? part.inner : part.outer).push([i, j]);
    });
    parts.forEach((part) => { layered(part, inside); slice(part, inside); });
    const plan = columns(parts.flatMap((part) => part.slices));
    plan.at = inside.map((_, i) => moved(partOf[i], partOf[i].at.get(i)));
    plan.wires = new Map();
    for (const part of parts) {
      part.wires.forEach((points, name) => plan.wires.set(name, wrapped(part, points)));
      for (const [i, j] of part.outer) {
        const low = Math.min(i, j), high = Math.max(i, j), points = wrapped(part, part.exits.get(low));
        const end = [plan.at[high][0] + inside[high].w / 2, plan.at[high][1]];
        points.push(...around(points.at(-1)[0], part.slices.at(-1), partOf[high].slices[0], end[0]), end);
        plan.wires.set(i + ">" + j, i < j ? points : points.reverse());
      }
    }
    plans.set(key, plan);
    return plan;
  }

  /* One part by dagre; what leaves it goes through one point below. */
  function layered(part, inside) {
    const { start, end } = part, leaving = new Set(part.outer.map(([i, j]) => Math.min(i, j)));
    part.at = new Map(); part.wires = new Map(); part.exits = new Map();
    if (end - start === 1) {
      const { w, h } = inside[start];
      part.at.set(start, [0, 0]); part.w = w; part.h = h;
      part.exits.set(start, [[w / 2, h]]);
      return;
    }
    const g = new dagre.graphlib.Graph();
    g.setGraph({ rankdir: "TB", nodesep: GAP_X, ranksep: GAP_Y, edgesep: 12, marginx: 0, marginy: 0 });
    g.setDefaultEdgeLabel(() => ({}));
    for (let i = start; i < end; i++) g.setNode(String(i), { width: inside[i].w, height: inside[i].h });
    part.inner.forEach(([i, j]) => g.setEdge(String(i), String(j)));
    if (leaving.size) {
      g.setNode("exit", { width: 1, height: 1 });
      leaving.forEach((i) => g.setEdge(String(i), "exit"));
    }
    dagre.layout(g);
    let left = Infinity, top = Infinity, right = -Infinity, bottom = -Infinity;
    const wires = part.inner.map(([i, j]) => [i + ">" + j, g.edge(String(i), String(j)).points]);
    const exits = [...leaving].map((i) => [i, g.edge(String(i), "exit").points]);
    for (let i = start; i < end; i++) {
      const { x, y } = g.node(String(i)), { w, h } = inside[i];
      part.at.set(i, [x - w / 2, y - h / 2]);
      left = Math.min(left, x - w / 2); right = Math.max(right, x + w / 2);
      top = Math.min(top, y - h / 2); bottom = Math.max(bottom, y + h / 2);
    }
    [...wires, ...exits].forEach(([, points]) => points.forEach(({ x, y }) => {
      left = Math.min(left, x - 6); right = Math.max(right, x + 6); bottom = Math.max(bottom, y);
    }));
    part.at.forEach((at) => { at[0] -= left; at[1] -= top; });
    const moved = (points) => points.map(({ x, y }) => [x - left, y - top]);
    wires.forEach(([name, points]) => part.wires.set(name, moved(points)));
    exits.forEach(([i, points]) => part.exits.set(i, moved(points)));
    part.w = right - left; part.h = bottom - top;
  }

  /* Between two ranks a part may go on in the next column. */
  function slice(part, inside) {
    const spans = [...part.at].map(([i, [, y]]) => [y, y + inside[i].h]).sort((a, b) => a[0] - b[0]);
    part.slices = [];
    let top = 0, bottom = spans[0][1];
    const add = (end) => { part.slices.push({ part, top, end, h: end - top, crossings: 0 }); top = end; };
    for (const [from, to] of spans) {
      if (from > bottom) add((bottom + from) / 2);
      bottom = Math.max(bottom, to);
    }
    add(part.h);
  }
  const sliceAt = (part, y) => part.slices.find((each) => y < each.end) || part.slices.at(-1);
  const moved = (part, [x, y], on = sliceAt(part, y)) => [x + on.x, y - on.top + on.y];
  function wrapped(part, points) {
    const line = [moved(part, points[0])];
    for (let n = 1; n < points.length; n++) {
      const [a, b] = [points[n - 1], points[n]], down = b[1] >= a[1];
      let here = part.slices.indexOf(sliceAt(part, a[1]));
      for (const last = part.slices.indexOf(sliceAt(part, b[1])); here !== last; here += down ? 1 : -1) {
        const [from, to] = [part.slices[here], part.slices[here + (down ? 1 : -1)]], y = down ? from.end : from.top;
        if (from.column === to.column) continue;
        const x = a[0] + (b[0] - a[0]) * (y - a[1]) / (b[1] - a[1]);
        line.push(...down ? around(x + from.x, from, to, x + to.x) : around(x + to.x, to, from, x + from.x).reverse());
      }
      line.push(moved(part, b));
    }
    return line;
  }
  /* From the foot of a column to the head of the next, beside others that go there; nothing within a column. */
  function around(x0, from, to, x1) {
    if (from.column === to.column) return [];
    const off = 5 * (from.crossings++ % 6), low = from.y + from.h + 6 + off, high = to.y - 6 - off, x = to.left - GUTTER / 2 - 14 + off;
    return [[x0, low], [x, low], [x, high], [x1, high]];
  }

  /* The fewest columns in which the slices can be read, else those in which they are largest. */
  function columns(slices) {
    const gap = (i) => slices[i - 1].part === slices[i].part ? 0 : GAP_Y;
    const fill = (limit) => {
      let column = 0, height = 0;
      return slices.map((each, i) => {
        if (i && height + gap(i) + each.h > limit) { column++; height = 0; }
        height += each.h + (height ? gap(i) : 0);
        return column;
      });
    };
    const most = Math.max(...slices.map((each) => each.h)), total = slices.reduce((sum, each) => sum + each.h + GAP_Y, 0);
    let best = null;
    for (let count = 1; count <= slices.length; count++) {
      let low = most, high = total;
      while (count > 1 && high - low > 8) {
        const middle = (low + high) / 2;
        if (fill(middle).at(-1) < count) high = middle; else low = middle;
      }
      const column = fill(high), wide = [], tall = [];
      slices.forEach((each, i) => {
        const c = column[i];
        wide[c] = Math.max(wide[c] || 0, each.part.w);
        tall[c] = (tall[c] === undefined ? 0 : tall[c] + gap(i)) + each.h;
      });
      const w = wide.reduce((a, b) => a + b) + GUTTER * (wide.length - 1), h = Math.max(...tall) + (wide.length > 1 ? 64 : 0);
      const scale = Math.min(1, space.w / w, space.h / h);
      if (!best || scale > best.scale * 1.04) best = { w, h, scale, column, wide };
      if (best.scale > 0.8 || count > 8 && scale < best.scale) break;
    }
    const top = best.wide.length > 1 ? 32 : 0;
    let x = 0;
    const lefts = best.wide.map((width) => { const left = x; x += width + GUTTER; return left; }), at = best.wide.map(() => top);
    slices.forEach((each, i) => {
      const c = best.column[i];
      each.column = c; each.left = lefts[c];
      each.x = lefts[c] + (best.wide[c] - each.part.w) / 2;
      if (at[c] > top) at[c] += gap(i);
      each.y = at[c];
      at[c] += each.h;
    });
    return { w: best.w, h: best.h };
  }

  /* From a place inside the parent to a place in the picture. */
  function settle(graph, node, x, y) {
    node.X = x; node.Y = y; node.stamp = stamp;
    if (!node.open) return;
    node.children.forEach((i) => {
      const child = graph.nodes[i];
      settle(graph, child, x + (node.dx || 0) + child.x, y + (node.dy || 0) + child.y);
    });
  }

  function layout() {
    stamp++;
    const shown = shownGraphs(), gap = STRAIT * (shown.length - 1);
    const now = { w: Math.max(260, (size.width - 64 - gap * 0.8) / shown.length), h: Math.max(240, size.height - 72 - TITLE) };
    if (now.w !== space.w || now.h !== space.h) {
      space = now;
      plans.clear();
      graphs.forEach((graph) => graph.nodes.forEach((node) => { node.laid = false; }));
    }
    let x = 0;
    shown.forEach((graph) => {
      const root = graph.nodes[0];
      root.open = true;
      measure(graph, root);
      graph.width = Math.max(root.w, 190);
      graph.left = x;
      settle(graph, root, x + (graph.width - root.w) / 2, TITLE);
      graph.routes = routes(graph);
      x += graph.width + STRAIT;
    });
    bundles = bundled();
  }

  /* Where the edges run: from layer to layer, through the wires of the siblings that hold them. */
  function routes(graph) {
    const seen = new Set(), list = [];
    for (const [u0, v0, parent, u, v] of graph.edges) {
      if (parent.stamp !== stamp || !parent.open) continue;
      const from = visible(u0), to = visible(v0), key = from.id + ">" + to.id;
      if (seen.has(key)) continue;
      seen.add(key);
      const x = parent.X + (parent.dx || 0), y = parent.Y + (parent.dy || 0);
      const points = parent.wires.get(u.place + ">" + v.place).map(([a, b]) => [a + x, b + y]);
      if (from !== u) {
        // Out of an open module from the foot of the layer; from its side where others stand below.
        const below = u.Y + u.h - from.Y - from.h > 2 * HEAD;
        points.unshift(...below ? [[from.X + from.w, from.Y + from.h / 2], [from.X + from.w + 10, from.Y + from.h + 10]] : [[from.X + from.w / 2, from.Y + from.h]]);
      }
      if (to !== v) {
        const above = to.Y - v.Y > 3 * HEAD;
        points.push(...above ? [[to.X + to.w + 10, to.Y - 10], [to.X + to.w, to.Y + to.h / 2]] : [[to.X + to.w / 2, to.Y]]);
      }
      const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
      list.push({ from, to, points, home: parent.i, X: Math.min(...xs), Y: Math.min(...ys), w: Math.max(...xs) - Math.min(...xs), h: Math.max(...ys) - Math.min(...ys) });
    }
    return list;
  }

  // ---- links -------------------------------------------------------------------------------------------------
  /* Links that coincide at this level become one line; both ends keep apart from others that end there. */
  function bundled() {
    const together = new Map(), ports = new Map();
    for (const link of links) {
      if (hiddenKinds.has(link.kind)) continue;
      const a = visible(link.from), b = visible(link.to);
      if (a.stamp !== stamp && b.stamp !== stamp) continue;
      // To a model that is not on the screen, all of one kind go the same way.
      const key = [a, b].map((node) => node.stamp === stamp ? node.id : "away").concat(link.kind, link.direction).join(" ");
      if (!together.has(key)) together.set(key, { a, b, kind: link.kind, direction: link.direction, links: [] });
      together.get(key).links.push(link);
    }
    const list = [...together.values()];
    for (const bundle of list) for (const [node, other] of [[bundle.a, bundle.b], [bundle.b, bundle.a]]) {
      if (!ports.has(node.id)) ports.set(node.id, []);
      ports.get(node.id).push({ bundle, y: other.Y + Math.min(other.h, HEAD) / 2 });
    }
    ports.forEach((port) => {
      port.sort((p, q) => p.y - q.y);
    });
    list.forEach((bundle) => { bundle.ports = new Map(); });
    ports.forEach((port, id) => port.forEach(({ bundle }, i) => bundle.ports.set(id, [i + 1, port.length + 1])));
    const portY = (node, bundle) => {
      const [i, n] = bundle.ports.get(node.id);
      return node.Y + (node.open && node.children.length ? HEAD : node.h) * i / n;
    };
    for (const bundle of list) {
      const { a, b } = bundle, away = a.stamp !== stamp || b.stamp !== stamp;
      if (away) {                // the other model is not on the screen
        const node = a.stamp === stamp ? a : b, side = node === a ? 1 : -1, y = portY(node, bundle);
        bundle.p = [node === a ? a.X + a.w : b.X, y];
        bundle.q = [bundle.p[0] + side * 34, y];
        bundle.c1 = bundle.c2 = [bundle.p[0] + side * 17, y];
        if (node === b) [bundle.p, bundle.q] = [bundle.q, bundle.p];
      } else {
        const same = a.g === b.g, loop = a === b;
        const p = [a.X + a.w, portY(a, bundle)], q = [same ? b.X + b.w : b.X, loop ? portY(a, bundle) + 10 : portY(b, bundle)];
        const bow = same ? 50 + Math.min(160, Math.abs(q[1] - p[1]) / 3) : Math.max(60, Math.abs(q[0] - p[0]) * 0.45);
        Object.assign(bundle, { p, q, c1: [p[0] + bow, p[1]], c2: [same ? q[0] + bow : q[0] - bow, q[1]] });
      }
      const xs = [bundle.p, bundle.q, bundle.c1, bundle.c2].map((p) => p[0]), ys = [bundle.p[1], bundle.q[1]];
      Object.assign(bundle, { X: Math.min(...xs), Y: Math.min(...ys), w: Math.max(...xs) - Math.min(...xs), h: Math.max(...ys) - Math.min(...ys) });
    }
    return list;
  }

  // ---- drawing -----------------------------------------------------------------------------------------------
  const make = (name, attributes, text) => {
    const element = document.createElementNS(SVG, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const paint = (element, kind) => {
    if (KINDS.includes(kind)) element.style.setProperty("--k", `var(--${kind})`);
    return element;
  };
  // Open modules and edges below, links over them, boxes and names on top.
  const stage = make("g", {}), floors = make("g", { "aria-hidden": "true" }), bonds = make("g", {}), models = make("g", {});
  stage.append(floors, bonds, models);
  svg.append(stage);

  /* A line through the points, round at its corners. */
  function curve(points) {
    let d = `M${points[0]}`;
    for (let i = 1; i < points.length - 1; i++) {
      const [a, b, c] = points.slice(i - 1, i + 2);
      const towards = (end) => {
        const length = Math.hypot(end[0] - b[0], end[1] - b[1]), t = length ? Math.min(0.5, 30 / length) : 0;
        return [b[0] + (end[0] - b[0]) * t, b[1] + (end[1] - b[1]) * t];
      };
      d += `L${towards(a)}Q${b} ${towards(c)}`;
    }
    return d + `L${points.at(-1)}`;
  }

  function arrow(at, from, size) {
    const angle = Math.atan2(at[1] - from[1], at[0] - from[0]);
    const wing = (turn) => [at[0] - size * Math.cos(angle + turn), at[1] - size * Math.sin(angle + turn)];
    return `M${at}L${wing(0.42)}L${wing(-0.42)}Z`;
  }

  const box = ({ X, Y, w, h }) => `M${X} ${Y}h${w}v${h}h${-w}z`;
  const meets = (a, r) => a.X <= r.X + r.w && a.X + a.w >= r.X && a.Y <= r.Y + r.h && a.Y + a.h >= r.Y;

  /* The window, with as many windows around it. */
  function region(around) {
    const t = transform(), w = size.width / t.k, h = size.height / t.k;
    return { X: -t.x / t.k - around * w, Y: -t.y / t.k - around * h, w: w * (1 + 2 * around), h: h * (1 + 2 * around), k: t.k };
  }
  function within(graph, r) {
    const list = [];
    const walk = (node) => {
      if (!meets(node, r)) return;
      if (node.parent >= 0) list.push(node);
      if (node.open) node.children.forEach((i) => walk(graph.nodes[i]));
    };
    walk(graph.nodes[0]);
    return list;
  }

  /* What is drawn reaches AROUND windows beyond the window on each side. While the picture moves, the browser moves what
     it has drawn; only what comes into sight, or would be blurred for long, is drawn anew. */
  const AROUND = 0.5;
  let painted = null, lastDrawn = 0;
  /* A new layout, then everything that is in view. */
  function draw() {
    if (!size.width || !size.height) return;
    layout();
    if (coupled) lightShown();
    drawn = new Map();
    models.replaceChildren();
    floors.replaceChildren();
    shownGraphs().forEach((graph) => {
      graph.floor = make("g", {});
      graph.whole = make("g", { role: "tree", "aria-label": graph.name });
      floors.append(graph.floor);
      models.append(graph.whole);
      const middle = graph.left + graph.width / 2;
      graph.heading = [make("text", { class: "model-name", x: middle, y: 18, "text-anchor": "middle" }, clip(graph.name, 40)),
        make("text", { class: "model-facts", x: middle, y: 38, "text-anchor": "middle" },
          plural(graph.layers, "layer") + ", " + plural(graph.nodes[0].elements, "parameter"))];
      graph.whole.append(...graph.heading);
    });
    painted = null;
    drawMap();
    refresh();
  }

  function refresh() {
    if (!size.width || !stamp) return;
    const r = region(AROUND), fine = r.k >= FINE, fresh = !painted || painted.fine !== fine, t = transform();
    painted = { ...r, fine, t };
    stage.setAttribute("transform", t.toString());
    svg.style.transform = "";
    placeWindow();
    shownGraphs().forEach((graph) => {
      const here = within(graph, r), tab = visible(chosen && chosen.g === graph.g ? chosen : graph.tab);
      graph.tab = tab;
      const wanted = new Set(fine ? here : here.filter((node) => marked(node)));
      if (tab.parent >= 0) wanted.add(tab);
      drawn.forEach((element, id) => {
        const node = byId(id);
        if (node.g === graph.g && (fresh || !wanted.has(node))) { if (element !== document.activeElement) { element.remove(); drawn.delete(id); } }
      });
      wanted.forEach((node) => { if (!drawn.has(node.id)) { drawn.set(node.id, drawNode(node)); graph.whole.append(drawn.get(node.id)); } });
      graph.whole.querySelectorAll('[tabindex="0"]').forEach((other) => other.setAttribute("tabindex", "-1"));
      if (drawn.has(tab.id)) drawn.get(tab.id).setAttribute("tabindex", "0");
      drawFloor(graph, here, fine);
      graph.heading[0].setAttribute("font-size", fine ? 18 : 15 / r.k);
      graph.heading[1].setAttribute("visibility", fine ? "visible" : "hidden");
    });
    drawLinks(r, fresh);
    mark();
    lastDrawn = performance.now();
  }

  /* Open modules and edges; and from afar all boxes. What is alike and lies together is one path. */
  function drawFloor(graph, here, fine) {
    const shapes = new Map(), { k } = painted, tiny = k < 0.15;
    const add = (layer, className, colours, home, d) => {
      const key = layer + "|" + colours + "|" + home;
      let shape = shapes.get(key);
      if (!shape) shapes.set(key, shape = { layer, className, colours, d: "" });
      shape.d += d;
    };
    // The module that is large enough on the screen for a path of its own: the browser leaves out paths that lie elsewhere.
    const homes = new Map();
    const home = (i) => {
      if (i <= 0) return 0;
      if (!homes.has(i)) homes.set(i, graph.nodes[i].h * k > 120 ? i : home(graph.nodes[i].parent));
      return homes.get(i);
    };
    here.forEach((node) => {
      const open = node.open && node.children.length, at = home(node.parent);
      if (open) add(node.level, "frame" + (node.level % 2 ? "" : " level-odd"), "", at, box(node));
      if (fine) return;
      if (!open) add(1e6, "card", tint(node) || (tiny && node.colour), at, box(node));
      if (!tiny && node.colour) add(1e7, "stripe", node.colour, at, `M${node.X + 2} ${node.Y + 4}h9v${(open ? HEAD : node.h) - 8}h-9z`);
    });
    graph.routes.forEach((route) => {
      if (!meets(route, painted)) return;
      const at = home(route.home);
      add(1e4, "edge", "", at, tiny ? "M" + route.points.join("L") : curve(route.points));
      if (fine) add(1e5, "tip-edge", "", at, arrow(route.points.at(-1), route.points.at(-2), 6));
    });
    graph.floor.replaceChildren(...[...shapes.values()].sort((a, b) => a.layer - b.layer).map(({ className, colours, d }) => {
      const shape = make("path", { class: className, d });
      if (KINDS.includes(colours)) paint(shape, colours);
      else if (colours) shape.style.fill = colours;
      return shape;
    }), ...fine ? [] : farNames(here, k));
  }

  /* From afar, names of the modules that have room for them: outer ones first, none over another. */
  function farNames(here, k) {
    const places = [], names = [];
    here.filter((node) => node.children.length && node.w * k > 34).sort((a, b) => a.level - b.level).forEach((node) => {
      const place = { X: node.X * k + 4, Y: node.Y * k + 2, w: textWidth(title(node), "600 11px " + family), h: 13 };
      if (place.w > node.w * k || names.length > 200 || places.some((other) => meets(place, other))) return;
      places.push(place);
      names.push(make("text", { class: "far-name", x: place.X / k, y: (place.Y + 10) / k, "font-size": 11 / k, "stroke-width": 3 / k }, title(node)));
    });
    return names;
  }

  function drawNode(node) {
    const container = node.children.length > 0, open = container && node.open;
    const group = make("g", {
      class: "node" + (open ? " open" : "") + (node.repeats > 1 ? " many" : "") + (node.level % 2 ? "" : " level-odd")
        + (node.missed ? " missed" : "") + (isStopped(node) ? " stopped" : ""),
      role: "treeitem", tabindex: "-1", "data-id": node.id, "aria-level": node.level, "aria-label": describe(node),
    });
    if (container) group.setAttribute("aria-expanded", String(open));
    const { X: x, Y: y, w, h } = node;
    if (node.repeats > 1 && !open) {
      for (const off of [6, 3]) group.append(make("rect", { class: "back", x: x + off, y: y + off, width: w, height: h }));
    }
    const card = make("rect", { class: "box", x, y, width: w, height: h });
    if (!open && tint(node)) card.style.fill = tint(node);
    group.append(card);
    group.append(paint(make("rect", { class: "stripe", x: x + 4, y: y + 7, width: 3, height: (open ? HEAD : h) - 14 }), node.colour));
    const right = x + w - (container ? 28 : 11);
    group.append(make("text", { class: "label", x: x + 14, y: y + (open ? 21 : 18) }, title(node)), " ");
    if (node.repeats > 1) group.append(make("text", { class: "badge", x: right, y: y + (open ? 21 : 18) }, badge(node)), " ");
    if (open && node.repeats === 1) {
      const after = x + 14 + textWidth(title(node), "600 12.5px " + family) + 8;
      if (after + textWidth(facts(node), "11px " + family) < right) group.append(make("text", { class: "kind", x: after, y: y + 21 }, facts(node)));
    }
    if (!open) {
      group.append(make("text", { class: "kind", x: x + 14, y: y + 33 }, facts(node)), " ");
      group.append(make("text", { class: "size", x: right, y: y + 33 }, amount(node)));
    }
    if (container) {
      const cx = x + w - 15, cy = y + (open ? HEAD / 2 : h / 2);
      const chevron = make("g", { class: "chevron", "data-toggle": node.id });
      chevron.append(make("rect", { x: cx - 12, y: cy - 15, width: 26, height: 30 }),
        make("path", { d: open ? `M${cx - 4} ${cy - 2}l4 4l4 -4` : `M${cx - 2} ${cy - 4}l4 4l-4 4` }));
      group.append(chevron);
    }
    return group;
  }

  /* What is read on the box comes first, so that who speaks to the page can say what they see. */
  function describe(node) {
    const open = node.open && node.children.length;
    const parts = [[title(node), badge(node), facts(node), open ? "" : amount(node)].filter(Boolean).join(" ")];
    if (node.path && node.path !== node.label) parts.push(node.path);
    if (node.missed) parts.push("not reached");
    if (isStopped(node)) parts.push("the forward pass ended here");
    if (node.repeats > 1) parts.push(node.repeats + " repeats");
    if (node.elements) parts.push(plural(node.elements, "parameter"));
    if (node.bonds.length) parts.push(plural(node.bonds.length, "link"));
    return parts.join(", ");
  }

  function drawLinks(r, fresh) {
    if (!fresh && bundles.length <= MANY) return;
    bonds.replaceChildren();
    bundles.forEach((bundle) => { bundle.element = null; });
    const here = bundles.length <= MANY ? bundles : bundles.filter((bundle) => meets(bundle, r));
    if (here.length > MANY) {    // too many to tell apart: one path a kind
      KINDS.forEach((kind) => {
        const d = here.filter((bundle) => bundle.kind === kind).map(({ p, c1, c2, q }) => `M${p}C${c1} ${c2} ${q}`).join("");
        if (d) bonds.append(paint(make("path", { class: "link many-links", d }), kind));
      });
      return;
    }
    here.forEach((bundle, n) => {
      const { p, q, c1, c2 } = bundle, group = paint(make("g", { class: "bond" }), bundle.kind);
      const line = make("path", { class: "link", d: `M${p}C${c1} ${c2} ${q}`, "stroke-width": 1.8 + Math.min(4, Math.log2(bundle.links.length)) });
      group.append(line);
      if (bundle.direction !== "backward") group.append(make("path", { class: "tip-link", d: arrow(q, c2, 9) }));
      if (bundle.direction !== "forward") group.append(make("path", { class: "tip-link", d: arrow(p, c1, 9) }));
      if (bundle.links.length > 1) {
        // Neighbours carry their counts at different places along the way.
        const [first, second] = [bundle.a, bundle.b].map((node) => node.stamp === stamp);
        const t = first && second ? [0.5, 0.4, 0.6][n % 3] : Math.abs((first ? 0 : 1) - [0.3, 0.72][bundle.ports.get((first ? bundle.a : bundle.b).id)[0] % 2]), s = 1 - t;
        const along = (i) => s * s * s * p[i] + 3 * s * s * t * c1[i] + 3 * s * t * t * c2[i] + t * t * t * q[i];
        group.append(make("text", { class: "link-count", x: along(0), y: along(1) + 4 }, String(bundle.links.length)));
      }
      bundle.element = group;
      line.__bundle = bundle;
      bonds.append(group);
    });
  }

  /* Marks that change without a new layout: search, choice, coupled axes, and the links of what is pointed at. */
  const isStopped = (node) => !!graphs[node.g].stopped && visible(graphs[node.g].stopped) === node;
  const isFound = (node) => !!found && found.hits.has(node.id);
  const isCoupled = (node) => !!coupled && coupled.shown.has(node.id);
  const isChosen = (node) => chosen !== null && visible(chosen) === node;
  const marked = (node) => isFound(node) || isCoupled(node) || isChosen(node);
  function mark() {
    svg.classList.toggle("searching", found !== null);
    svg.classList.toggle("coupling", coupled !== null);
    drawn.forEach((element, id) => {
      const node = byId(id);
      element.classList.toggle("found", isFound(node));
      element.classList.toggle("holds", !!found && !isFound(node) && found.holders.has(id) && !node.open);
      element.classList.toggle("coupled", isCoupled(node));
      element.classList.toggle("chosen", isChosen(node));
      element.setAttribute("aria-selected", String(isChosen(node)));
    });
    const subject = hovered || chosen;
    const lit = chosenLink && !hovered ? new Set([chosenLink]) : subject ? new Set(subject.bonds) : null;
    const any = lit !== null && lit.size > 0;
    bonds.classList.toggle("focusing", any);
    for (const bundle of bundles) if (bundle.element) bundle.element.classList.toggle("lit", any && bundle.links.some((link) => lit.has(link)));
  }
  /* Marks that may need boxes which are not drawn from afar. */
  function remark() { if (painted && !painted.fine) refresh(); else mark(); }

  function byId(id) {
    const g = graphs.findLastIndex((graph) => graph.nodes[0].id <= id);
    return graphs[g].nodes[id - graphs[g].nodes[0].id];
  }

  // ---- overlays: numbers as colours --------------------------------------------------------------------------
  const probe = document.createElement("span");
  const colour = (name) => {
    document.body.append(probe);
    probe.style.color = `var(--${name})`;
    const channels = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
    probe.remove();
    return channels;
  };
  let overlay = null;
  function tint(node) {
    if (!overlay || overlay.values.get(node.id) === undefined) return "";
    const t = Math.round(16 * (overlay.high === overlay.low ? 1 : (overlay.values.get(node.id) - overlay.low) / (overlay.high - overlay.low))) / 16;
    return shade(t);
  }
  function shade(t) {
    const s = 0.08 + 0.5 * t;   // the text on it stays readable
    return `rgb(${overlay.cold.map((c, i) => Math.round(c + (overlay.hot[i] - c) * s)).join(", ")})`;
  }
  function lay(n) {
    const chosenOverlay = data.overlays[n];
    overlay = null;
    if (chosenOverlay) {
      const values = new Map(chosenOverlay.values.map(([end, value]) => [nodeAt(end).id, value])), own = [...values.values()];
      graphs.forEach((graph) => {
        for (let i = graph.nodes.length - 1; i > 0; i--) {
          const node = graph.nodes[i];
          if (values.has(node.id)) continue;
          const inside = node.children.map((c) => values.get(graph.nodes[c].id)).filter((value) => value !== undefined);
          if (inside.length) values.set(node.id, Math.max(...inside));
        }
      });
      overlay = { name: chosenOverlay.name, values, low: Math.min(...own), high: Math.max(...own), cold: colour("card"), hot: colour("hot") };
    }
    const scale = $("scale");
    svg.classList.toggle("laid", !!overlay);
    scale.hidden = !overlay;
    if (overlay) {
      const bar = html("span", undefined, "bar");
      for (let i = 0; i <= 16; i++) { const cell = html("i"); cell.style.background = shade(i / 16); bar.append(cell); }
      scale.replaceChildren(html("b", overlay.name), html("span", few(overlay.low)), bar, html("span", few(overlay.high)));
      scale.title = "Closed modules without a number of their own show the largest inside";
    }
  }
  function overlays() {
    if (!data.overlays.length) return;
    const choice = html("select");
    choice.setAttribute("aria-label", "Overlay");
    [...data.overlays.map((each) => each.name), "no overlay"].forEach((name, i) => { const option = html("option", name); option.value = i; choice.append(option); });
    choice.addEventListener("change", () => { lay(+choice.value); draw(); });
    $("legend").append(choice);
    lay(0);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { lay(+choice.value); draw(); });
  }

  // ---- moving about ------------------------------------------------------------------------------------------
  let touched = false, waiting = false;
  const zoom = d3.zoom().scaleExtent([0.01, 4]).filter((event) => !event.target.closest(APART) && !event.button
    && (event.type === "wheel" || !event.ctrlKey && !event.shiftKey)).on("zoom", (event) => {
    if (event.sourceEvent) touched = true;
    hideTip();
    placeWindow();
    if (!painted) return;
    const t = event.transform, by = t.k / painted.t.k, x = t.x - painted.t.x * by, y = t.y - painted.t.y * by;
    svg.style.transform = `translate(${x + AROUND * size.width * (by - 1)}px, ${y + AROUND * size.height * (by - 1)}px) scale(${by})`;
    const now = region(0);
    const inside = now.X >= painted.X && now.Y >= painted.Y && now.X + now.w <= painted.X + painted.w && now.Y + now.h <= painted.Y + painted.h;
    later(inside && by > 0.4 && by < 3 ? 140 : 0);
  });
  /* Draw anew after a rest of so many milliseconds, at once where that is 0; but not more often than can be watched. */
  let timer = 0, due = Infinity;
  function later(wait) {
    const at = Math.max(performance.now() + wait, lastDrawn + 160);
    if (!wait && at >= due) return;
    clearTimeout(timer);
    due = at;
    timer = setTimeout(() => requestAnimationFrame(() => { due = Infinity; if (transform().k !== painted.t.k || soonOut()) refresh(); }), at - performance.now());
  }
  function soonOut() {
    const now = region(0.1);
    return now.X < painted.X || now.Y < painted.Y || now.X + now.w > painted.X + painted.w || now.Y + now.h > painted.Y + painted.h;
  }
  const canvas = d3.select(sheet).call(zoom).on("dblclick.zoom", null);
  const transform = () => d3.zoomTransform(sheet);
  const moveTo = (t) => canvas.call(zoom.transform, t);
  const scaleBy = (by) => { touched = true; canvas.call(zoom.scaleBy, by); };

  function extent() {
    const shown = shownGraphs(), last = shown.at(-1);
    return { w: last.left + last.width, h: Math.max(...shown.map((graph) => TITLE + graph.nodes[0].h)) };
  }
  function fit() {
    if (!painted) return;
    touched = false;
    const { w, h } = extent(), { width, height } = size, margin = 32;
    const foot = Math.max(margin, ...[$("legend"), $("scale")].map((each) => each.offsetHeight && height - each.offsetTop + 8));
    const k = Math.max(0.02, Math.min(1.15, (width - 2 * margin) / w, (height - margin - foot) / h));
    moveTo(d3.zoomIdentity.translate((width - w * k) / 2, Math.max(margin, (height - foot + margin - h * k) / 2)).scale(k));
  }
  function centre(node) {
    const at = visible(node), { width, height } = size, k = Math.max(0.75, transform().k);
    touched = true;
    moveTo(d3.zoomIdentity.translate(width / 2 - (at.X + at.w / 2) * k, height / 2 - (at.Y + Math.min(at.h, height / k) / 2) * k).scale(k));
    refresh();
  }
  function keepInSight(node) {
    const t = transform(), { width, height } = size, x = t.applyX(node.X), y = t.applyY(node.Y);
    if (x < 0 || y < 0 || x + Math.min(node.w, 120) * t.k > width || y + HEAD * t.k > height) centre(node);
  }
  /* Redraw after `change`, with `node` staying under the pointer. */
  function keeping(node, change) {
    const shown = visible(node), t = transform();
    const x = t.applyX(shown.X + shown.w / 2), y = t.applyY(shown.Y);
    change();
    draw();
    const now = visible(node);
    moveTo(d3.zoomIdentity.translate(x - (now.X + now.w / 2) * t.k, y - now.Y * t.k).scale(t.k));
    refresh();
  }
  function set(node, open) { node.open = open; forget(node); }
  function toggle(node) {
    if (!node.children.length) return;
    const focused = svg.contains(document.activeElement);
    keeping(node, () => set(node, !node.open));
    if (focused) focus(node);
  }
  function level(step) {
    const there = shownGraphs().flatMap((graph) => graph.nodes.filter((node) => node.children.length && node.parent >= 0
      && visible(node) === node && node.open === step < 0));
    if (!there.length) return;
    const at = step > 0 ? Math.min(...there.map((node) => node.level)) : Math.max(...there.map((node) => node.level));
    there.forEach((node) => { if (node.level === at) set(node, step > 0); });
    draw();
    fit();
    refresh();
  }
  function reveal(node) {
    for (let up = parentOf(node); up; up = parentOf(up)) if (!up.open) set(up, true);
    if (narrow() && node.g !== only) turnTo(node.g);
    choose(node, true);
    centre(node);
  }
  function focus(node) {
    const shown = visible(node);
    graphs[node.g].tab = shown;
    refresh();
    const element = drawn.get(shown.id);
    if (element) element.focus({ preventScroll: true });
  }
  function choose(node, redraw) {
    chosen = node; chosenLink = null; graphs[node.g].tab = node;
    release();
    if (redraw) draw(); else remark();
    if (start) linkFrom(start, node); else showNode(node);
    remember(node);
  }
  /* The picture follows its window: whole while nobody has moved it, else with what is in the middle. */
  function resize() {
    const { width, height } = sheet.getBoundingClientRect();
    if (width === size.width && height === size.height) return;
    const before = size, t = transform();
    size = { width, height };
    if (!width || !height) return;
    const edge = [-AROUND * width, -AROUND * height];
    svg.setAttribute("viewBox", [...edge, width * (1 + 2 * AROUND), height * (1 + 2 * AROUND)].join(" "));
    Object.assign(svg.style, { left: edge[0] + "px", top: edge[1] + "px", width: width * (1 + 2 * AROUND) + "px", height: height * (1 + 2 * AROUND) + "px" });
    tabs();
    draw();
    if (!touched || !before.width) { fit(); refresh(); } else moveTo(d3.zoomIdentity.translate(t.x + (width - before.width) / 2, t.y + (height - before.height) / 2).scale(t.k));
  }
  /* One model at a time where there is no width for two. */
  function tabs() {
    const row = $("models");
    row.hidden = !narrow();
    row.replaceChildren();
    if (row.hidden) return;
    graphs.forEach((graph, g) => {
      const entry = button(clip(graph.name, 24), () => { turnTo(g); draw(); fit(); refresh(); });
      entry.setAttribute("aria-pressed", String(g === only));
      row.append(entry);
    });
  }
  function turnTo(g) { only = g; tabs(); }

  // ---- the whole in small, with the window on it -------------------------------------------------------------
  const map = $("map"), MAP = { w: 176, h: 128 };
  let small = 1;
  function drawMap() {
    const canvas = map.querySelector("canvas"), whole = extent(), pen = canvas.getContext("2d"), inks = new Map();
    const ink = (name) => { if (!inks.has(name)) inks.set(name, `rgb(${colour(name)})`); return inks.get(name); };
    small = Math.min(MAP.w / whole.w, MAP.h / whole.h);
    canvas.width = whole.w * small * 2; canvas.height = whole.h * small * 2;
    canvas.style.width = whole.w * small + "px";
    pen.scale(2 * small, 2 * small);
    const walk = (graph, node) => {
      const open = node.open && node.children.length;
      pen.fillStyle = open ? ink(node.level % 2 ? "inside" : "paper") : tint(node) || ink(KINDS.includes(node.colour) ? node.colour : "line");
      if (node.parent >= 0) pen.fillRect(node.X, node.Y, Math.max(node.w, 1 / small), Math.max(node.h, 1 / small));
      if (open) node.children.forEach((i) => walk(graph, graph.nodes[i]));
    };
    shownGraphs().forEach((graph) => walk(graph, graph.nodes[0]));
  }
  /* Nothing where all is in sight. */
  function placeWindow() {
    if (!stamp) return;
    const r = region(0), whole = extent(), frame = map.querySelector("div").style;
    map.hidden = narrow() || r.X <= 0 && r.Y <= 0 && r.X + r.w >= whole.w && r.Y + r.h >= whole.h;
    const left = Math.max(0, r.X), top = Math.max(0, r.Y), right = Math.min(whole.w, r.X + r.w), bottom = Math.min(whole.h, r.Y + r.h);
    Object.assign(frame, { left: left * small + "px", top: top * small + "px", width: Math.max(3, (right - left) * small) + "px", height: Math.max(3, (bottom - top) * small) + "px" });
  }
  map.addEventListener("pointerdown", (event) => { map.setPointerCapture(event.pointerId); goTo(event); });
  map.addEventListener("pointermove", (event) => { if (event.buttons) goTo(event); });
  function goTo(event) {
    const box = map.querySelector("canvas").getBoundingClientRect(), k = transform().k;
    touched = true;
    moveTo(d3.zoomIdentity.translate(size.width / 2 - (event.clientX - box.left) / small * k, size.height / 2 - (event.clientY - box.top) / small * k).scale(k));
  }

  // ---- a link to what is chosen ------------------------------------------------------------------------------
  const SIDES = ["source", "target"];
  function remember(node) {
    const address = "#" + SIDES[node.g] + ":" + encodeURIComponent(node.path);
    try { history.replaceState(null, "", address); } catch { /* a frame without an address of its own */ }
  }
  function recall() {
    const [side, name] = location.hash.slice(1).split(":");
    if (!SIDES.includes(side) || name === undefined) return;
    let path = "";
    try { path = decodeURIComponent(name); } catch { return; }
    const graph = graphs[SIDES.indexOf(side)], node = graph && graph.nodes.find((each) => each.parent >= 0 && each.path === path);
    if (node && node !== chosen) reveal(node);
  }
  addEventListener("hashchange", recall);

  // ---- axis classes: what moves together ---------------------------------------------------------------------
  /* The class, and in the other model those on the same axes of linked parameters. */
  function partners(graph, c) {
    const lights = [[graph, c]];
    for (const link of links) for (const [near, here, far, there] of [["source", "source_address", "target", "target_address"], ["target", "target_address", "source", "source_address"]]) {
      if (link[near][0] !== graph.g) continue;
      const p = parameterAt(graph, link[here]), q = parameterAt(graphs[link[far][0]], link[there]);
      if (!p || !q) continue;
      p.classes.forEach((held, axis) => {
        if (!held.includes(c)) return;
        const other = q.axes.indexOf(p.axes[axis]);
        (q.classes[other] || []).forEach((d) => { if (!lights.some(([g, e]) => g.g === link[far][0] && e === d)) lights.push([graphs[link[far][0]], d]); });
      });
    }
    return lights;
  }
  function parameterAt(graph, address) {
    graph.byAddress ??= new Map(graph.parameters.map((p) => [p.address, p]));
    return graph.byAddress.get(address) || graph.byAddress.get(address.slice(0, address.lastIndexOf("::")));
  }
  function light(graph, c) {
    coupled = { graph, c };
    lightShown();
    remark();
  }
  function lightShown() {
    coupled.shown = new Set();
    partners(coupled.graph, coupled.c).forEach(([other, d]) => other.classes[d].members.forEach(([p]) => other.parameters[p].nodes.forEach((node) => coupled.shown.add(visible(node).id))));
  }
  function unlight() { if (pinned) light(...pinned); else if (coupled) { coupled = null; remark(); } }
  function release() { pinned = null; coupled = null; }
  const freedom = (each) => each.frozen_by ? "frozen by " + each.frozen_by : "free";

  function axisButton(graph, p, axis, c) {
    const each = graph.classes[c];
    const entry = button(p.axes[axis] + " " + sizes(each), () => { pinned = [graph, c]; light(graph, c); showClass(graph, c); }, "axis" + (each.frozen_by ? " frozen" : ""));
    entry.title = freedom(each) + ", " + plural(each.members.length, "axis").replace("axises", "axes");
    entry.addEventListener("pointerenter", () => light(graph, c));
    entry.addEventListener("focus", () => light(graph, c));
    entry.addEventListener("pointerleave", unlight);
    entry.addEventListener("blur", unlight);
    return entry;
  }
  function showClass(graph, c) {
    const each = graph.classes[c];
    panel.replaceChildren(html("h2", "Axis class c" + c), html("p", number(each.size) + " coupled units, " + freedom(each)));
    if (each.kept || each.worth) panel.append(html("p", unitFacts(each)), strip(each, 24));
    panel.append(button("Back", () => { release(); remark(); if (chosen) showNode(chosen); else showOverview(); }, "act"));
    if (each.ties.length) panel.append(html("h3", "Tied by"), html("p", each.ties.join(", ")));
    partners(graph, c).forEach(([other, d], n) => {
      const list = html("ul"), held = other.classes[d];
      held.members.slice(0, 80).forEach(([p, axis], i) => {
        const parameter = other.parameters[p], row = html("li");
        row.append(button(parameter.address, () => parameter.nodes.length && reveal(parameter.nodes[0]), "go"),
          html("small", "axis " + parameter.axes[axis] + (held.tied_by[i] ? ", tied by " + held.tied_by[i] : "")));
        list.append(row);
      });
      if (held.members.length > 80) list.append(html("li", "and " + number(held.members.length - 80) + " more"));
      panel.append(html("h3", n ? "Through links: c" + d + " of " + other.name + ", " + freedom(held) : "In " + other.name), list);
    });
    panel.scrollTop = 0;
  }

  // ---- mapping by hand ---------------------------------------------------------------------------------------
  let start = null, rubber = null;
  /* What a link may name in a node: its parameters and their parts; of a module those of all layers inside. */
  function ends(node) {
    const graph = graphs[node.g], list = [];
    const walk = (each) => {
      each.parameters.forEach((i) => {
        const p = graph.parameters[i];
        [p.address, ...partsOf(p).map(([name]) => p.address + "::" + name).filter((address) => !address.endsWith("::heads"))].forEach((address) => {
          if (!list.some((end) => end.address === address)) list.push({ g: node.g, node: each, p, address });
        });
      });
      each.children.forEach((i) => walk(graph.nodes[i]));
    };
    walk(node);
    return list;
  }
  /* Why two cannot be linked, in the words of `Mapping.link`; nothing where they can. */
  function refusal(a, b, direction) {
    for (const end of [a, b]) if (end.p.alone) return end.address + ": " + end.p.alone;
    if (a.p === b.p && (a.address === b.address || a.address === a.p.address || b.address === b.p.address)) return "A parameter has nothing to learn from its own values.";
    const written = (link) => [...link.direction === "backward" ? [] : [[link.target[0], link.target_address]], ...link.direction === "forward" ? [] : [[link.source[0], link.source_address]]];
    const fresh = { source: [a.g], target: [b.g], source_address: a.address, target_address: b.address, direction };
    for (const link of links) {
      if (link.source_address === a.address && link.target_address === b.address) return "They are linked already.";
      for (const [g, mine] of written(fresh)) for (const [h, other] of written(link)) {
        if (g === h && (mine.startsWith(other + "::") || other.startsWith(mine + "::"))) return mine + " and " + other + " would both be written, and they share units.";
      }
    }
    return "";
  }
  function linkFrom(node, other) {
    start = node;
    panel.replaceChildren(html("h2", "New link"), html("p", "From " + node.path + ". Now choose a layer" + (graphs.length > 1 ? " of the other model" : "") + "."));
    if (other && other !== node) panel.append(button("Link to " + other.path, () => showPairing(node, other), "act"));
    panel.append(button("Cancel", () => { start = null; showNode(node); }, "act"));
  }
  function showPairing(one, other) {
    start = null; chosen = null; remark();
    const [left, right] = one.g <= other.g ? [one, other] : [other, one], sides = [ends(left), ends(right)];
    panel.replaceChildren(html("h2", "New link"));
    if (graphs.length > 1 && left.g === right.g) { panel.append(html("p", "Both are of " + graphs[left.g].name + ", and a link goes from one model to the other.")); return; }
    const bare = [left, right].find((node, i) => !sides[i].length);
    if (bare) { panel.append(html("p", bare.path + " holds no parameter.")); return; }
    const choices = sides.map((list, i) => choice(i ? "Target" : "Source", list.map((end) => end.address)));
    const way = choice("Direction", Object.keys(ARROW));
    // What may be linked first, and of that what has the same last name.
    const last = (end) => end.address.slice(end.address.lastIndexOf(".") + 1), able = sides.map((list) => list.filter((end) => !end.p.alone));
    const first = able[0][0] || sides[0][0], second = able[1].find((end) => last(end) === last(first)) || able[1][0] || sides[1][0];
    choices[0].field.value = sides[0].indexOf(first); choices[1].field.value = sides[1].indexOf(second);
    const told = html("p"), add = button("Add", () => {
      const [a, b] = picked();
      const kinds = [a, b].map((end) => end.p.role.startsWith("attention") ? "attention" : end.p.kind);
      const link = { source: [a.g, a.node.i], target: [b.g, b.node.i], source_address: a.address, target_address: b.address, source_shape: a.p.shape,
        target_shape: b.p.shape, direction: direction(), kind: kinds[0] === kinds[1] ? kinds[0] : "mixed", rule: "by hand", n: links.length, from: a.node, to: b.node };
      links.push(link);
      bond(link);
      relink();
      showMapping();
    }, "act");
    const picked = () => choices.map(({ field }, i) => sides[i][field.value]), direction = () => Object.keys(ARROW)[way.field.value];
    told.setAttribute("role", "status");
    const verify = () => {
      const why = refusal(...picked(), direction());
      add.disabled = !!why;
      told.textContent = why || picked().map((end) => end.p.shape).join(" and ") + " can be linked.";
    };
    [...choices, way].forEach(({ field, label }) => { field.addEventListener("change", verify); panel.append(label); });
    panel.append(told, add);
    verify();
    panel.scrollTop = 0;
  }
  function choice(name, options) {
    const label = html("label", name, "choice"), field = html("select");
    options.forEach((text, i) => { const option = html("option", text); option.value = i; field.append(option); });
    label.append(field);
    return { label, field };
  }
  function relink() { legend(); bundles = bundled(); if (painted) drawLinks(painted, true); mark(); }
  /* All links, with what can be copied of them. */
  function showMapping() {
    const made = links.filter((link) => link.rule === "by hand"), list = html("ul");
    panel.replaceChildren(html("h2", "Mapping"), html("p", plural(links.length, "link")));
    if (links.length) panel.append(button("Copy Python", () => offer("Python", asPython()), "act"), button("Copy YAML", () => offer("YAML", asYaml()), "act"));
    made.forEach((link) => {
      const row = linkList([link], null).firstChild;
      row.append(button("Remove", () => {
        links.splice(links.indexOf(link), 1);
        graphs.forEach((graph) => graph.nodes.forEach((node) => { node.bonds = node.bonds.filter((other) => other !== link); }));
        relink();
        showMapping();
      }, "act"));
      list.append(row);
    });
    panel.append(html("h3", "Made here"), made.length ? list : html("p", "None. Drag from a layer to another with Shift held, or choose a layer and \u201cLink from here\u201d."));
    panel.scrollTop = 0;
  }
  function offer(name, text) {
    copy(text);
    const area = html("textarea", text);
    area.readOnly = true; area.rows = 10;
    area.setAttribute("aria-label", "The mapping as " + name);
    panel.querySelectorAll("textarea").forEach((old) => old.remove());
    panel.querySelector("h3").before(area);
    area.select();
  }
  async function copy(text) {
    try { await navigator.clipboard.writeText(text); } catch {   // a frame without that right
      const area = html("textarea", text);
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }
  function copyButton(name) {
    const entry = button("Copy", () => copy(name), "copy");
    entry.setAttribute("aria-label", "Copy " + name);
    return entry;
  }
  // A text as Python and YAML read it: their line breaks are more than those of JSON.
  const quoted = (text) => JSON.stringify(text).replaceAll(/[\u007f-\u00a0\u2028\u2029\ufeff]/g, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  const pattern = (address) => quoted(address.replaceAll(/[*?[{]/g, "[$&]").replace(/^re:/, "[r]e:"));
  function asPython() {
    return ["mapping = Mapping(source, target)", ...links.map((link) => `mapping.link(${pattern(link.source_address)}, ${pattern(link.target_address)}`
      + (link.direction === "forward" ? ")" : `, direction="${link.direction}")`))].join("\n") + "\n";
  }
  function asYaml() {
    const lines = ["format: graftlib mapping", "version: 1"];
    ["source", "target"].forEach((side) => {
      const graph = graphs[side === "source" ? 0 : graphs.length - 1], told = new Set();
      lines.push(side + ":", "  model: " + quoted(graph.name), "  parameters:");
      links.forEach((link) => {
        const p = parameterAt(graph, link[side + "_address"]);
        if (told.has(p)) return;
        told.add(p);
        const shape = p.shape === "scalar" ? "" : p.shape.replaceAll(" \u00d7", ",");
        lines.push(`    ? ${quoted(p.address)}`, `    : {shape: [${shape}], kind: ${quoted(p.kind)}}`);
      });
    });
    lines.push("pairs:");
    links.forEach((link) => lines.push("- source: " + quoted(link.source_address), "  target: " + quoted(link.target_address), "  direction: " + link.direction, "  rule: " + quoted(link.rule)));
    return lines.join("\n") + "\n";
  }
  /* With Shift held, a line follows the pointer from a layer to another. */
  const placed = (event) => { const edge = sheet.getBoundingClientRect(); return transform().invert([event.clientX - edge.left, event.clientY - edge.top]); };
  sheet.addEventListener("pointerdown", (event) => {
    const node = event.shiftKey && !event.button && under(event);
    if (!node) return;
    rubber = { node, line: make("path", { class: "rubber" }) };
    stage.append(rubber.line);
  });
  addEventListener("pointermove", (event) => { if (rubber) rubber.line.setAttribute("d", `M${rubber.node.X + rubber.node.w / 2} ${rubber.node.Y + Math.min(rubber.node.h, HEAD) / 2}L${placed(event)}`); });
  addEventListener("pointerup", (event) => {
    if (!rubber) return;
    const from = rubber.node, to = under(event);
    rubber.line.remove();
    rubber = null;
    if (to && to !== from) { event.preventDefault(); linked = true; showPairing(from, to); }
  });
  let linked = false;   // the click at the end of such a line means nothing

  // ---- units: what a pruning plan keeps of a class, and what each unit is worth ------------------------------
  const sizes = (each) => number(each.size) + (each.stay < each.size ? " \u2192 " + number(each.stay) : "");
  const few = (value) => String(+value.toPrecision(4));
  const worthOf = (each, u) => few(each.worth.low + (each.worth.high - each.worth.low) * each.worth.of[u]);
  const unitFacts = (each) => [each.kept ? number(each.stay) + " of " + number(each.size) + " units kept" : "",
    each.worth ? "importance " + few(each.worth.low) + " to " + few(each.worth.high) : ""].filter(Boolean).join(", ");
  /* A cell for each unit, or for a few where there are many: as high as they are kept, as hot as they are worth. */
  function strip(each, lines) {
    const W = 304, WIDE = 4, HIGH = 12, across = W / WIDE, per = Math.ceil(each.size / (across * lines)), cells = Math.ceil(each.size / per);
    const canvas = html("canvas"), told = html("small", "", "unit"), whole = html("div", undefined, "strip"), rows = Math.ceil(cells / across);
    canvas.width = W * 2; canvas.height = rows * HIGH * 2;
    canvas.style.height = rows * HIGH + "px";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", unitFacts(each));
    const pen = canvas.getContext("2d"), [cold, hot, plain, gone] = ["line", "hot", "accent", "edge"].map(colour);
    pen.scale(2, 2);
    for (let i = 0; i < cells; i++) {
      const from = i * per, to = Math.min(each.size, from + per), mean = (list) => list.slice(from, to).reduce((a, b) => a + b, 0) / (to - from);
      const stay = each.kept ? mean(each.kept) : 1, heat = each.worth ? mean(each.worth.of) : 0;
      const ink = each.worth ? cold.map((channel, j) => channel + (hot[j] - channel) * heat) : stay ? plain : gone, high = 3 + (HIGH - 5) * stay;
      pen.fillStyle = `rgb(${ink})`;
      pen.fillRect(i % across * WIDE, (Math.floor(i / across) + 1) * HIGH - high, WIDE - 0.8, high);
    }
    canvas.addEventListener("pointermove", (event) => {
      const i = Math.floor(event.offsetX / WIDE) + across * Math.floor(event.offsetY / HIGH), from = i * per, to = Math.min(each.size, from + per) - 1;
      told.textContent = i >= cells ? "" : (to > from ? "units " + from + " to " + to : ["unit " + from,
        each.kept ? (each.kept[from] ? "kept" : "dropped") : "", each.worth ? "importance " + worthOf(each, from) : ""].filter(Boolean).join(", "));
    });
    canvas.addEventListener("pointerleave", () => { told.textContent = ""; });
    whole.append(canvas, told);
    if (lines > 1 && each.stay < each.size) {
      const gone = html("details");
      gone.append(html("summary", "Dropped units"), html("p", spans(each.kept)));
      whole.append(gone);
    }
    return whole;
  }
  /* The numbers of the units that go: "0, 3 to 7, 12". */
  function spans(kept) {
    const list = [];
    for (let u = 0; u < kept.length; u++) {
      if (kept[u]) continue;
      const from = u;
      while (u + 1 < kept.length && !kept[u + 1]) u++;
      list.push(u > from ? from + " to " + u : String(from));
    }
    return list.slice(0, 400).join(", ") + (list.length > 400 ? ", and more" : "");
  }
  function showUnits() {
    graphs.forEach((graph) => {
      const some = graph.classes.map((each, c) => [each, c]).filter(([each]) => each.kept || each.worth), planned = some.filter(([each]) => each.kept);
      if (!some.length) return;
      const before = planned.reduce((sum, [each]) => sum + each.size, 0), after = planned.reduce((sum, [each]) => sum + each.stay, 0);
      const list = html("ul");
      some.slice(0, 80).forEach(([each, c]) => {
        const [p] = each.members[0], row = html("li");
        row.append(button(graph.parameters[p].address, () => { pinned = [graph, c]; light(graph, c); showClass(graph, c); }, "go"), html("small", sizes(each)), strip(each, 1));
        list.append(row);
      });
      if (some.length > 80) list.append(html("li", "and " + number(some.length - 80) + " more"));
      panel.append(html("h3", (planned.length ? "Pruning plan" : "Importance of units") + (graphs.length > 1 ? " of " + graph.name : "")),
        html("p", planned.length ? number(after) + " of " + number(before) + " units kept in " + plural(planned.length, "axis class") : plural(some.length, "axis class")), list);
    });
  }

  // ---- stories: what a graft or an assembly did to a layer ----------------------------------------------------
  const stories = rows(data.stories).map((each) => ({ ...each, node: nodeAt(each.place) }));
  /* Values by step as a line, with the least and the largest beside it. */
  function curveOf(points) {
    const xs = points.filter((_, i) => i % 2 === 0), ys = points.filter((_, i) => i % 2), W = 304, H = 44;
    const at = (list, value, most) => { const low = Math.min(...list), high = Math.max(...list); return high > low ? (value - low) / (high - low) * most : most / 2; };
    const chart = make("svg", { class: "curve", width: W, height: H, role: "img", "aria-label": "from " + few(Math.min(...ys)) + " to " + few(Math.max(...ys)) });
    chart.append(make("path", { d: "M" + xs.map((x, i) => [2 + at(xs, x, W - 4), H - 2 - at(ys, ys[i], H - 4)]).join("L") }));
    const whole = html("div");
    whole.append(chart, html("small", "size of the change by step, " + few(Math.min(...ys)) + " to " + few(Math.max(...ys))));
    return whole;
  }
  /* How weights lie, once somebody asks. */
  function histogram([bars, low, high, mean, std, zeros, odd]) {
    const whole = html("details"), W = 304, H = 60, each = W / 32, chart = make("svg", { class: "curve", width: W, height: H, role: "img", "aria-label": "histogram from " + few(low) + " to " + few(high) });
    chart.append(make("path", { class: "bars", d: Array.from(bytes(bars), (bar, i) => `M${i * each} ${H}v${-bar / 255 * H}h${each - 1}v${bar / 255 * H}z`).join("") }));
    whole.append(html("summary", "Weights"), chart, html("small", few(low) + " to " + few(high) + ", mean " + few(mean) + ", standard deviation " + few(std)
      + (zeros ? ", " + few(100 * zeros) + " % zeros" : "") + (odd ? ", " + plural(odd, "element") + " not finite" : "")));
    return whole;
  }
  function tell(some, withNames) {
    const list = html("ul");
    some.slice(0, 60).forEach((each) => {
      const row = html("li");
      row.append(withNames ? button(each.title === "origins" ? each.node.path : each.title, () => reveal(each.node), "go") : each.title);
      each.lines.forEach((line) => row.append(html("small", line)));
      if (each.curve.length > 2) row.append(curveOf(each.curve));
      list.append(row);
    });
    if (some.length > 60) list.append(html("li", "and " + number(some.length - 60) + " more"));
    panel.append(html("h3", some.some((each) => each.title === "origins") ? "Origins" : "Transfers"), list);
  }

  // ---- details -----------------------------------------------------------------------------------------------
  function html(name, text, className) {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  }
  function button(text, action, className) {
    const element = html("button", text, className);
    element.type = "button";
    element.addEventListener("click", action);
    return element;
  }
  function table(rows) {
    const list = html("dl");
    rows.filter(([, value]) => value !== "" && value !== undefined && value !== null).forEach(([key, value]) => {
      list.append(html("dt", key), html("dd", String(value)));
    });
    return list;
  }
  const ARROW = { forward: "writes", backward: "is written by", both: "exchanges with" };
  const kindName = (kind) => kind.replace("_", " ");

  function showOverview() {
    panel.replaceChildren(html("h2", data.title));
    if (links.length) panel.append(html("p", plural(links.length, "link")));
    if (data.notes.length) {
      const list = html("ul");
      data.notes.forEach((line) => list.append(html("li", line)));
      const end = graphs.find((graph) => graph.stopped);
      panel.append(html("h3", graphs.some((graph) => graph.tracer === "none") ? "Not traced" : "What differs"), list);
      if (end) panel.append(button("Go to " + end.stopped.path, () => reveal(end.stopped), "act"));
    }
    showUnits();
    if (stories.length) tell(stories, true);
    graphs.forEach((graph, g) => panel.append(
      html("h3", graphs.length < 2 ? "Model" : g ? "Target, on the right" : "Source, on the left"),
      table([["name", graph.name], ["layers", number(graph.layers)], ["parameters", number(graph.nodes[0].elements)],
        ["axis classes", graph.classes.length ? number(graph.classes.filter((each) => !each.frozen_by).length) + " free of " + number(graph.classes.length) : ""], ["captured by", graph.tracer]])));
    const keys = html("ul");
    [["/", "search"], ["Tab", "go from one model to the other"], ["\u2191 \u2193", "previous and next layer"], ["\u2192", "open, or follow a link"],
      ["\u2190", "close, or go to the module around it"], ["e  c", "open or close a level"], ["+  \u2212  0", "zoom, fit"], ["Shift", "and drag: link a layer to another"], ["Esc", "back to this page"]]
      .forEach(([key, text]) => { const row = html("li"); row.append(html("kbd", key), " " + text); keys.append(row); });
    panel.append(html("h3", "Keys"), keys);
    const colours = KINDS.filter((kind) => graphs.some((graph) => graph.nodes.some((node) => node.colour === kind)));
    if (colours.length) {
      const key = html("p", undefined, "key");
      colours.forEach((kind) => { const entry = html("span"); entry.append(paint(html("i"), kind), kindName(kind)); key.append(entry); });
      panel.append(html("h3", "Colours, by what holds most parameters"), key);
    }
    panel.append(html("h3", "Keep what is shown"), button("SVG", () => keepPicture("svg"), "act"), button("PNG", () => keepPicture("png"), "act"));
    panel.append(html("h3", "Mapping"), button("Links, and what to copy of them", showMapping, "act"));
    if (links.length) panel.append(html("h3", "Links"), linkList(links, null), html("p", bundles.length < links.length ? "Drawn as " + plural(bundles.length, "line") + " at this level." : ""));
  }

  function linkList(some, subject) {
    const list = html("ul"), most = 60;
    some.slice(0, most).forEach((link) => {
      const row = html("li");
      if (subject === null) {
        row.append(button(link.source_address, () => reveal(link.from), "go"), html("small", ARROW[link.direction] || "writes"),
          button(link.target_address, () => reveal(link.to), "go"));
      } else {
        const inside = holds(subject, link.from);
        const [mine, its, other] = inside ? [link.source_address, link.target_address, link.to] : [link.target_address, link.source_address, link.from];
        const verb = inside ? ARROW[link.direction] : { forward: "is written by", backward: "writes", both: "exchanges with" }[link.direction];
        row.append(html("small", mine + " " + (verb || "writes")), button(its, () => reveal(other), "go"));
      }
      row.append(html("small", kindName(link.kind) + ", " + link.source_shape + " to " + link.target_shape), html("small", link.rule));
      list.append(row);
    });
    if (some.length > most) list.append(html("li", "and " + number(some.length - most) + " more"));
    return list;
  }
  function holds(outer, inner) {
    for (let node = inner; node; node = parentOf(node)) if (node === outer) return true;
    return false;
  }
  /* The parts of a packed parameter: [name, role, heads]. */
  const partsOf = (p) => p.heads ? p.heads.map((heads, i) => [p.parts[2 * i], p.parts[2 * i + 1], heads]) : [];

  function showNode(node) {
    const graph = graphs[node.g];
    const name = html("p", node.path + " ");
    name.append(copyButton(node.path));
    panel.replaceChildren(html("h2", node.label), name);
    const value = overlay && overlay.values.get(node.id);
    panel.append(table([
      ["kind", node.kind], [overlay ? overlay.name : "", value === undefined || value === null ? "" : +value.toPrecision(6)],
      ["in", node.in_shapes.slice(0, 8).join(", ")], ["out", node.out_shapes.slice(0, 8).join(", ")],
      ["parameters", node.elements ? number(node.elements) : ""], ["depth", node.depth === null ? "" : node.depth.toFixed(3)],
      ["calls", node.calls > 1 ? number(node.calls) : ""], ["repeats", node.repeats > 1 ? node.repeats : ""], ["holds", node.children.length ? plural(node.children.length, "part") : ""],
    ]));
    if (node.children.length) panel.append(button(node.open ? "Close" : "Open", () => { toggle(node); showNode(node); }, "act"));
    if (parentOf(node) && parentOf(node).parent >= 0) panel.append(button("Go to the module around it", () => reveal(parentOf(node)), "act"));
    if (ends(node).length) panel.append(button("Link from here", () => linkFrom(node), "act"));
    if (node.parameters.length) {
      const list = html("ul");
      node.parameters.map((i) => graph.parameters[i]).forEach((p) => {
        const row = html("li", p.address + " ");
        row.append(copyButton(p.address), html("small", p.shape + (p.axes.length ? " (" + p.axes.join(" ") + ")" : "") + ", " + p.dtype),
          html("small", [kindName(p.kind), p.role].join(", ") + (p.depth === null ? "" : ", depth " + p.depth.toFixed(3))));
        const parts = partsOf(p);
        if (parts.length) row.append(html("small", "parts: " + parts.map(([name, role, heads]) => p.address + "::" + (name === "heads" ? "head[0.." + (heads - 1) + "]" : name) + (role ? " (" + role + ")" : "")).join(", ")));
        if (p.tied) row.append(html("small", "same tensor as " + p.tied));
        const coupledAxes = html("div", undefined, "axes");
        p.classes.forEach((held, axis) => held.forEach((c) => coupledAxes.append(axisButton(graph, p, axis, c))));
        if (coupledAxes.childElementCount) row.append(coupledAxes);
        if (p.lie) row.append(histogram(p.lie));
        list.append(row);
      });
      panel.append(html("h3", "Parameters"), list);
    }
    const told = stories.filter((each) => holds(node, each.node));
    if (told.length) tell(told, node.children.length > 0);
    if (node.bonds.length) panel.append(html("h3", plural(node.bonds.length, "link")), linkList(node.bonds, node));
    for (const [name, ends] of [["Reads from", node.inbound], ["Read by", node.outbound]]) {
      if (!ends.length) continue;
      const list = html("ul");
      ends.slice(0, 20).forEach(([i, shape]) => {
        const row = html("li");
        row.append(button(graph.nodes[i].path, () => reveal(graph.nodes[i]), "go"), html("small", shape));
        list.append(row);
      });
      panel.append(html("h3", name), list);
    }
    panel.scrollTop = 0;
  }

  // ---- what is shown, as a file ------------------------------------------------------------------------------
  const WORN = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "opacity", "font-family", "font-size",
    "font-weight", "text-anchor", "paint-order", "rx"];
  function picture() {
    refresh();
    const copy = svg.cloneNode(true), own = svg.querySelectorAll("*"), theirs = copy.querySelectorAll("*");
    own.forEach((element, i) => {
      const style = getComputedStyle(element);
      for (const name of ["role", "tabindex", "aria-label", "aria-level", "aria-expanded", "aria-selected", "aria-hidden", "data-id", "data-toggle", "class", "style"]) theirs[i].removeAttribute(name);
      if (["path", "rect", "text"].includes(element.tagName)) WORN.forEach((name) => { const value = style.getPropertyValue(name); if (value) theirs[i].setAttribute(name, value); });
      else if (element.tagName === "g" && style.opacity !== "1") theirs[i].setAttribute("opacity", style.opacity);
    });
    for (const name of [...copy.attributes].map((attribute) => attribute.name)) if (name !== "xmlns") copy.removeAttribute(name);
    copy.setAttribute("xmlns", SVG);
    copy.setAttribute("width", size.width); copy.setAttribute("height", size.height);
    copy.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
    copy.prepend(make("rect", { width: size.width, height: size.height, fill: getComputedStyle(document.body).backgroundColor }));
    return new XMLSerializer().serializeToString(copy);
  }
  async function keepPicture(form) {
    let blob = new Blob([picture()], { type: "image/svg+xml" });
    if (form === "png") {
      const image = new Image();
      image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(picture());
      await image.decode();
      const sheet = document.createElement("canvas");
      sheet.width = size.width * 2; sheet.height = size.height * 2;
      sheet.getContext("2d").drawImage(image, 0, 0, sheet.width, sheet.height);
      blob = await new Promise((done) => { sheet.toBlob(done, "image/png"); });
    }
    const anchor = html("a");
    anchor.href = URL.createObjectURL(blob);
    anchor.download = "graftlib." + form;
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 1000);
  }

  // ---- pointing ----------------------------------------------------------------------------------------------
  const nodeOf = (target) => { const element = target.closest && target.closest(".node"); return element ? byId(+element.dataset.id) : null; };
  /* By place, not by element: from afar boxes are one element. */
  function under(event) {
    if (!painted) return null;
    const edge = sheet.getBoundingClientRect(), [x, y] = transform().invert([event.clientX - edge.left, event.clientY - edge.top]);
    const holdsPoint = (node) => x >= node.X && x <= node.X + node.w && y >= node.Y && y <= node.Y + node.h;
    for (const graph of shownGraphs()) {
      let node = graph.nodes[0];
      if (!holdsPoint(node)) continue;
      for (let inner = node; inner; ) {
        node = inner;
        inner = node.open && node.children.map((i) => graph.nodes[i]).find(holdsPoint);
      }
      return node.parent < 0 ? null : node;
    }
    return null;
  }
  function roles(node) {
    const graph = graphs[node.g], seen = new Set();
    node.parameters.forEach((i) => seen.add(graph.parameters[i].role));
    return [...seen].join(", ");
  }
  function showTip(event, lines) {
    tip.replaceChildren();
    lines.filter(Boolean).forEach((line, i) => { tip.append(i ? "\n" : "", i ? line : html("b", line)); });
    tip.hidden = false;
    const box = sheet.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const x = event.clientX - box.left + 14, y = event.clientY - box.top + 14;
    tip.style.left = Math.max(4, Math.min(x, box.width - own.width - 8)) + "px";
    tip.style.top = Math.max(4, y + own.height > box.height ? y - own.height - 24 : y) + "px";
  }
  function hideTip() { tip.hidden = true; }
  sheet.addEventListener("pointermove", (event) => {
    if (event.buttons || event.target.closest(APART)) return;
    const bundle = event.target.__bundle, node = bundle ? null : under(event);
    if (node !== hovered) { hovered = node; mark(); }
    if (node && !(node.open && node.children.length && !nearHead(event, node))) {
      const value = overlay && overlay.values.get(node.id);
      showTip(event, [node.path || node.label, [node.kind, node.repeats > 1 ? "\u00d7" + node.repeats : ""].filter(Boolean).join(" "),
        value === undefined || value === null ? "" : overlay.name + " " + +value.toPrecision(6),
        node.in_shapes.length ? "in " + node.in_shapes.slice(0, 4).join(", ") : "", node.out_shapes.length ? "out " + node.out_shapes.slice(0, 4).join(", ") : "",
        node.elements ? plural(node.elements, "parameter") : "", roles(node) ? "roles: " + roles(node) : "",
        node.depth === null ? "" : "depth " + node.depth.toFixed(3), node.bonds.length ? plural(node.bonds.length, "link") : ""]);
    } else if (bundle) {
      const some = bundle.links.slice(0, 6).map((link) => link.source_address + " " + (ARROW[link.direction] || "writes") + " " + link.target_address);
      showTip(event, [plural(bundle.links.length, "link") + ", " + kindName(bundle.kind), ...some, bundle.links.length > 6 ? "and " + (bundle.links.length - 6) + " more" : ""]);
    } else hideTip();
  });
  const nearHead = (event, node) => (event.clientY - sheet.getBoundingClientRect().top - transform().applyY(node.Y)) < HEAD * transform().k;
  sheet.addEventListener("pointerleave", () => { hovered = null; hideTip(); mark(); });
  sheet.addEventListener("click", (event) => {
    if (event.target.closest(APART)) return;
    if (linked) { linked = false; return; }
    const bundle = event.target.__bundle, chevron = event.target.closest("[data-toggle]"), node = under(event);
    hideTip();
    if (chevron) toggle(byId(+chevron.dataset.toggle));
    else if (bundle) showBundle(bundle);
    else if (node && start) showPairing(start, node);
    else if (node) { choose(node); focus(node); }
    else clear();
  });
  sheet.addEventListener("dblclick", (event) => {
    const node = under(event);
    if (node && !event.target.closest("[data-toggle]")) toggle(node);
  });
  function showBundle(bundle) {
    chosen = null; chosenLink = bundle.links[0]; hovered = null;
    release(); remark();
    panel.replaceChildren(html("h2", plural(bundle.links.length, "link")), html("p", kindName(bundle.kind)), linkList(bundle.links, null));
  }
  function clear() { start = null; chosen = chosenLink = null; release(); remark(); showOverview(); }

  // ---- keys --------------------------------------------------------------------------------------------------
  function inOrder(g) {
    const list = [];
    const walk = (node) => { if (node.parent >= 0) list.push(node); if (node.open) node.children.forEach((i) => walk(graphs[g].nodes[i])); };
    walk(graphs[g].nodes[0]);
    return list;
  }
  function step(node, by) {
    const list = inOrder(node.g), next = list[Math.max(0, Math.min(list.length - 1, list.indexOf(node) + by))];
    go(next);
  }
  function go(node) {
    if (narrow() && node.g !== only) return reveal(node);
    choose(node); keepInSight(visible(node)); focus(node);
  }
  svg.addEventListener("keydown", (event) => {
    const node = nodeOf(event.target);
    if (!node || event.ctrlKey || event.metaKey || event.altKey) return;
    const container = node.children.length > 0;
    const actions = {
      ArrowDown: () => step(node, 1), ArrowUp: () => step(node, -1),
      ArrowRight: () => {
        if (container && !node.open) return toggle(node);
        if (container) return step(node, 1);
        if (node.bonds.length) go(visible(holds(node, node.bonds[0].from) ? node.bonds[0].to : node.bonds[0].from));
      },
      ArrowLeft: () => { if (container && node.open) toggle(node); else if (parentOf(node) && parentOf(node).parent >= 0) go(parentOf(node)); },
      Enter: () => { if (start) return showPairing(start, node); if (container) toggle(node); choose(node); }, " ": () => { if (start) showPairing(start, node); else choose(node); },
      Home: () => go(inOrder(node.g)[0]), End: () => go(inOrder(node.g).at(-1)),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === search) {
      if (event.key === "Escape") { search.value = ""; look(); search.blur(); }
      if (event.key === "Enter") nextHit(event.shiftKey ? -1 : 1);
      if (event.key === "ArrowDown" && !results.hidden) { event.preventDefault(); results.querySelector("button").focus(); }
      return;
    }
    if (event.target.closest("#results")) {
      const row = event.target.closest("li");
      const other = event.key === "ArrowDown" ? row.nextElementSibling : event.key === "ArrowUp" ? row.previousElementSibling : null;
      if (other && other.querySelector("button")) { event.preventDefault(); other.querySelector("button").focus(); }
      if (event.key === "Escape" || (event.key === "ArrowUp" && !other)) { event.preventDefault(); search.focus(); }
      return;
    }
    if (["SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
    const actions = { "/": () => search.focus(), e: () => level(1), c: () => level(-1), "+": () => scaleBy(1.25), "=": () => scaleBy(1.25),
      "-": () => scaleBy(0.8), 0: fit, d: details, Escape: clear };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });

  // ---- search ------------------------------------------------------------------------------------------------
  let turn = -1;
  /* A glob as `Mapping.link` takes it: "*" crosses dots, "{i}" is one name between dots, "re:" begins a regular
     expression; a module stands for its weight. Null where the text is no glob. */
  function glob(pattern) {
    let source = "";
    if (pattern.startsWith("re:")) source = pattern.slice(3).replaceAll("(?P<", "(?<").replaceAll(/\(\?P=(\w+)\)/g, "\\k<$1>");
    else {
      if (!/[*?[{]/.test(pattern)) return null;
      const seen = new Set();
      source = pattern.replaceAll(/\*+|\?|\{([A-Za-z_]\w*)\}|\[(!?)([^\]]+)\]|[^]/g, (all, capture, not, letters) => {
        if (all[0] === "*") return "[^]*?";
        if (all === "?") return "[^]";
        if (capture) { const again = seen.has(capture); seen.add(capture); return again ? `\\k<${capture}>` : `(?<${capture}>[^.]+)`; }
        if (letters) return "[" + (not ? "^" : "") + letters.replaceAll(/[\\\]^]/g, "\\$&") + "]";
        return all.replace(/[$()*+.?[\\\]^{|}/-]/, "\\$&");
      });
    }
    try { return new RegExp("^(?:" + source + ")$", "iu"); } catch { return null; }
  }
  const spaceless = (shape) => shape.replaceAll(" ", "");
  function namesOf(node) {
    if (node.names === undefined) {
      const graph = graphs[node.g], own = node.parameters.map((i) => graph.parameters[i]);
      node.names = [node.path, node.label, node.kind, ...node.in_shapes.map(spaceless), ...node.out_shapes.map(spaceless),
        ...own.flatMap((p) => [p.address, p.role, p.kind, spaceless(p.shape), ...partsOf(p).flatMap(([name, role]) => [p.address + "::" + name, role])])].join(" ").toLowerCase();
    }
    return node.names;
  }
  function hasPart(p, part) {
    const parts = partsOf(p), names = parts.map(([name]) => name.toLowerCase());
    if (names.some((name) => name !== "heads" && name.startsWith(part)) || (names.includes("heads") && "head[".startsWith(part))) return true;
    const head = /^(?:(.+)\.)?head\[(\d+)\]$/.exec(part), group = /^group\[(\d+)\]$/.exec(part);
    if (head) { const whole = parts.find(([name]) => name.toLowerCase() === (head[1] || "heads")); return !!whole && +head[2] < whole[2]; }
    return !!group && p.groups > 1 && +group[1] < p.groups;
  }
  /* A word as a test of a node. */
  function asked(raw) {
    const word = raw.toLowerCase(), cut = word.startsWith("re:") ? -1 : word.lastIndexOf("::");
    const name = cut < 0 ? word : word.slice(0, cut), part = cut < 0 ? "" : word.slice(cut + 2);
    const pattern = glob(cut < 0 ? raw : raw.slice(0, cut)), own = (node) => node.parameters.map((i) => graphs[node.g].parameters[i]);
    const named = (p) => pattern ? pattern.test(p.address) || (p.address.endsWith(".weight") && pattern.test(p.address.slice(0, -7))) : p.address.toLowerCase().includes(name);
    if (part) return (node) => namesOf(node).includes(word) || own(node).some((p) => named(p) && hasPart(p, part));
    if (pattern) return (node) => pattern.test(node.path) || own(node).some(named) || namesOf(node).includes(word);
    return (node) => namesOf(node).includes(word);
  }
  function look() {
    const line = search.value.trim(), split = (text) => text.split(/\s+/).filter(Boolean).map(asked);
    // A shape may be written "64 × 3", "64x3" or "(64, 3)".
    const ways = [split(line), split(line.replaceAll(/(\d)\s*[x\u00d7,]\s*(?=\d)/g, "$1\u00d7").replaceAll(/[()]/g, ""))];
    turn = -1;
    results.replaceChildren();
    if (!line) { found = null; $("count").textContent = ""; results.hidden = true; remark(); return; }
    const list = [];
    graphs.forEach((graph) => graph.nodes.forEach((node) => {
      if ((node.form === "layer" || node.form === "module") && ways.some((tests) => tests.length && tests.every((test) => test(node)))) list.push(node);
    }));
    // What has the words in its own name comes before what is of such a kind.
    const own = (node) => line.toLowerCase().split(/\s+/).every((word) => node.path.toLowerCase().includes(word)) ? 0 : 1;
    list.sort((a, b) => own(a) - own(b));
    const holders = new Set();
    list.forEach((node) => { for (let up = parentOf(node); up; up = parentOf(up)) holders.add(up.id); });
    found = { list, hits: new Set(list.map((node) => node.id)), holders };
    $("count").textContent = number(list.length) + " found";
    list.slice(0, 40).forEach((node) => {
      const row = html("li"), entry = button(node.path || node.label, () => { results.hidden = true; reveal(node); focus(node); });
      entry.append(html("small", [node.kind, graphs.length > 1 ? graphs[node.g].name : ""].filter(Boolean).join(", ")));
      row.append(entry);
      results.append(row);
    });
    results.hidden = !list.length;
    remark();
  }
  function nextHit(by) {
    if (!found || !found.list.length) return;
    turn = (turn + by + found.list.length) % found.list.length;
    $("count").textContent = (turn + 1) + " of " + number(found.list.length);
    results.hidden = true;
    reveal(found.list[turn]);
  }
  search.addEventListener("input", look);
  search.addEventListener("focus", () => { if (found && found.list.length) results.hidden = false; });
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest(".search")) results.hidden = true; });

  // ---- legend and tools --------------------------------------------------------------------------------------
  function legend() {
    const counts = new Map(), row = $("legend"), before = row.querySelector("select");
    row.querySelectorAll("button").forEach((old) => old.remove());
    links.forEach((link) => counts.set(link.kind, (counts.get(link.kind) || 0) + 1));
    KINDS.filter((kind) => counts.has(kind)).forEach((kind) => {
      const entry = button("", () => {
        if (!hiddenKinds.delete(kind)) hiddenKinds.add(kind);
        entry.setAttribute("aria-pressed", String(!hiddenKinds.has(kind)));
        bundles = bundled();
        drawLinks(painted, true);
        mark();
      });
      entry.setAttribute("aria-pressed", String(!hiddenKinds.has(kind)));
      entry.title = "Show or hide these links";
      entry.append(paint(html("i"), kind), (kind === "mixed" ? "between kinds" : kindName(kind)) + " " + counts.get(kind));
      row.insertBefore(entry, before);
    });
  }
  function details() {
    panel.hidden = !panel.hidden;
    $("side").setAttribute("aria-expanded", String(!panel.hidden));
  }
  $("expand").addEventListener("click", () => level(1));
  $("collapse").addEventListener("click", () => level(-1));
  $("in").addEventListener("click", () => scaleBy(1.25));
  $("out").addEventListener("click", () => scaleBy(0.8));
  $("fit").addEventListener("click", fit);
  $("side").addEventListener("click", details);

  legend();
  overlays();
  panel.hidden = innerWidth < NARROW + (graphs.length > 1 ? panel.offsetWidth : 0);
  $("side").setAttribute("aria-expanded", String(!panel.hidden));
  resize();
  showOverview();
  recall();
  new ResizeObserver(resize).observe(sheet);
  document.documentElement.dataset.ready = "true";
})();
