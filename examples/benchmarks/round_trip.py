"""Do slimmed models come back from their files? To the bit, uneven, with a block fewer, through the original's class.

    python -m examples.benchmarks.round_trip -o rows.json --brief docs/benchmarks/round_trip.json
    python -m examples.benchmarks.round_trip --family hf --only bert gpt2 -o rows.json

All Hugging Face types of `coverage`, the classifiers of torchvision, and 100 architectures of timm, with random weights
and tiny inputs. A block of each goes where one can, and the rest is slimmed to 70 % of its parameters by random
importances and the global ranking, so that layers alike get other widths; where that is below the smallest model that
the rules allow, to the middle between that and the whole. It is saved, and loaded into a model of its class with other
values. Compared are the names, dtypes and values of the state dicts, all attributes that are numbers or texts, and the
outputs, bit by bit. A model of which no class may change is counted as such. Hugging Face models have three layers
where one number says it, so that layers alike are left; their blocks go by `drop_blocks`, so that the config follows.
Not looked at: times, whether a config can say the widths (`coverage` with `--prune` does), and proofs for blocks of
the others.

A run that was stopped goes on where it was, and tries again what failed; a model that takes longer than `--limit`
processor seconds is noted. `--brief` is given counts, and the rows that are not equal, alone.
"""

from __future__ import annotations

import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..common import command, results
from . import coverage_zoo as zoo

SHARE = 0.7
TIMM = 100
TWO_LAYERS = ("gpt_neo",)  # whose configuration says each
ROOMS = ("detection", "segmentation", "video", "optical_flow")


def names_of(family: str) -> list[str]:
    if family == "torchvision":
        return [n for n in zoo.torchvision_names() if zoo.room(family, n) not in ROOMS]
    return zoo.hf_names() if family == "hf" else zoo.timm_names(TIMM)


def round_trip(family: str, name: str) -> dict[str, Any]:
    """``same`` and what differs; or why there is nothing to compare."""
    from graftlib import trace
    from graftlib.surgery import SurgeryError

    model, args, kwargs = built(family, name)
    graph = trace(model, args, kwargs)
    try:
        small = slimmed(graph, prove=family == "hf")
    except SurgeryError as error:
        if "no axis class may change" in str(error) or str(error).startswith("none of the"):
            return {"unchanged": True}
        raise
    return compared(family, name, small, args, kwargs)


def compared(family: str, name: str, small: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """What comes back of one model, beside what was saved."""
    from graftlib import load
    from graftlib.surgery.signature import signature

    with tempfile.TemporaryDirectory() as folder:
        small.save(folder)
        with Quick():
            again = load(folder, lambda: built(family, name)[0])
    mine, due = again.state_dict(), small.model.state_dict()
    differing = [n for n in mine.keys() | due if not equal(mine.get(n), due.get(n))]
    one, other = signature(again), signature(small.model)
    attributes = [".".join(k) for k in one.keys() | other if one.get(k) != other.get(k)]
    try:
        outputs = [answers(m, args, kwargs) for m in (again, small.model)]
        answered: bool | str = len(outputs[0]) == len(outputs[1]) and all(map(equal, *outputs))
    except RuntimeError as error:  # kernels that do not take every size
        answered = str(error).partition("\n")[0]
    sizes = Counter((each.size, n) for each, n in small.edit.sizes.items())
    return {
        "same": not differing and not attributes,
        "answers": answered,
        "uneven": len(sizes) > len({old for old, _ in sizes}),
        "fewer": bool(small.edit.dropped),
        "share": small.report.widths.costs["params"] / small.report.before["params"],
        **({"differing": (differing + attributes)[:4]} if differing or attributes else {}),
    }


def built(family: str, name: str) -> zoo.Built:
    layers = 2 if name in TWO_LAYERS else 3
    with mock.patch.dict(zoo.WORDS["tiny"], num_hidden_layers=layers):
        return zoo.build(family, name)


class Quick(TorchDispatchMode):
    """Constructors get zeros in place of random numbers, which take long to draw."""

    RANDOM = frozenset({torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].zero_() if func in self.RANDOM else func(*args, **(kwargs or {}))


def slimmed(graph: Any, *, prove: bool) -> Any:
    """A `Slim` with a block fewer, where one can go and the widths of the rest can change; else of all blocks."""
    from graftlib import trace
    from graftlib.errors import GraftError

    args, kwargs = graph.example
    for order, shallow in with_a_block_fewer(graph, prove=prove):
        try:
            small = narrowed(trace(shallow, args, kwargs))
        except (GraftError, RuntimeError, TypeError, ValueError, IndexError):
            continue  # the code knows its blocks, or holds all that is left
        edit = small.edit.without(graph.model, order).with_config(graph.model, small.model)
        return replace(small, edit=edit)
    return narrowed(graph)


def with_a_block_fewer(graph: Any, *, prove: bool) -> Iterator[tuple[Any, nn.Module]]:
    """(Order, model): without one of three blocks."""
    from graftlib.graph.structure import duplicate, own
    from graftlib.surgery import SurgeryError, blocks, drop_blocks
    from graftlib.surgery.order import order_of, rearrange

    known = [each for each in blocks(graph) if len(graph.model.get_submodule(each.container)) > 1]
    for block in {each.fqn: each for each in (known[len(known) // 2 :] + known)[:3]}.values():
        order = order_of(graph.model, {block.fqn: 0})
        try:
            if prove:
                shallow = drop_blocks(graph, [block])
            else:
                shallow = duplicate(graph.model, own)
                rearrange(shallow, order)
        except SurgeryError:
            continue
        yield order, shallow


def narrowed(graph: Any) -> Any:
    """Slimmed by random importances; neither timed, nor with a search for a config of uneven widths."""
    import sys

    from graftlib import slim
    from graftlib.slim import slimming
    from graftlib.surgery import SurgeryError

    random = torch.Generator().manual_seed(0)

    def drawn(graph: Any, model: nn.Module, each: Any) -> Tensor:
        return torch.rand(each.size, generator=random)

    def to(share: float) -> Any:
        budget = {"params": share}
        return slim(graph, budget=budget, importance=drawn, ranking="global", multiple_of=1)

    with (
        mock.patch.object(slimming, "_measured", return_value=None),
        mock.patch.object(sys.modules["graftlib.surgery.prune"], "refresh_config"),
    ):
        try:
            return to(SHARE)
        except SurgeryError as error:
            if not hasattr(error, "least"):
                raise
            whole = sum(p.numel() for p in graph.model.parameters())
            return to((1 + error.least["params"] / whole) / 2)


def equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other or one == other
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


@torch.no_grad()
def answers(model: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    torch.manual_seed(0)
    return [t for t in pytree.tree_leaves(model.eval()(*args, **kwargs)) if isinstance(t, Tensor)]


def limited(family: str, name: str, limit: int) -> dict[str, Any]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {limit} s")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return round_trip(family, name)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:200]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "models": len(rows),
        "same": sum(bool(row.get("same")) for row in rows.values()),
        "answers": sum(row.get("answers") is True for row in rows.values()),
        "uneven": sum(bool(row.get("uneven")) for row in rows.values()),
        "fewer": sum(bool(row.get("fewer")) for row in rows.values()),
        "unchanged": sum("unchanged" in row for row in rows.values()),
        "errors": sum("error" in row for row in rows.values()),
    }


def brief(report: dict[str, Any]) -> dict[str, Any]:
    """Counts, and the rows that are not equal in everything."""
    odd = {
        family: {
            name: row
            for name, row in report[family].items()
            if not (row.get("same") and row.get("answers") is True)
        }
        for family in report["summary"]
    }
    counts = {f: {"of": len(names_of(f))} | each for f, each in report["summary"].items()}
    return {"summary": counts, "versions": report["versions"], "odd": odd}


def main() -> None:
    families = ["hf", "torchvision", "timm"]
    parser = command.parser(__doc__, "round_trip.json")
    parser.add_argument("--family", nargs="+", default=families, choices=families)
    parser.add_argument("--only", nargs="+", help="names, in place of all")
    parser.add_argument("--limit", type=int, default=300, help="processor seconds for one model")
    parser.add_argument("--brief", type=Path, help="a short report to write at the end")
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = results.load(given.out) if given.out.exists() else {"summary": {}}
    report["versions"] = results.versions()
    for family in given.family:
        rows = report.setdefault(family, {})
        for name in given.only or names_of(family):
            if name in rows and "error" not in rows[name]:
                continue
            start = time.process_time()
            rows[name] = limited(family, name, given.limit)
            print(f"{time.process_time() - start:6.1f} s", family, name, rows[name], flush=True)
            report["summary"][family] = summary(rows)
            results.save(given.out, report)
        print(family, summary(rows), flush=True)
    if given.brief:
        results.save(given.brief, brief(report))


if __name__ == "__main__":
    main()
