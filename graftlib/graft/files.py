"""A graft's state as one safetensors file: tensors as they are, plain data as JSON in the header.

In: a graft, a path. Out: the file; or a graft that goes on where it was saved. Always true: nothing is pickled; a file
that is damaged, or was saved beside other weights, is refused before anything changes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..disk import destination, make_folder, place_all, unwritable, write_whole
from ..documents import Record, convert
from ..errors import CheckpointError, shown
from .ranks import fingerprint
from .registry import Attached

__all__ = [
    "CARD",
    "NAME",
    "bound",
    "load",
    "packed",
    "pending",
    "save",
    "save_folder",
    "take_up",
    "unpacked",
]

NAME, CARD = "graft.safetensors", "graft.md"  # a README there is the model's
# What reading bytes that anybody may have changed can end in: the file, the JSON in its header, the shape of that JSON.
_DAMAGED = (
    SafetensorError,
    OSError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
HEADER = "graftlib"


class _Bound(Record):
    """A graft's state, and the fingerprints of the settled weights that it was taken beside."""

    graft: dict[str, Any]
    weights: dict[str, int]


def bound(graft: Attached) -> dict[str, Any]:
    """The graft's state, bound to the settled weights that it was taken beside. Every rank takes part."""
    with graft.settled():
        return {"graft": graft.state_dict(), "weights": _weights(graft)}


def take_up(graft: Attached, state: dict[str, Any], *, where: str) -> None:
    """Go on from a `bound` state, once the models and optimizers are loaded.

    Raises:
        CheckpointError: the state is foreign or incomplete, or the models hold other weights than those beside it.
    """
    bound = convert(
        state,
        _Bound,
        what=f"the state of a graft in {where}",
        error=CheckpointError,
        fix="resume from a checkpoint that was saved with the graft attached",
    )
    with graft.settled():
        mine = _weights(graft)
    odd = [n for n, v in mine.items() if bound.weights.get(n, v) != v]
    if odd:
        raise CheckpointError(
            "the graft's state was saved beside other weights than those the models hold now.",
            where={"file": where, "differing": ", ".join(odd[:8])},
            why="another run's checkpoint was resumed, or a trained source was not loaded",
            fix="load every model from the same checkpoint as the graft; name its folder where the trainer cannot",
        )
    graft.load_state_dict(bound.graft)


def save(state: dict[str, Any], path: Path) -> None:
    """Write a state of tensors and plain data to `path`, whole or not at all."""
    text, tensors = packed(state)
    write_whole(path, to_bytes(tensors, {HEADER: text}), error=CheckpointError)


def save_folder(graft: Attached, folder: str | os.PathLike[str]) -> Path:
    """Write `NAME` and a card that says what it is, together or not at all. See `Graft.save`."""
    text, tensors = packed(state := bound(graft))
    home = make_folder(folder, error=CheckpointError)
    weights, card = (destination(home / name, error=CheckpointError) for name in (NAME, CARD))
    said = _card(state["graft"]).encode("utf-8", "backslashreplace")
    try:
        place_all([(None, card), (to_bytes(tensors, {HEADER: text}), weights), (said, card)])
    except OSError as refusal:
        raise unwritable(folder, refusal, CheckpointError) from refusal
    return home


def _card(state: dict[str, Any]) -> str:
    counts, links = state["counts"], "\n".join(f"    {shown(name, 200)}" for name in state["links"])
    return f"""# A graft

State of an adapter between two models, beside the weights that it was saved with: {counts["step"]} optimizer steps,
{len(state["history"])} transfers ({counts["skipped"]} skipped), {counts["updates"]} updates of the adapter.

Links:

{links}

To go on, load the models and the optimizer, attach the same adapter to the same links, and then:

    graft.load("this folder")
    graft.follow(optimizer)
"""


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        CheckpointError: there is no such file, or it is damaged or foreign.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - False, too, for what can be no path
        raise CheckpointError(
            f"the checkpoint has no state of the graft: {str(path)!r} does not exist.",
            why="the run was stopped while it saved, or it was saved without the graft",
            fix="resume from the checkpoint before it",
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})[HEADER]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
        state = unpacked(text, tensors)
    except _DAMAGED as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged, or no graft's state.",
            why=f"{type(error).__name__}: {error}",
            fix="resume from the checkpoint before it",
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{str(path)!r} holds no graft's state.", fix="save it again")
    return state


def packed(state: Any) -> tuple[str, dict[str, Tensor]]:
    """Tensors and plain data, as JSON with a name where each tensor was, and the tensors by these names.

    >>> text, tensors = packed({"a": (1, None), 0: [True]})
    >>> text
    '{"items": [["a", {"tuple": [1, null]}], [0, [true]]]}'
    >>> unpacked(text, tensors)
    {'a': (1, None), 0: [True]}
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(value, dict):
            # As pairs: JSON would turn every key into text, and an optimizer counts its parameters by ints.
            return {"items": [[key, plain(one)] for key, one in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [plain(one) for one in value]}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return value

    return json.dumps(plain(state)), tensors


def unpacked(text: str, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `packed`."""

    def rich(value: Any) -> Any:
        if isinstance(value, list):
            return [rich(one) for one in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "tuple":
            return tuple(rich(one) for one in content)
        if kind == "items":
            return {key: rich(one) for key, one in content}
        raise ValueError(f"unknown kind of data: {kind!r}")

    return rich(json.loads(text))


def pending(graft: Attached) -> bool:
    """Whether the models hold a write now that no optimizer step has consumed."""
    now = _weights(graft)
    with graft.settled():
        return now != _weights(graft)


def _weights(graft: Attached) -> dict[str, int]:
    """Fingerprints of the linked tensors; a sharded one has none, since each process holds its part only."""
    linked = dict.fromkeys(graft.plan.tensors)
    return {t.name: int(fingerprint(t.local())) for t in linked if not t.sharded}
