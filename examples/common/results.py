"""Results as compact JSON: floats of four significant digits, records by column.

In: plain data. Out: a file with a line for each key of the report. A list or a dict of records stands there as
``{"names": [name, …] or their number, "same": {key: value of all}, "columns": {key: [value, …]}}``, with `ABSENT`
where a record lacks the key, or a list the record; a list that repeats itself as
``{"pool": [value, …], "at": [place in the pool, …]}``.
Always true: `load` gives what `save` was given, but for digits; what is no number comes back as None.

    python -m examples.common.results FILE …    # write files anew, in the shortest form
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Callable
from copy import deepcopy
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from graftlib.disk import write_whole

__all__ = ["cached", "dumps", "load", "machine", "save", "versions"]

ABSENT = "absent"
PACKED = {"names", "same", "columns"}
POOLED = {"pool", "at"}


def save(path: Path | str, report: dict[str, Any]) -> None:
    """Write `report` to `path`, whole or not at all; a missing folder is made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), dumps(report))


def load(path: Path | str) -> Any:
    """What was saved at `path`; plain JSON is read as it is."""
    return _unpacked(json.loads(Path(path).read_text("utf-8")))


def cached(path: Path | str, work: Callable[[], Any]) -> Any:
    """What `work` gave, plain data: from `path` where it was done before, to every digit."""
    path = Path(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(work()))
    return json.loads(path.read_text("utf-8"))


def versions() -> dict[str, str]:
    """Of what decides a figure."""
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "machine": platform.machine(),
    }


def machine(*packages: str) -> dict[str, Any]:
    """Cores, how many processes want one, and versions, None for what is not installed."""
    found: dict[str, Any] = {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    found["python"] = platform.python_version()
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def dumps(report: dict[str, Any]) -> str:
    """The text of a file.

    >>> runs = [{"seed": seed, "rounds": 8, "loss": 0.123456 * seed} for seed in range(5)]
    >>> print(dumps({"runs": runs, "scale": "small"}), end="")
    {
    "runs":{"names":5,"same":{"rounds":8},"columns":{"seed":[0,1,2,3,4],"loss":[0.0,0.1235,0.2469,0.3704,0.4938]}},
    "scale":"small"
    }
    """
    lines = (
        f"{_text(str(key))}:{_text(_packed(_rounded(value)))}" for key, value in report.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _text(value: Any) -> str:
    return json.dumps(
        value, separators=(",", ":"), ensure_ascii=False, default=str, allow_nan=False
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return _short(value) if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _rounded(each) for key, each in value.items()}
    return value


def _short(value: float) -> float:
    """`value` in as few digits, four or more, as print the same with four decimals, and as percent with one.

    >>> _short(0.123456), _short(-1.4749999), _short(11397.2345)
    (0.1235, -1.4749999, 11397.2345)
    """
    wanted = _shown(value)
    return next(
        short for digits in range(4, 18) if _shown(short := float(f"{value:.{digits}g}")) == wanted
    )


def _shown(value: float) -> list[str]:
    return [f"{value:.{k}f}" for k in range(5)] + [f"{value:.{k}%}" for k in range(2)]


def _packed(value: Any) -> Any:
    """The shortest of `value` as it is, as columns, and as the distinct values that it repeats."""
    if isinstance(value, list):
        names: Any = len(value)
        records = value
        plain: Any = [_packed(each) for each in value]
    elif isinstance(value, dict):
        names, records = list(value), list(value.values())
        plain = {key: _packed(each) for key, each in value.items()}
    else:
        return value
    forms = [plain]
    known = [each for each in records if each != ABSENT]
    if len(known) > 1 and all(isinstance(each, dict) and each for each in known):
        forms += _columns(names, [{} if each == ABSENT else each for each in records])
    if isinstance(value, list):
        forms += _pool(value)
    return min(forms, key=lambda form: len(_text(form)))


def _columns(names: Any, records: list[Any]) -> list[Any]:
    """`records` as columns; nothing where two have their keys in different orders, which would be lost."""
    order: TopologicalSorter[str] = TopologicalSorter()
    for record in records:
        before: tuple[str, ...] = ()
        for key in record:
            order.add(key, *before)
            before = (key,)
    try:
        keys = list(order.static_order())
    except CycleError:
        return []
    same, columns = {}, {}
    for key in keys:
        column = [record.get(key, ABSENT) for record in records]
        if len({_text(each) for each in column}) == 1:
            same[key] = _packed(column[0])
        else:
            columns[key] = _packed(column)
    return [{"names": names, "same": same, "columns": columns}]


def _pool(values: list[Any]) -> list[Any]:
    """`values` as the distinct ones among them and the place of each, -1 where it is `ABSENT`; if any repeats."""
    texts = [_text(each) for each in values]
    distinct = dict(zip(texts, values, strict=True))
    if len(distinct) == len(values):
        return []
    distinct.pop(_text(ABSENT), None)
    place = {text: i for i, text in enumerate(distinct)}
    at = [place.get(text, -1) for text in texts]
    return [{"pool": _packed(list(distinct.values())), "at": at}]


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == POOLED:
        pool = [*_unpacked(value["pool"]), ABSENT]
        return [deepcopy(pool[i]) for i in value["at"]]
    if value.keys() != PACKED:
        return {key: _unpacked(each) for key, each in value.items()}
    names, same = value["names"], _unpacked(value["same"])
    columns = {key: _unpacked(column) for key, column in value["columns"].items()}
    records = [
        deepcopy(same) | {key: column[i] for key, column in columns.items() if column[i] != ABSENT}
        or ABSENT
        for i in range(names if isinstance(names, int) else len(names))
    ]
    return records if isinstance(names, int) else dict(zip(names, records, strict=True))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        save(name, load(name))
