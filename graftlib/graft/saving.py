"""The state of a graft as plain data and tensors, and back.

In: a graft; a dictionary that `torch.load(..., weights_only=True)` may have read. Out: the same, resumable to the bit.
Always true: a state that does not fit is refused before anything changes.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CheckpointError, nearest
from .plan import Plan
from .transfer import Transferor

if TYPE_CHECKING:
    from .graft import Graft

__all__ = ["load", "save"]

FORMAT = 2
KEYS = {"slots", "links", "counts", "stepped", "module", "optimizer", "history", "resume"}


def save(graft: Graft, transferor: Transferor) -> dict[str, Any]:
    """The state of `graft`; tensors are copies, so that training on does not change it."""
    graft._rounds.read()
    flight = graft._flight if graft.pending else None
    module = {
        name: value.detach().clone() for name, value in transferor.module.state_dict().items()
    }
    history = deepcopy(graft.history)
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
            "entry": history.pop(),
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


def load(graft: Graft, transferor: Transferor, state: dict[str, Any]) -> None:
    """Put `state` into `graft`; see `Graft.load_state_dict`."""
    made = _fitting(graft, state)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        expected = transferor.adapter.build(made.slots, made.links).state_dict()
    _check_module(expected, state["module"])
    if made.slots != graft.plan.slots:
        # Ranks that came from a share of the energy stay what they were when the saved graft was attached.
        graft.plan = made
        transferor.build(made)
    if graft._flight is not None:
        for write in graft._flight.pending:
            write.settle()
        graft._flight = None
    transferor.module.load_state_dict(state["module"])
    if transferor.optimizer is not None:
        transferor.optimizer.load_state_dict(deepcopy(state["optimizer"]))
    counts = state["counts"]
    stepped = [t for t in graft.plan.written if t.name in state["stepped"]]
    graft._rounds.start(counts["step"], stepped)
    graft._decided, graft._verified = counts["decided"], counts["step"]
    graft._learned, graft.skipped = counts["learned"], counts["skipped"]
    graft._skipped_in_a_row = counts["skipped_in_a_row"]
    graft.history = deepcopy(state["history"])
    graft._resume = deepcopy(state["resume"])


def _fitting(graft: Graft, state: dict[str, Any]) -> Plan:
    """The graft's plan with the saved ranks, or a `CheckpointError`."""
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"this is not a graft's state of format {FORMAT} (found {found!r}).",
            fix="pass what graft.state_dict() returned",
        )
    missing = KEYS - state.keys()
    if missing:
        raise CheckpointError(
            f"the graft's state is incomplete: {', '.join(sorted(missing))} missing.",
            fix="save it again, or resume from an older checkpoint",
        )
    mine = {slot.name: list(slot.shape) for slot in graft.plan.slots}
    theirs = {name: list(facts[:2]) for name, facts in state["slots"].items()}
    if mine != theirs or state["links"] != [link.name for link in graft.plan.links]:
        odd = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
        rows: dict[str, object] = {
            n: f"here {mine.get(n, 'absent')}, saved {theirs.get(n, 'absent')}" for n in odd
        }
        raise CheckpointError(
            "the state belongs to a graft with other links or shapes.",
            where=rows or {"links": f"saved {state['links']}"},
            near=[name for n in odd[:3] for name in nearest(n, list(mine), n=1)],
            fix="attach to the mapping that the state was saved with, then load",
        )
    ranks = [state["slots"][slot.name][2] for slot in graft.plan.slots]
    slots = tuple(replace(s, rank=r) for s, r in zip(graft.plan.slots, ranks, strict=True))
    return replace(graft.plan, slots=slots)


def _check_module(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    names = {**expected, **found}
    odd = [
        n
        for n in names
        if n not in expected or n not in found or expected[n].shape != found[n].shape
    ]
    if odd:
        raise CheckpointError(
            "the state belongs to an adapter with other parameters.",
            where={"differing": ", ".join(odd[:8])},
            fix="construct the adapter with the arguments it was saved with",
        )
