/* The page's own script. Names come from models and are not trusted: they reach the page through textContent and
   SVG attributes that hold numbers, never as markup. Colours are chosen from a fixed list of kinds. */
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const KINDS = ["conv", "depthwise", "grouped", "transposed_conv", "linear", "attention", "embedding", "recurrent",
    "norm", "bias", "other", "mixed"];
  const SVG = "http://www.w3.org/2000/svg";
  const NODE_H = 42, GAP_Y = 26, GAP_X = 22, PAD = 14, HEAD = 34, TITLE = 64, STRAIT = 240;
  const $ = (id) => document.getElementById(id);
  const svg = $("picture"), panel = $("panel"), tip = $("tip"), results = $("results"), search = $("search");
  const number = (n) => n.toLocaleString("en-US");
  const short = (n) => n < 1e3 ? String(n) : n < 1e6 ? +(n / 1e3).toPrecision(3) + " k"
    : n < 1e9 ? +(n / 1e6).toPrecision(3) + " M" : +(n / 1e9).toPrecision(3) + " G";
  const plural = (n, word) => number(n) + " " + word + (n === 1 ? "" : "s");

  // ---- the model of the picture ------------------------------------------------------------------------------
  let serial = 0;
  const graphs = data.graphs.map((raw, g) => {
    const nodes = raw.nodes.map((node, i) => ({
      children: [], parameters: [], in_shapes: [], out_shapes: [], label: "", path: "", kind: "", colour: "", elements: 0,
      calls: 0, repeats: 1, open: false, ...node, g, i, id: serial++, parent: i === 0 ? -1 : node.parent || 0,
      inbound: [], outbound: [], bonds: [],
    }));
    nodes.forEach((node) => { node.level = node.parent < 0 ? 0 : nodes[node.parent].level + 1; });
    raw.edges.forEach(([u, v, shape]) => {
      nodes[u].outbound.push([v, shape]);
      nodes[v].inbound.push([u, shape]);
    });
    const layers = nodes.filter((node) => node.form === "layer").length;
    return { ...raw, g, nodes, layers, edgesByParent: lift(nodes, raw.edges) };
  });
  const nodeAt = ([g, i]) => graphs[g].nodes[i];
  const links = data.links.map((link, n) => ({ ...link, n, from: nodeAt(link.source), to: nodeAt(link.target) }));
  links.forEach((link) => {
    for (let node = link.from; node; node = parentOf(node)) node.bonds.push(link);
    for (let node = link.to; node; node = parentOf(node)) if (!node.bonds.includes(link)) node.bonds.push(link);
  });
  const hiddenKinds = new Set();
  let chosen = null, chosenLink = null, hovered = null, found = null, drawnNodes = new Map(), drawnLinks = [];

  function parentOf(node) { return node.parent < 0 ? null : graphs[node.g].nodes[node.parent]; }

  /* Every edge is drawn where its two ends first share a parent: there it joins two siblings. */
  function lift(nodes, edges) {
    const lifted = new Map();
    for (const [u0, v0] of edges) {
      let u = u0, v = v0;
      while (nodes[u].level > nodes[v].level) u = nodes[u].parent;
      while (nodes[v].level > nodes[u].level) v = nodes[v].parent;
      while (nodes[u].parent !== nodes[v].parent) { u = nodes[u].parent; v = nodes[v].parent; }
      if (u === v) continue;
      const parent = nodes[u].parent;
      if (!lifted.has(parent)) lifted.set(parent, new Map());
      lifted.get(parent).set(u + ">" + v, [u, v]);
    }
    return lifted;
  }

  /* The nearest ancestor that is drawn, the node itself where it is. */
  function visible(node) {
    let shown = node;
    for (let up = parentOf(node); up; up = parentOf(up)) if (!up.open) shown = up;
    return shown;
  }

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
  const facts = (node) => clip((node.kind === node.label && !node.elements ? "operation" : node.kind) || (node.form === "fold" ? "repeated" : ""), 26);
  const amount = (node) => node.elements ? short(node.elements) : "";

  function measure(graph, node) {
    const first = textWidth(title(node), "600 12.5px " + family) + (node.repeats > 1 ? 40 : 0);
    const second = textWidth(facts(node), "11px " + family) + textWidth(amount(node), "11px " + family) + 14;
    const width = Math.max(104, Math.ceil(Math.max(first, second) + 28 + (node.children.length ? 20 : 0)));
    if (!node.open || !node.children.length) { node.w = width; node.h = NODE_H; return; }
    node.children.forEach((i) => measure(graph, graph.nodes[i]));
    const inner = arrange(graph, node);
    const head = node.form === "root" ? 0 : HEAD, pad = node.form === "root" ? 0 : PAD;
    node.w = Math.max(inner.width + 2 * pad, node.form === "root" ? 0 : width + 12);
    node.h = inner.height + head + pad;
    node.dx = (node.w - inner.width) / 2;
    node.dy = head;
  }

  function arrange(graph, node) {
    const edges = [...(graph.edgesByParent.get(node.i) || new Map()).values()];
    const order = new Map(node.children.map((child, place) => [child, place]));
    const chain = edges.every(([u, v]) => order.get(v) === order.get(u) + 1) && edges.length >= node.children.length - 1;
    return chain || node.children.length > 600 ? stack(graph, node, edges, order) : dagreLayout(graph, node, edges);
  }

  /* A plain chain needs no solver, and a crowd would wait for it too long. */
  function stack(graph, node, edges, order) {
    const width = Math.max(...node.children.map((i) => graph.nodes[i].w));
    let y = 0;
    for (const i of node.children) {
      const child = graph.nodes[i];
      child.x = (width - child.w) / 2; child.y = y;
      y += child.h + GAP_Y;
    }
    node.wires = edges.map(([u, v]) => {
      const a = graph.nodes[u], b = graph.nodes[v];
      if (order.get(v) === order.get(u) + 1) return [[a.x + a.w / 2, a.y + a.h], [b.x + b.w / 2, b.y]];
      const bow = 18 + 6 * Math.min(12, Math.abs(order.get(v) - order.get(u)));
      return [[a.x + a.w, a.y + a.h / 2], [width + bow, (a.y + a.h + b.y) / 2], [b.x + b.w, b.y + b.h / 2]];
    });
    return { width, height: y - GAP_Y };
  }

  function dagreLayout(graph, node, edges) {
    const g = new dagre.graphlib.Graph();
    g.setGraph({ rankdir: "TB", nodesep: GAP_X, ranksep: GAP_Y, edgesep: 12, marginx: 0, marginy: 0 });
    g.setDefaultEdgeLabel(() => ({}));
    node.children.forEach((i) => g.setNode(String(i), { width: graph.nodes[i].w, height: graph.nodes[i].h }));
    edges.forEach(([u, v]) => g.setEdge(String(u), String(v)));
    dagre.layout(g);
    let left = Infinity, top = Infinity, right = 0, bottom = 0;
    const wires = edges.map(([u, v]) => g.edge(String(u), String(v)).points.map((p) => [p.x, p.y]));
    for (const i of node.children) {
      const at = g.node(String(i)), child = graph.nodes[i];
      child.x = at.x - child.w / 2; child.y = at.y - child.h / 2;
      left = Math.min(left, child.x); top = Math.min(top, child.y);
      right = Math.max(right, child.x + child.w); bottom = Math.max(bottom, child.y + child.h);
    }
    wires.flat().forEach(([x]) => { left = Math.min(left, x - 6); right = Math.max(right, x + 6); });
    node.children.forEach((i) => { graph.nodes[i].x -= left; graph.nodes[i].y -= top; });
    node.wires = wires.map((points) => points.map(([x, y]) => [x - left, y - top]));
    return { width: right - left, height: bottom - top };
  }

  /* From a place inside the parent to a place in the picture. */
  function settle(graph, node, x, y) {
    node.X = x; node.Y = y;
    if (!node.open) return;
    node.children.forEach((i) => {
      const child = graph.nodes[i];
      settle(graph, child, x + (node.dx || 0) + child.x, y + (node.dy || 0) + child.y);
    });
  }

  function layout() {
    let x = 0;
    graphs.forEach((graph) => {
      const root = graph.nodes[0];
      root.open = true;
      if (root.children.length) measure(graph, root); else { root.w = 160; root.h = NODE_H; }
      const least = Math.max(root.w, 190);
      settle(graph, root, x + (least - root.w) / 2, TITLE);
      graph.left = x; graph.width = least;
      x += least + STRAIT;
    });
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
  const stage = make("g", {}), boxes = make("g", {}), bonds = make("g", {});
  stage.append(boxes, bonds);
  svg.append(stage);

  function curve(points) {
    if (points.length === 2) return `M${points[0]}L${points[1]}`;
    let d = `M${points[0]}`;
    for (let i = 1; i < points.length - 1; i++) {
      const mid = i === points.length - 2 ? points[i + 1]
        : [(points[i][0] + points[i + 1][0]) / 2, (points[i][1] + points[i + 1][1]) / 2];
      d += `Q${points[i]} ${mid}`;
    }
    return d;
  }

  function arrow(at, from, size) {
    const angle = Math.atan2(at[1] - from[1], at[0] - from[0]);
    const wing = (turn) => [at[0] - size * Math.cos(angle + turn), at[1] - size * Math.sin(angle + turn)];
    return `M${at}L${wing(0.42)}L${wing(-0.42)}Z`;
  }

  function draw() {
    layout();
    boxes.replaceChildren();
    drawnNodes = new Map();
    graphs.forEach((graph, g) => {
      const whole = make("g", { role: "tree", "aria-label": graph.name });
      whole.append(
        make("text", { class: "model-name", x: graph.left + graph.width / 2, y: 18, "text-anchor": "middle" }, clip(graph.name, 40)),
        make("text", { class: "model-facts", x: graph.left + graph.width / 2, y: 38, "text-anchor": "middle" },
          plural(graph.layers, "layer") + ", " + plural(graph.nodes[0].elements, "parameter")));
      drawInside(graph, graph.nodes[0], whole);
      boxes.append(whole);
      const first = [...whole.querySelectorAll(".node")][0];
      const kept = chosen && chosen.g === g && drawnNodes.get(visible(chosen).id);
      if (kept || first) (kept || first).setAttribute("tabindex", "0");
    });
    drawLinks();
    mark();
  }

  function drawInside(graph, node, into) {
    if (!node.open) return;
    node.children.forEach((i) => drawNode(graph, graph.nodes[i], into));
    const x = node.X + (node.dx || 0), y = node.Y + (node.dy || 0);
    (node.wires || []).forEach((wire) => {
      const points = wire.map(([a, b]) => [a + x, b + y]);
      into.append(make("path", { class: "edge", d: curve(points) }),
        make("path", { class: "tip-edge", d: arrow(points.at(-1), points.at(-2), 6) }));
    });
  }

  function drawNode(graph, node, into) {
    const container = node.children.length > 0, open = container && node.open;
    const group = make("g", {
      class: "node" + (open ? " open" : "") + (node.repeats > 1 ? " many" : "") + (node.level % 2 ? "" : " level-odd"),
      role: "treeitem", tabindex: "-1", "data-id": node.id, "aria-level": node.level, "aria-label": describe(node),
    });
    if (container) group.setAttribute("aria-expanded", String(open));
    const { X: x, Y: y, w, h } = node;
    if (node.repeats > 1 && !open) {
      for (const off of [6, 3]) group.append(make("rect", { class: "back", x: x + off, y: y + off, width: w, height: h }));
    }
    group.append(make("rect", { class: "box", x, y, width: w, height: h }));
    group.append(paint(make("rect", { class: "stripe", x: x + 4, y: y + 7, width: 3, height: (open ? HEAD : h) - 14 }), node.colour));
    group.append(make("text", { class: "label", x: x + 14, y: y + (open ? 21 : 18) }, title(node)));
    const right = x + w - (container ? 28 : 11);
    if (node.repeats > 1) group.append(make("text", { class: "badge", x: right, y: y + (open ? 21 : 18) }, "\u00d7" + node.repeats));
    if (open && node.repeats === 1) {
      const after = x + 14 + textWidth(title(node), "600 12.5px " + family) + 8;
      if (after + textWidth(facts(node), "11px " + family) < right) group.append(make("text", { class: "kind", x: after, y: y + 21 }, facts(node)));
    }
    if (!open) {
      group.append(make("text", { class: "kind", x: x + 14, y: y + 33 }, facts(node)));
      group.append(make("text", { class: "size", x: right, y: y + 33 }, amount(node)));
    }
    if (container) {
      const cx = x + w - 15, cy = y + (open ? HEAD / 2 : h / 2);
      const chevron = make("g", { class: "chevron", "data-toggle": node.id });
      chevron.append(make("rect", { x: cx - 12, y: cy - 15, width: 26, height: 30 }),
        make("path", { d: open ? `M${cx - 4} ${cy - 2}l4 4l4 -4` : `M${cx - 2} ${cy - 4}l4 4l-4 4` }));
      group.append(chevron);
    }
    drawnNodes.set(node.id, group);
    into.append(group);
    // After their box and beside it, not in it: a focus on a module is then no focus on all that lies in it.
    drawInside(graph, node, into);
  }

  function describe(node) {
    const parts = [node.path || node.label, node.kind];
    if (node.repeats > 1) parts.push(node.repeats + " repeats");
    if (node.elements) parts.push(plural(node.elements, "parameter"));
    if (node.bonds.length) parts.push(plural(node.bonds.length, "link"));
    return parts.filter(Boolean).join(", ");
  }

  function bundles() {
    const together = new Map();
    for (const link of links) {
      if (hiddenKinds.has(link.kind)) continue;
      const a = visible(link.from), b = visible(link.to);
      const key = [a.id, b.id, link.kind, link.direction].join(" ");
      if (!together.has(key)) together.set(key, { a, b, kind: link.kind, direction: link.direction, links: [] });
      together.get(key).links.push(link);
    }
    return [...together.values()];
  }

  function drawLinks() {
    bonds.replaceChildren();
    drawnLinks = bundles();
    const ports = new Map();       // node -> the bundles that end there, so that they do not lie on one point
    for (const bundle of drawnLinks) for (const [node, other] of [[bundle.a, bundle.b], [bundle.b, bundle.a]]) {
      if (!ports.has(node.id)) ports.set(node.id, []);
      ports.get(node.id).push({ bundle, y: other.Y + Math.min(other.h, HEAD) / 2 });
    }
    ports.forEach((list) => list.sort((p, q) => p.y - q.y));
    const port = (node, bundle) => {
      const list = ports.get(node.id), band = node.open ? HEAD : node.h;
      return node.Y + band * (list.findIndex((p) => p.bundle === bundle) + 1) / (list.length + 1);
    };
    for (const bundle of drawnLinks) {
      const { a, b } = bundle, same = a.g === b.g, loop = a === b;
      const p = [a.X + a.w, port(a, bundle)];
      const q = [same ? b.X + b.w : b.X, loop ? p[1] + 10 : port(b, bundle)];
      const reach = same ? 50 + Math.min(160, Math.abs(q[1] - p[1]) / 3) : Math.max(60, Math.abs(q[0] - p[0]) * 0.45);
      const c1 = [p[0] + reach, p[1]], c2 = [same ? q[0] + reach : q[0] - reach, q[1]];
      const group = paint(make("g", { class: "bond" }), bundle.kind);
      const width = 1.8 + Math.min(4, Math.log2(bundle.links.length));
      const line = make("path", { class: "link", d: `M${p}C${c1} ${c2} ${q}`, "stroke-width": width });
      group.append(line);
      if (bundle.direction !== "backward") group.append(make("path", { class: "tip-link", d: arrow(q, c2, 9) }));
      if (bundle.direction !== "forward") group.append(make("path", { class: "tip-link", d: arrow(p, c1, 9) }));
      if (bundle.links.length > 1) {
        // Neighbours carry their counts at different places along the way.
        const t = [0.5, 0.4, 0.6][ports.get(a.id).findIndex((port) => port.bundle === bundle) % 3], s = 1 - t;
        const along = (i) => s * s * s * p[i] + 3 * s * s * t * c1[i] + 3 * s * t * t * c2[i] + t * t * t * q[i];
        group.append(make("text", { class: "link-count", x: along(0), y: along(1) + 4 }, String(bundle.links.length)));
      }
      bundle.element = group;
      line.__bundle = bundle;
      bonds.append(group);
    }
  }

  /* Marks that change without a new layout: search, choice, and the links of what is pointed at. */
  function mark() {
    svg.classList.toggle("searching", found !== null);
    drawnNodes.forEach((element, id) => {
      const node = byId(id);
      element.classList.toggle("found", !!found && found.hits.has(id));
      element.classList.toggle("holds", !!found && !found.hits.has(id) && found.holders.has(id) && !node.open);
      const isChosen = chosen !== null && visible(chosen).id === id;
      element.classList.toggle("chosen", isChosen);
      element.setAttribute("aria-selected", String(isChosen));
    });
    const subject = hovered || chosen;
    const lit = chosenLink && !hovered ? new Set([chosenLink]) : subject ? new Set(subject.bonds) : null;
    const any = lit !== null && lit.size > 0;
    bonds.classList.toggle("focusing", any);
    for (const bundle of drawnLinks) bundle.element.classList.toggle("lit", any && bundle.links.some((link) => lit.has(link)));
  }

  function byId(id) {
    const g = graphs.findLastIndex((graph) => graph.nodes[0].id <= id);
    return graphs[g].nodes[id - graphs[g].nodes[0].id];
  }

  // ---- moving about ------------------------------------------------------------------------------------------
  const zoom = d3.zoom().scaleExtent([0.02, 4]).on("zoom", (event) => { stage.setAttribute("transform", event.transform); hideTip(); });
  const canvas = d3.select(svg).call(zoom).on("dblclick.zoom", null);
  const transform = () => d3.zoomTransform(svg);
  const moveTo = (t) => canvas.call(zoom.transform, t);
  const frame = () => svg.getBoundingClientRect();

  function extent() {
    const last = graphs.at(-1);
    return { w: last.left + last.width, h: Math.max(...graphs.map((graph) => TITLE + graph.nodes[0].h)) };
  }
  function fit(least) {
    const { w, h } = extent(), { width, height } = frame(), margin = 32;
    const k = Math.max(least, Math.min(1.15, (width - 2 * margin) / w, (height - 2 * margin) / h));
    const y = h * k < height ? (height - h * k) / 2 : margin;
    moveTo(d3.zoomIdentity.translate((width - w * k) / 2, y).scale(k));
  }
  function centre(node) {
    const at = visible(node), { width, height } = frame(), k = Math.max(0.75, transform().k);
    moveTo(d3.zoomIdentity.translate(width / 2 - (at.X + at.w / 2) * k, height / 2 - (at.Y + Math.min(at.h, height / k) / 2) * k).scale(k));
  }
  function keepInSight(node) {
    const t = transform(), { width, height } = frame(), x = t.applyX(node.X), y = t.applyY(node.Y);
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
  }
  function toggle(node) {
    if (!node.children.length) return;
    const focused = svg.contains(document.activeElement);
    keeping(node, () => { node.open = !node.open; });
    if (focused) focus(node);
  }
  function level(step) {
    const depths = graphs.flatMap((graph) => graph.nodes.filter((node) => node.children.length && node.parent >= 0 && visible(node) === node
      && (step > 0 ? !node.open : node.open)).map((node) => node.level));
    if (!depths.length) return;
    const at = step > 0 ? Math.min(...depths) : Math.max(...depths);
    graphs.forEach((graph) => graph.nodes.forEach((node) => {
      if (node.level === at && node.children.length && node.parent >= 0 && visible(node) === node) node.open = step > 0;
    }));
    draw();
    fit(0.45);
  }
  function reveal(node) {
    for (let up = parentOf(node); up; up = parentOf(up)) up.open = true;
    choose(node, true);
    centre(node);
  }
  function focus(node) {
    const element = drawnNodes.get(visible(node).id);
    if (!element) return;
    element.closest("[role=tree]").querySelectorAll('[tabindex="0"]').forEach((other) => other.setAttribute("tabindex", "-1"));
    element.setAttribute("tabindex", "0");
    element.focus({ preventScroll: true });
  }
  function choose(node, redraw) {
    chosen = node; chosenLink = null;
    if (redraw) draw(); else mark();
    showNode(node);
  }

  // ---- details -----------------------------------------------------------------------------------------------
  const html = (name, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  function button(text, action, className) {
    const element = html("button", text, className);
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
    if (graphs.length > 1) panel.append(html("p", plural(links.length, "link") + " between them"));
    graphs.forEach((graph, g) => panel.append(
      html("h3", graphs.length < 2 ? "Model" : g ? "Target, on the right" : "Source, on the left"),
      table([["name", graph.name], ["layers", number(graph.layers)], ["parameters", number(graph.nodes[0].elements)], ["captured by", graph.rung]])));
    const keys = html("ul");
    [["/", "search"], ["Tab", "go from one model to the other"], ["\u2191 \u2193", "previous and next layer"], ["\u2192", "open, or follow a link"],
      ["\u2190", "close, or go to the module around it"], ["e  c", "open or close a level"], ["+  \u2212  0", "zoom, fit"], ["Esc", "back to this page"]]
      .forEach(([key, text]) => { const row = html("li"); row.append(html("kbd", key), " " + text); keys.append(row); });
    panel.append(html("h3", "Keys"), keys);
    const colours = KINDS.filter((kind) => graphs.some((graph) => graph.nodes.some((node) => node.colour === kind)));
    if (colours.length) {
      const key = html("p", undefined, "key");
      colours.forEach((kind) => { const entry = html("span"); entry.append(paint(html("i"), kind), kindName(kind)); key.append(entry); });
      panel.append(html("h3", "Colours, by what holds most parameters"), key);
    }
    const cross = bundles().length;
    if (links.length) panel.append(html("h3", "Links"), linkList(links, null), html("p", cross < links.length ? "Drawn as " + plural(cross, "line") + " at this level." : ""));
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
      row.append(html("small", kindName(link.kind) + ", " + dims(link.source_shape) + " to " + dims(link.target_shape)), html("small", link.rule));
      list.append(row);
    });
    if (some.length > most) list.append(html("li", "and " + number(some.length - most) + " more"));
    return list;
  }
  const dims = (shape) => shape.length ? shape.join(" \u00d7 ") : "scalar";
  function holds(outer, inner) {
    for (let node = inner; node; node = parentOf(node)) if (node === outer) return true;
    return false;
  }

  function showNode(node) {
    const graph = graphs[node.g];
    panel.replaceChildren(html("h2", node.label), html("p", node.path));
    panel.append(table([
      ["kind", node.kind], ["in", node.in_shapes.slice(0, 8).join(", ")], ["out", node.out_shapes.slice(0, 8).join(", ")],
      ["parameters", node.elements ? number(node.elements) : ""], ["depth", node.depth === null || node.depth === undefined ? "" : node.depth.toFixed(3)],
      ["calls", node.calls > 1 ? number(node.calls) : ""], ["repeats", node.repeats > 1 ? node.repeats : ""], ["holds", node.children.length ? plural(node.children.length, "part") : ""],
    ]));
    if (node.children.length) panel.append(button(node.open ? "Close" : "Open", () => { toggle(node); showNode(node); }, "act"));
    if (parentOf(node) && parentOf(node).parent >= 0) panel.append(button("Go to the module around it", () => reveal(parentOf(node)), "act"));
    if (node.parameters.length) {
      const list = html("ul");
      node.parameters.map((i) => graph.parameters[i]).forEach((p) => {
        const row = html("li", p.address);
        row.append(html("small", p.shape + (p.axes ? " (" + p.axes + ")" : "") + ", " + p.dtype),
          html("small", [kindName(p.kind), p.role].join(", ") + (p.depth === undefined ? "" : ", depth " + p.depth.toFixed(3))));
        if (p.parts) row.append(html("small", "parts: " + p.parts));
        if (p.tied) row.append(html("small", "same tensor as " + p.tied));
        list.append(row);
      });
      panel.append(html("h3", "Parameters"), list);
    }
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

  // ---- pointing ----------------------------------------------------------------------------------------------
  const nodeOf = (target) => { const element = target.closest && target.closest(".node"); return element ? byId(+element.dataset.id) : null; };
  function roles(node) {
    const graph = graphs[node.g], seen = new Set();
    node.parameters.forEach((i) => seen.add(graph.parameters[i].role));
    return [...seen].join(", ");
  }
  function showTip(event, lines) {
    tip.replaceChildren();
    lines.filter(Boolean).forEach((line, i) => { tip.append(i ? "\n" : "", i ? line : html("b", line)); });
    tip.hidden = false;
    const box = svg.parentElement.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const x = event.clientX - box.left + 14, y = event.clientY - box.top + 14;
    tip.style.left = Math.max(4, Math.min(x, box.width - size.width - 8)) + "px";
    tip.style.top = Math.max(4, y + size.height > box.height ? y - size.height - 24 : y) + "px";
  }
  function hideTip() { tip.hidden = true; }
  svg.addEventListener("pointermove", (event) => {
    if (event.buttons) return;
    const node = nodeOf(event.target), bundle = event.target.__bundle;
    if (node !== hovered) { hovered = node; mark(); }
    if (node && !(node.open && node.children.length && event.target.tagName !== "text" && !nearHead(event, node))) {
      showTip(event, [node.path || node.label, [node.kind, node.repeats > 1 ? "\u00d7" + node.repeats : ""].filter(Boolean).join(" "),
        node.in_shapes.length ? "in " + node.in_shapes.slice(0, 4).join(", ") : "", node.out_shapes.length ? "out " + node.out_shapes.slice(0, 4).join(", ") : "",
        node.elements ? plural(node.elements, "parameter") : "", roles(node) ? "roles: " + roles(node) : "",
        node.depth === null || node.depth === undefined ? "" : "depth " + node.depth.toFixed(3), node.bonds.length ? plural(node.bonds.length, "link") : ""]);
    } else if (bundle) {
      const some = bundle.links.slice(0, 6).map((link) => link.source_address + " " + (ARROW[link.direction] || "writes") + " " + link.target_address);
      showTip(event, [plural(bundle.links.length, "link") + ", " + kindName(bundle.kind), ...some, bundle.links.length > 6 ? "and " + (bundle.links.length - 6) + " more" : ""]);
    } else hideTip();
  });
  const nearHead = (event, node) => (event.clientY - frame().top - transform().applyY(node.Y)) < HEAD * transform().k;
  svg.addEventListener("pointerleave", () => { hovered = null; hideTip(); mark(); });
  svg.addEventListener("click", (event) => {
    const bundle = event.target.__bundle, chevron = event.target.closest("[data-toggle]"), node = nodeOf(event.target);
    hideTip();
    if (chevron) toggle(byId(+chevron.dataset.toggle));
    else if (bundle) showBundle(bundle);
    else if (node) { choose(node); focus(node); }
    else clear();
  });
  svg.addEventListener("dblclick", (event) => {
    const node = nodeOf(event.target);
    if (node && !event.target.closest("[data-toggle]")) toggle(node);
  });
  function showBundle(bundle) {
    chosen = null; chosenLink = bundle.links[0]; hovered = null;
    mark();
    panel.replaceChildren(html("h2", plural(bundle.links.length, "link")), html("p", kindName(bundle.kind)), linkList(bundle.links, null));
  }
  function clear() { chosen = chosenLink = null; mark(); showOverview(); }

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
  function go(node) { choose(node); focus(node); keepInSight(visible(node)); }
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
      Enter: () => { if (container) toggle(node); choose(node); }, " ": () => choose(node),
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
    const actions = { "/": () => search.focus(), e: () => level(1), c: () => level(-1), "+": () => canvas.call(zoom.scaleBy, 1.25), "=": () => canvas.call(zoom.scaleBy, 1.25),
      "-": () => canvas.call(zoom.scaleBy, 0.8), 0: () => fit(0), d: details, Escape: clear };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });

  // ---- search ------------------------------------------------------------------------------------------------
  let turn = -1;
  function look() {
    const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    turn = -1;
    results.replaceChildren();
    if (!words.length) { found = null; $("count").textContent = ""; results.hidden = true; mark(); return; }
    const list = [];
    graphs.forEach((graph) => graph.nodes.forEach((node) => {
      if (node.parent < 0) return;
      const names = [node.path, node.label, node.kind, ...node.parameters.map((i) => graph.parameters[i].address + " " + graph.parameters[i].role)].join(" ").toLowerCase();
      if (words.every((word) => names.includes(word))) list.push(node);
    }));
    // What bears the words in its own name comes before what is of such a kind.
    const own = (node) => words.every((word) => node.path.toLowerCase().includes(word)) ? 0 : 1;
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
    mark();
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
    const counts = new Map();
    links.forEach((link) => counts.set(link.kind, (counts.get(link.kind) || 0) + 1));
    KINDS.filter((kind) => counts.has(kind)).forEach((kind) => {
      const entry = button("", () => {
        if (!hiddenKinds.delete(kind)) hiddenKinds.add(kind);
        entry.setAttribute("aria-pressed", String(!hiddenKinds.has(kind)));
        drawLinks(); mark();
      });
      entry.setAttribute("aria-pressed", "true");
      entry.title = "Show or hide these links";
      entry.append(paint(html("i"), kind), (kind === "mixed" ? "between kinds" : kindName(kind)) + " " + counts.get(kind));
      $("legend").append(entry);
    });
  }
  function details() {
    panel.hidden = !panel.hidden;
    $("side").setAttribute("aria-expanded", String(!panel.hidden));
  }
  $("expand").addEventListener("click", () => level(1));
  $("collapse").addEventListener("click", () => level(-1));
  $("in").addEventListener("click", () => canvas.call(zoom.scaleBy, 1.25));
  $("out").addEventListener("click", () => canvas.call(zoom.scaleBy, 0.8));
  $("fit").addEventListener("click", () => fit(0));
  $("side").addEventListener("click", details);

  legend();
  draw();
  showOverview();
  fit(0.7);
  document.documentElement.dataset.ready = "true";
})();
