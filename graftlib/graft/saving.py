"""The state of a graft as plain data and tensors, and back.

In: a graft; a dictionary that `torch.load(..., weights_only=True)` may have read. Out: the same, resumable to the bit.
Always true: a state is checked whole, field by field, and the module
and optimizer that it makes are built aside; one that does not fit is refused before anything changes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from ..errors import CheckpointError, nearest
from .fields import at_least, integer, items, number, record, refusal, shown, tensor, text
from .linked import LinkedTensor
from .plan import Plan
from .transfer import Transferor

if TYPE_CHECKING:
    from .graft import Graft

__all__ = ["load", "save"]

FORMAT = 2
T = TypeVar("T")
KEYS = {"slots", "links", "counts", "stepped", "module", "optimizer", "history", "resume"}


def save(graft: Graft, transferor: Transferor) -> dict[str, Any]:
    """The state of `graft`; tensors are copies, so that training on does not change it."""
    graft._rounds.read()
    flight = graft._flight if graft.pending else None
    module = {
        name: value.detach().clone() for name, value in transferor.module.state_dict().items()
    }
    pending = flight.entry if flight is not None else None
    history = deepcopy([entry for entry in graft.history if entry is not pending])
    resume = graft._resume
    if flight is not None:
        # The transfer will be redone from its inputs, so the module must be as it was before it.
        module.update(
            {name: value.clone() for name, value in flight.before.items() if name in module}
        )
        resume = {
            "inputs": [value.clone() for value in flight.inputs],
            "signals": {
                t.name: t.whole(w.signal).clone()
                for t, w in flight.writes.items()
                if w.signal is not None
            },
            "entry": flight.entry,
        }
    return {
        "format": FORMAT,
        "slots": {slot.name: [*slot.shape, slot.rank] for slot in graft.plan.slots},
        "links": [link.name for link in graft.plan.links],
        "counts": {
            "step": graft.step_count,
            "decided": graft._decided,
            "learned": graft._learned,
            "skipped": graft.skipped,
            "skipped_in_a_row": graft._skipped_in_a_row,
        },
        "stepped": sorted(tensor.name for tensor in graft._rounds.stepped),
        "module": module,
        "optimizer": deepcopy(transferor.optimizer.state_dict()) if transferor.optimizer else None,
        "history": history,
        "resume": deepcopy(resume),
    }


@dataclass(frozen=True)
class _Resumed:
    """A state that fits, copied, with the module and the optimizer that it makes."""

    plan: Plan
    module: nn.Module
    optimizer: AdamW | None
    counts: dict[str, int]
    stepped: list[LinkedTensor]
    history: list[dict[str, Any]]
    resume: dict[str, Any] | None


def load(graft: Graft, transferor: Transferor, state: object) -> None:
    """Put `state` into `graft`; see `Graft.load_state_dict`."""
    with torch.inference_mode(False):
        resumed = _validated(graft, transferor, state)
    graft._drop_pending()
    graft.plan = resumed.plan
    transferor.install(resumed.plan, resumed.module, resumed.optimizer)
    counts = resumed.counts
    graft._rounds.start(counts["step"], resumed.stepped)
    graft._decided, graft._verified = counts["decided"], counts["step"]
    graft._learned, graft.skipped = counts["learned"], counts["skipped"]
    graft._skipped_in_a_row = counts["skipped_in_a_row"]
    graft.history, graft._resume = resumed.history, resumed.resume


def _validated(graft: Graft, transferor: Transferor, state: object) -> _Resumed:
    """Everything that `state` holds, checked; nothing is changed."""
    there = state.get("format") if isinstance(state, dict) else type(state).__name__
    if not isinstance(state, dict) or type(there) is not int or there != FORMAT:
        raise CheckpointError(
            f"this is not a graft's state of format {FORMAT} (but {shown(there)}).",
            fix="pass what graft.state_dict() returned",
        )
    state = record("the state", state, sorted(KEYS))
    plan = _plan(graft.plan, state)
    try:
        module, optimizer = transferor.prepare(plan)
    except Exception as error:
        raise CheckpointError(
            "the state's ranks are none that the adapter can be built with.",
            where={"slots": reprlib.repr(state["slots"])},
            why=f"{type(error).__name__}: {error}",
            fix="construct the adapter with the arguments it was saved with",
        ) from error
    module.load_state_dict(_module(module.state_dict(), state["module"]))
    if optimizer is not None:
        optimizer.load_state_dict(_optimizer(optimizer, state["optimizer"]))
    elif state["optimizer"] is not None:
        raise refusal(
            "'optimizer'", state["optimizer"], "None, as for an adapter that learns nothing"
        )
    return _Resumed(
        plan,
        module,
        optimizer,
        _counts(state["counts"]),
        _stepped(plan, state["stepped"]),
        items("'history'", state["history"], _entry),
        _resume(plan, state["resume"], transferor.dtype_of_weights()),
    )


def _plan(plan: Plan, state: dict[Any, Any]) -> Plan:
    """The graft's plan with the saved ranks."""
    saved = {
        text("a key of 'slots'", name): _slot(f"'slots'[{name!r}]", facts)
        for name, facts in record("'slots'", state["slots"]).items()
    }
    links = items("'links'", state["links"], text)
    mine = {slot.name: list(slot.shape) for slot in plan.slots}
    theirs = {name: facts[:2] for name, facts in saved.items()}
    if mine != theirs or links != [link.name for link in plan.links]:
        odd = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        rows: dict[str, object] = {
            reprlib.repr(n): f"here {mine.get(n, 'absent')}, saved {theirs.get(n, 'absent')}"
            for n in odd[:8]
        }
        raise CheckpointError(
            "the state belongs to a graft with other links or shapes.",
            where=rows or {"links": f"saved {reprlib.repr(links)}"},
            near=[name for n in odd[:3] for name in nearest(n, list(mine), n=1)],
            fix="attach to the mapping that the state was saved with, then load",
        )
    slots = tuple(replace(slot, rank=saved[slot.name][2]) for slot in plan.slots)
    # Ranks that came from a share of the energy stay what they were when the saved graft was attached.
    return replace(plan, slots=slots)


def _slot(place: str, facts: object) -> list[Any]:
    if not isinstance(facts, list | tuple) or len(facts) != 3:
        raise refusal(place, facts, "a list of rows, columns and rank")
    rows, columns, rank = facts
    shape = [integer(f"{place}[{i}]", size) for i, size in enumerate((rows, columns))]
    return [
        *shape,
        None if rank is None else integer(f"{place}[2], the rank,", rank, 1, min(shape)),
    ]


def _module(expected: dict[str, Tensor], saved: object) -> dict[str, Tensor]:
    saved = record("'module'", saved)
    names = {**expected, **saved}
    odd = [n for n in names if n not in expected or n not in saved]
    if odd:
        raise CheckpointError(
            "the state belongs to an adapter with other parameters.",
            where={"differing": ", ".join(map(reprlib.repr, odd[:8]))},
            fix="construct the adapter with the arguments it was saved with",
        )
    return {
        name: tensor(f"'module'[{name!r}]", saved[name], one.shape, one.dtype)
        for name, one in expected.items()
    }


def _optimizer(optimizer: AdamW, saved: object) -> dict[str, Any]:
    """The optimizer's own state_dict, with the moments and the four numbers of the saved one."""
    saved = record("'optimizer'", saved, ("state", "param_groups"))
    fresh = optimizer.state_dict()
    groups = items("'optimizer'['param_groups']", saved["param_groups"], record)
    count = len(fresh["param_groups"])
    if len(groups) != count:
        raise refusal(
            "'optimizer'['param_groups']", saved["param_groups"], f"a list of {count} groups"
        )
    for i, (group, values) in enumerate(zip(fresh["param_groups"], groups, strict=True)):
        _group(f"'optimizer'['param_groups'][{i}]", group, values)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for key, moments in record("'optimizer'['state']", saved["state"]).items():
        i = integer("a key of 'optimizer'['state']", key, 0, len(parameters) - 1)
        fresh["state"][i] = _moments(f"'optimizer'['state'][{i}]", moments, parameters[i])
    return fresh


def _group(place: str, group: dict[str, Any], saved: object) -> None:
    """Take the four numbers of a saved parameter group over into `group`, in place."""
    saved = record(place, saved, ("params", "lr", "betas", "eps", "weight_decay"))
    if items(f"{place}['params']", saved["params"], integer) != group["params"]:
        raise refusal(f"{place}['params']", saved["params"], f"{len(group['params'])} parameters")
    betas = items(f"{place}['betas']", saved["betas"], lambda at, x: at_least(at, x, 0, 1))
    if len(betas) != 2:
        raise refusal(f"{place}['betas']", saved["betas"], "a pair of numbers")
    group["betas"] = tuple(betas)
    for name in ("lr", "eps", "weight_decay"):
        group[name] = at_least(f"{place}[{name!r}]", saved[name], 0)


def _moments(place: str, saved: object, parameter: Tensor) -> dict[str, Tensor]:
    saved = record(place, saved, ("step", "exp_avg", "exp_avg_sq"))
    moments = {"step": tensor(f"{place}['step']", saved["step"], (), None)}
    for name in ("exp_avg", "exp_avg_sq"):
        moments[name] = tensor(f"{place}[{name!r}]", saved[name], parameter.shape, parameter.dtype)
    for name in ("step", "exp_avg_sq"):
        if bool((moments[name] < 0).any()):
            raise refusal(f"{place}[{name!r}]", saved[name], "free of negative values")
    return moments


def _counts(saved: object) -> dict[str, int]:
    saved = record("'counts'", saved, ("step", "decided", "learned", "skipped", "skipped_in_a_row"))
    counts = {}
    counts["step"] = step = integer("'counts'['step']", saved["step"])
    counts["decided"] = integer("'counts'['decided']", saved["decided"], -1, step)
    counts["learned"] = integer("'counts'['learned']", saved["learned"], 0, step + 1)
    counts["skipped"] = integer("'counts'['skipped']", saved["skipped"])
    counts["skipped_in_a_row"] = integer(
        "'counts'['skipped_in_a_row']", saved["skipped_in_a_row"], 0, counts["skipped"]
    )
    return counts


def _stepped(plan: Plan, saved: object) -> list[LinkedTensor]:
    by_name = {linked.name: linked for linked in plan.written}
    names = items("'stepped'", saved, lambda place, name: text(place, name, by_name))
    return [by_name[name] for name in names]


def _entry(place: str, saved: object) -> dict[str, Any]:
    """One entry of a history; see `Graft`."""
    keys = ("transfer", "step", "links", "receivers", "facts")
    entry = record(place, saved, keys)
    for name in ("transfer", "step"):
        integer(f"{place}[{name!r}]", entry[name])
    entry["links"] = items(f"{place}['links']", entry["links"], text)
    entry["receivers"] = _by_name(f"{place}['receivers']", entry["receivers"], _change)
    entry["facts"] = _by_name(f"{place}['facts']", entry["facts"], _numbers)
    if "signal" in entry:
        entry["signal"] = _by_name(f"{place}['signal']", entry["signal"], number)
    if "skipped" in entry:
        text(f"{place}['skipped']", entry["skipped"])
    return entry


def _change(place: str, saved: object) -> dict[str, Any]:
    change = record(place, saved, ("size", "cosine"))
    for name in ("size", "cosine"):
        number(f"{place}[{name!r}]", change[name])
    if "spectrum" in change:
        spectrum = record(f"{place}['spectrum']", change["spectrum"], ("before", "after"))
        change["spectrum"] = _by_name(f"{place}['spectrum']", spectrum, _numbers)
    return change


def _numbers(place: str, saved: object) -> list[float]:
    return items(place, saved, number)


def _by_name(place: str, saved: object, one: Callable[[str, object], T]) -> dict[str, T]:
    return {
        text(f"a key of {place}", name): one(f"{place}[{name!r}]", value)
        for name, value in record(place, saved).items()
    }


def _resume(plan: Plan, saved: object, dtype: torch.dtype) -> dict[str, Any] | None:
    """The pending transfer: what the adapter read, and what is known already of what training made of it."""
    if saved is None:
        return None
    saved = record("'resume'", saved, ("inputs", "signals", "entry"))
    inputs = items("'resume'['inputs']", saved["inputs"], lambda place, value: (place, value))
    if len(inputs) != len(plan.slots):
        raise refusal("'resume'['inputs']", saved["inputs"], f"a list of {len(plan.slots)} tensors")
    shapes = {linked.name: linked.live().shape for linked in plan.written}
    signals = _by_name("'resume'['signals']", saved["signals"], lambda place, value: (place, value))
    return {
        "inputs": [
            tensor(place, value, slot.shape, dtype)
            for (place, value), slot in zip(inputs, plan.slots, strict=True)
        ],
        # A signal may be anything: the lesson from one that is not finite is skipped, as it would have been.
        "signals": {
            text("a key of 'resume'['signals']", name, shapes): tensor(
                place, value, shapes.get(name, ()), None, finite=False
            )
            for name, (place, value) in signals.items()
        },
        "entry": _entry("'resume'['entry']", saved["entry"]),
    }
