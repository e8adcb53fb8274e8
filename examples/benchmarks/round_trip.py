"""Do slimmed models come back from their files? To the bit, with uneven widths, through the original's class.

    python -m examples.benchmarks.round_trip --family hf -o docs/benchmarks/round_trip.json
    python -m examples.benchmarks.round_trip --family torchvision timm --most 30 -o docs/benchmarks/round_trip.json

Each model (those of `coverage`, random weights) is slimmed to 70 % of its parameters by random importances and the
global ranking, so that layers alike get other widths; saved; and loaded into a model of its class with other random
values. Compared are the names, dtypes and values of the state dicts, all attributes that are numbers or texts, and the
outputs, bit by bit. Where 70 % is below the smallest model that the rules allow, 90 % and then 97 % are asked for; a
model of which no class may change is counted as such. A run that was stopped goes on where it was; a model that takes
longer than `--limit` seconds is noted.
"""

from __future__ import annotations

import signal
import tempfile
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..common import command, results
from . import coverage_zoo as zoo

SHARES = (0.7, 0.9, 0.97)
ROOMS = ("detection", "segmentation", "video", "optical_flow")


def names_of(family: str) -> list[str]:
    if family == "torchvision":
        return [n for n in zoo.torchvision_names() if zoo.room(family, n) not in ROOMS]
    return zoo.hf_names() if family == "hf" else zoo.timm_names()


def round_trip(family: str, name: str) -> dict[str, Any]:
    """``same`` and what differs; or why there is nothing to compare."""
    from graftlib import load, trace
    from graftlib.surgery import SurgeryError
    from graftlib.surgery.signature import signature

    torch.manual_seed(0)
    model, args, kwargs = zoo.build(family, name)
    try:
        small = slimmed(trace(model, args, kwargs))
    except SurgeryError as error:
        if "no axis class may change" in str(error) or str(error).startswith("none of the"):
            return {"unchanged": True}
        raise
    with tempfile.TemporaryDirectory() as folder:
        small.save(folder)
        torch.manual_seed(1)
        again = load(folder, lambda: zoo.build(family, name)[0])
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
        "share": small.report.widths.costs["params"] / small.report.before["params"],
        **({"differing": (differing + attributes)[:4]} if differing or attributes else {}),
    }


def slimmed(graph: Any) -> Any:
    from graftlib import slim
    from graftlib.surgery import SurgeryError

    random = torch.Generator().manual_seed(0)

    def drawn(graph: Any, model: nn.Module, each: Any) -> Tensor:
        return torch.rand(each.size, generator=random)

    for share in SHARES:
        try:
            return slim(
                graph, budget={"params": share}, importance=drawn, ranking="global", multiple_of=1
            )
        except SurgeryError as error:
            if share == SHARES[-1] or "below the smallest" not in str(error):
                raise
    raise AssertionError


def equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is other or one == other
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


@torch.no_grad()
def answers(model: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    torch.manual_seed(0)
    return [t for t in pytree.tree_leaves(model.eval()(*args, **kwargs)) if isinstance(t, Tensor)]


def limited(family: str, name: str, limit: int) -> dict[str, Any]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {limit} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return round_trip(family, name)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".partition("\n")[0][:200]}
    finally:
        signal.alarm(0)


def summary(rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "models": len(rows),
        "same": sum(bool(row.get("same")) for row in rows.values()),
        "answers": sum(row.get("answers") is True for row in rows.values()),
        "uneven": sum(bool(row.get("uneven")) for row in rows.values()),
        "unchanged": sum("unchanged" in row for row in rows.values()),
        "errors": sum("error" in row for row in rows.values()),
    }


def main() -> None:
    parser = command.parser(__doc__, "round_trip.json")
    parser.add_argument(
        "--family", nargs="+", default=["hf"], choices=["hf", "torchvision", "timm"]
    )
    parser.add_argument("--only", nargs="+", help="names, in place of all")
    parser.add_argument("--most", type=int, help="so many of each family, evenly spaced")
    parser.add_argument("--limit", type=int, default=300, help="seconds for one model")
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = results.load(given.out) if given.out.exists() else {"summary": {}}
    report["versions"] = results.versions()
    for family in given.family:
        names = names_of(family)
        if given.most:
            names = names[:: max(len(names) // given.most, 1)]
        rows = report.setdefault(family, {})
        for name in given.only or names:
            if name not in rows:
                rows[name] = limited(family, name, given.limit)
                print(family, name, rows[name], flush=True)
                report["summary"][family] = summary(rows)
                results.save(given.out, report)
        print(family, summary(rows), flush=True)


if __name__ == "__main__":
    main()
