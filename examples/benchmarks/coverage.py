"""How many models are seen, how many axis classes hold, and how much of the weights they free.

Every model of a family is traced, its axis classes are found and the permutation check is run on it:

    python -m examples.benchmarks.coverage --family torchvision --subset nightly
    python -m examples.benchmarks.coverage --family hf --out docs/benchmarks
    python -m examples.benchmarks.coverage --family timm --all --no-check   # every one below 100 M parameters

With `--prune`, and with `--all`, half of every class is pruned as well, in a copy of a model that has run before, and
its row says whether the slim model ran and gave the traced shapes, the share
of the parameters that is left, the classes that were left as they were or got other sizes, processor seconds, how far
the resident memory grew by the size of the model, and whether a slim model with a configuration was saved, loaded and
answered the same.

Random weights, nothing is downloaded. Each model has a process of its own, forked from one that has imported the
libraries; one that takes longer than `--limit` seconds is ended and noted. A run that was interrupted goes on where it
stopped; every row says which code it saw, as a digest, and the summary counts the rows of other code.
Writes ``coverage_<family>.json`` and ``coverage_<family>.md``; ends with 1 where a trace or a check failed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import platform
import re
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from graftlib.disk import write_whole

from ..common import command, memory, results

Row = dict[str, Any]
_PRELOADED = (
    "graftlib.surgery",
    "torch._dynamo",
    "torchvision",
    "timm",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
)


def measure(family: str, name: str, prune: bool = False, checked: bool = True) -> Row:
    """Look at one model; `prune` half of it, too; leave the permutation check out where not `checked`."""
    from graftlib import trace

    from .coverage_zoo import build, room

    row: Row = {"name": name, "kind": room(family, name), "code": digest()}
    try:
        model, args, kwargs = build(family, name)
    except Exception as error:
        return row | {"unbuilt": _words(error)}
    row["inputs"] = _shapes([*args, *kwargs.values()])
    if prune:
        row |= _run_before(model, args, kwargs)
        if "unbuilt" in row:
            return row
    start = time.perf_counter()
    try:
        graph = trace(model, args, kwargs)
    except Exception as error:
        return row | {"traced": False, "error": _words(error)}
    row |= {
        "traced": True,
        "tracer": graph.tracer,
        "trace_seconds": round(time.perf_counter() - start, 2),
    }
    if prune:
        row["prune"] = _pruned(model, graph, args, kwargs)
    row |= _attentions(graph)
    return row | _checked(graph, (args, kwargs), checked)


def _run_before(model: Any, args: Any, kwargs: Any) -> Row:
    """Lets a model leave behind what it keeps between two runs."""
    import torch

    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        return {"unbuilt": f"it does not run on the inputs made for it: {_words(error)}"}
    return {"ran_before": True}


def _pruned(model: Any, graph: Any, args: Any, kwargs: Any) -> Row:
    """Half of every class: what came out and what it cost."""
    import torch

    from graftlib.surgery import SurgeryWarning, prune

    size = max(sum(t.numel() * t.element_size() for t in model.state_dict().values()), 1)
    count = sum(p.numel() for p in model.parameters())
    assert graph.axis_classes is not None
    start, resident = time.process_time(), memory.reset()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            slim = prune(graph, 0.5)
        except Exception as error:
            return {"done": False, "error": _words(error), "cpu_s": _since(start)}
    row: Row = {"done": True, "cpu_s": _since(start)}
    row["peak_by_model"] = round((memory.peak() - resident) / size, 2)
    row["left"] = round(sum(p.numel() for p in slim.parameters()) / max(count, 1), 4)
    texts = [str(one.message) for one in said if issubclass(one.category, SurgeryWarning)]
    row |= _counts(texts)
    try:
        with torch.no_grad():
            shapes = [tuple(t.shape) for t in _leaves(slim(*args, **kwargs))]
        row["ran"] = graph.real or shapes == [tuple(shape) for shape in graph.outputs]
    except Exception as error:
        row |= {"ran": False, "error": _words(error)}
    row["config_warned"] = any("cannot say" in text for text in texts)
    return row | _saved(slim, args, kwargs)


def _counts(texts: list[str]) -> Row:
    """From the warnings: classes in all, those left as they were, those of other sizes."""
    row: Row = {}
    for text in texts:
        if found := re.match(r"(\d+) of (\d+) classes (were left|got other)", text):
            word = "classes_left" if found[3] == "were left" else "classes_tied"
            row |= {
                word: int(found[1]),
                "classes_wished": int(found[2]),
                f"{word}_why": text[-160:],
            }
    return {"classes_left": 0, "classes_tied": 0, **row}


def _saved(slim: Any, args: Any, kwargs: Any) -> Row:
    """Whether a slim model with a configuration comes back from a folder; nothing where it has none."""
    import tempfile

    import torch

    inner = getattr(slim, "model", slim)
    if not hasattr(inner, "save_pretrained"):
        return {}
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            inner.save_pretrained(folder)
            again = type(inner).from_pretrained(folder).eval()
            outs = [_leaves(m(*args, **kwargs)) for m in (inner.eval(), again)]
            same = all(
                torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*outs, strict=True)
            )
    except Exception as error:
        return {"saved": False, "saved_error": _words(error)}
    return {"saved": same}


def _leaves(out: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree as pytree

    return [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]


def _since(start: float) -> float:
    return round(time.process_time() - start, 2)


def digest() -> str:
    """Of the code that the rows tell of."""
    import graftlib.graph

    folder = Path(graftlib.graph.__file__).parent
    files = sorted(path for path in folder.rglob("*.py") if path.name != "breaks.py")
    files += sorted((folder.parent / "surgery").rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _shapes(given: list[Any]) -> str:
    import torch
    from torch.utils import _pytree as pytree

    tensors = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor)]
    return ", ".join("x".join(map(str, tensor.shape)) for tensor in tensors)


def _attentions(graph: Any) -> Row:
    """How many attentions the graph holds, and how many weights have each role in one.

    A weight that serves several attentions counts once. What is left of the softmaxes mixes no values by scores of
    queries and keys: routers, scores that learned weights mix further, attentions without a product.
    """
    from graftlib.graph.attention import find_attentions
    from graftlib.graph.ops import name_of
    from graftlib.graph.reads import weight_nodes

    names = Counter(name_of(node) for node in graph.fx.nodes)
    ops = ("softmax", "_softmax", "scaled_dot_product_attention")
    softmaxes = sum(names[op] for op in ops)
    if not softmaxes:
        return {}
    attentions = len(find_attentions(graph.fx, weight_nodes(graph.fx)))
    words = ("query", "key", "value", "output", "fused")
    found = {word: len(graph.parameters(role=f"attention.{word}")) for word in words}
    return {"attentions": attentions, "other_softmaxes": softmaxes - attentions, "roles": found}


def _checked(graph: Any, example: Any, checked: bool) -> Row:
    from graftlib.graph.axes import axis_classes, check, freedom, frozen_ops, frozen_shares

    start = time.perf_counter()
    classes = axis_classes(graph)
    row: Row = {
        "class_seconds": round(time.perf_counter() - start, 2),
        "classes": sum(each.free for each in classes),
        "freedom": round(freedom(graph), 4),
        "frozen_ops": frozen_ops(graph),
    }
    if row["freedom"] < 0.5:
        shares = list(frozen_shares(graph).items())[:4]
        row["frozen_by"] = {why: n for why, n in shares if n > 0.05}
    if not checked:
        return row | {"passed": None}
    try:
        result = check(graph, example=example)
    except Exception as error:
        return row | {"passed": None, "error": _words(error)}
    return row | {
        "passed": result.passed,
        "max_rel_error": float(f"{result.max_rel_error:.0e}"),
        "check_seconds": round(result.seconds, 1),
        "warning": result.warning,
    }


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def run(
    family: str,
    names: list[str],
    done: dict[str, Row],
    limit: float,
    save: Callable[[dict[str, Row]], None],
    *,
    prune: bool,
    checked: bool,
) -> None:
    """Work through the `names` that are not `done`, each in a process of its own."""
    for name in [name for name in names if name not in done]:
        done[name] = _apart(family, name, prune, checked, limit)
        save(done)
        print(_line(done[name]), flush=True)


def _apart(family: str, name: str, prune: bool, checked: bool, limit: float) -> Row:
    """`measure` in a process that is forked from one which has imported the libraries, and ended after `limit` s."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED])
    answer, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_send, args=(sender, family, name, prune, checked))
    worker.start()
    sender.close()
    try:
        row: Row = (
            answer.recv()
            if answer.poll(limit)
            else {"name": name, "error": f"took more than {limit:.0f} s"}
        )
    except EOFError:
        worker.join()
        row = {"name": name, "error": f"the process ended with {worker.exitcode}"}
    worker.kill()
    worker.join()
    return row


def _send(answer: Connection, family: str, name: str, prune: bool, checked: bool) -> None:
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        answer.send(json.loads(json.dumps(measure(family, name, prune, checked))))


def _line(row: Row) -> str:
    return "  ".join(f"{cell}" for cell in _cells(row))


NOTES = {
    "torchvision": [
        "Every model but the quantised ones, whose weights are integers. Detectors scale their images to at most "
        "192 pixels and keep 60 proposals; MViT is built for clips of 8 frames of 64 pixels. All modules are the "
        "architecture's own.",
        "",
    ],
    "timm": [
        "The smallest architectures of every timm module, up to 220. Ten classes; images of at most 128 pixels (192 "
        "for the Inceptions, 256 with halos) where the architecture allows it.",
        "",
    ],
    "hf": ["Tiny configurations: two layers, 32 units or so.", ""],
    "hf_all": ["Every model type of transformers that builds from a tiny configuration.", ""],
    "timm_all": [
        "Every timm architecture below 100 million parameters; ten classes, small images.",
        "",
    ],
}
COLUMNS = (
    "model",
    "tracer",
    "traced",
    "check",
    "max rel error",
    "freedom",
    "free classes",
    "trace s",
    "classes s",
    "check s",
    "half pruned",
    "parameters left",
    "classes left",
    "prune s",
    "memory",
    "saved",
    "q k v out",
    "frozen ops, remarks",
)


def _cells(row: Row) -> list[str]:
    passed = {True: "passed", False: "**failed**", None: "–"}[row.get("passed")]
    if row.get("passed") is False and row.get("warning"):
        passed = "inconclusive"
    ops = ", ".join(f"{op} ×{n}" for op, n in row.get("frozen_ops", {}).items())
    remarks = "; ".join(
        filter(None, [ops, _why_low(row), row.get("warning"), row.get("error"), row.get("unbuilt")])
    )
    error = row.get("max_rel_error")
    return [
        row["name"],
        row.get("tracer", "–"),
        "yes" if row.get("traced") else "no",
        passed,
        "–" if error is None else f"{error:.0e}",
        f"{row['freedom']:.3f}" if "freedom" in row else "–",
        str(row.get("classes", "–")),
        str(row.get("trace_seconds", "–")),
        str(row.get("class_seconds", "–")),
        str(row.get("check_seconds", "–")),
        *_edit_cells(row.get("prune", {})),
        _roles(row),
        remarks,
    ]


def _edit_cells(edit: Row) -> list[str]:
    if not edit:
        return ["–"] * 6
    if not edit["done"]:
        return [f"**refused** {edit['error'][:80]}", "–", "–", str(edit["cpu_s"]), "–", "–"]
    tied = f" (+{edit['classes_tied']} tied)" if edit["classes_tied"] else ""
    return [
        "ran" if edit.get("ran") else f"**{edit.get('error', 'other shapes')[:80]}**",
        f"{edit['left']:.3f}",
        f"{edit['classes_left']}{tied}",
        str(edit["cpu_s"]),
        f"{edit['peak_by_model']:.1f}x",
        "no, said"
        if edit.get("saved") is False and edit.get("config_warned")
        else {True: "yes", False: "**no**", None: "–"}[edit.get("saved")],
    ]


def _why_low(row: Row) -> str:
    """What fixes more than a twentieth of the weights, of a model of which less than half is free."""
    shares = row.get("frozen_by", {}).items()
    return "fixed by " + ", ".join(f"{why} ({n:.0%})" for why, n in shares) if shares else ""


def _roles(row: Row) -> str:
    if not row.get("attentions"):
        return "–"
    found = " ".join(str(row["roles"][word]) for word in ("query", "key", "value", "output"))
    return f"{found} of {row['attentions']}"


def summary(rows: list[Row]) -> Row:
    """Counts and medians over the models that could be built."""
    code = digest()
    built = [row for row in rows if "unbuilt" not in row]
    traced = [row for row in built if row.get("traced")]
    free = [row["freedom"] for row in traced if "freedom" in row]
    attending = [row for row in traced if row.get("attentions")]
    return {
        "models": len(built),
        "not built": len(rows) - len(built),
        "traced": len(traced),
        "check passed": sum(row.get("passed") is True for row in built),
        "check failed": sum(
            row.get("passed") is False and row.get("warning") is None for row in built
        ),
        "check says little": sum(
            row.get("passed") is False and row.get("warning") is not None for row in built
        ),
        "not checked": sum(row.get("passed") is None for row in built),
        "median freedom": round(statistics.median(free), 4) if free else None,
        "median freedom by kind": _medians(traced),
        "below 0.5": sum(f < 0.5 for f in free),
        "largest error of a passed check": max(
            (r["max_rel_error"] for r in built if r.get("passed")), default=None
        ),
        "models with attention": len(attending),
        "of these, value found": sum(row["roles"]["value"] > 0 for row in attending),
        "of these, query, key, value and output found": sum(
            all(row["roles"][word] for word in ("query", "key", "value", "output"))
            for row in attending
        ),
        **_edits([row["prune"] for row in traced if "prune" in row]),
        "rows of other code": sum(row.get("code") != code for row in rows),
    }


def _edits(edits: list[Row]) -> Row:
    if not edits:
        return {}
    done = [edit for edit in edits if edit["done"]]
    saved = [edit["saved"] for edit in done if "saved" in edit]
    return {
        "half pruned": len(done),
        "of these, ran and gave the traced shapes": sum(bool(edit.get("ran")) for edit in done),
        "of these, every class pruned": sum(edit["classes_left"] == 0 for edit in done),
        "refused whole": len(edits) - len(done),
        "median share of parameters left": _middle([edit["left"] for edit in done]),
        "more than 0.8 of the parameters left": sum(edit["left"] > 0.8 for edit in done),
        "median CPU s of the edit": _middle([edit["cpu_s"] for edit in done]),
        "longest CPU s of an edit": max((edit["cpu_s"] for edit in done), default=None),
        "median peak memory by the model's": _middle([edit["peak_by_model"] for edit in done]),
        "saved and loaded": f"{sum(map(bool, saved))} of {len(saved)}",
        "a warning said that the configuration cannot": sum(
            edit.get("saved") is False and bool(edit.get("config_warned")) for edit in done
        ),
    }


def _middle(values: list[float]) -> float | None:
    return round(statistics.median(values), 3) if values else None


def _medians(rows: list[Row]) -> dict[str, float]:
    kinds: dict[str, list[float]] = {}
    for row in rows:
        if "freedom" in row:
            kinds.setdefault(row.get("kind", "unknown"), []).append(row["freedom"])
    return {kind: round(statistics.median(each), 4) for kind, each in sorted(kinds.items())}


def write(folder: Path, family: str, done: dict[str, Row]) -> None:
    """JSON and a table, each under a temporary name first."""
    rows = list(done.values())
    facts = {"python": platform.python_version(), "machine": platform.machine(), **_versions()}
    document = {"family": family, "facts": facts, "summary": summary(rows), "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    results.save(folder / f"coverage_{family}.json", document)
    lines = [f"# Axis classes: {family}", "", *NOTES[family]]
    lines += [f"- {key}: {value}" for key, value in summary(rows).items()]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |" for row in rows
    ]
    write_whole(folder / f"coverage_{family}.md", "\n".join(lines) + "\n")


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {
        name: metadata.version(name) for name in ("torch", "torchvision", "transformers", "timm")
    }


def _asked(name: str, only: list[str], skip: list[str]) -> bool:
    return any(fnmatch(name, word) for word in only) and not any(
        fnmatch(name, word) for word in skip
    )


def main() -> None:
    """The command line."""
    parser = command.parser(__doc__, "docs/benchmarks")
    families = ("torchvision", "hf", "timm", "hf_all", "timm_all")
    parser.add_argument("--family", choices=families, required=True)
    parser.add_argument("--all", action="store_true", help="every model of hf or timm, and --prune")
    parser.add_argument("--prune", action="store_true", help="prune half of each model, too")
    parser.add_argument("--no-check", action="store_true", help="without the permutation check")
    parser.add_argument("--subset", choices=("nightly", "all"), default="all")
    parser.add_argument("--only", nargs="+", default=["*"], help="shell patterns of names")
    parser.add_argument("--skip", nargs="+", default=[], help="shell patterns of names")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one model")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run found")
    options = parser.parse_args()
    if options.all and options.family in ("hf", "timm"):
        options.family += "_all"
    options.prune |= options.family.endswith("_all")
    from .coverage_zoo import FAMILIES, NIGHTLY

    names = (
        NIGHTLY[options.family.partition("_")[0]]
        if options.subset == "nightly"
        else FAMILIES[options.family][0]()
    )
    names = [name for name in names if _asked(name, options.only, options.skip)]
    found = options.out / f"coverage_{options.family}.json"
    done: dict[str, Row] = {}
    if found.exists() and not options.fresh:
        done = {row["name"]: row for row in results.load(found)["rows"]}
    run(
        options.family,
        names,
        done,
        options.limit,
        lambda rows: write(options.out, options.family, rows),
        prune=options.prune,
        checked=not options.no_check,
    )
    write(options.out, options.family, done)
    print(json.dumps(summary(list(done.values())), indent=1))
    sys.exit(any(_failed(done[name]) for name in names if name in done))


def _failed(row: Row) -> bool:
    return not row.get("traced") or row.get("passed") is not True


if __name__ == "__main__":
    main()
