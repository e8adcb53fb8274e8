"""A slimmed model as files, and back: safetensors, the edit as JSON, a Hugging Face config where it can say the sizes.

In: a model and its edit; a folder and a function that makes the original's class. Out: the files; the model again.
Always true: no pickle; the files appear together or not at all, and are refused where they do not belong together or
do not fit what the function makes.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..arguments import check
from ..disk import destination, make_folder, named, place_all, unwritable
from ..errors import CheckpointError, shown
from ..graph.capture import mute
from ..surgery import SurgeryError
from .edit import Edit, raw
from .report import SlimReport
from .weight_files import INDEX, WEIGHTS, WeightFiles

__all__ = ["CONFIG", "EDIT", "config_of", "kind_of", "load", "metadata_of", "save", "write_folder"]

EDIT, CONFIG, CARD = "edit.json", "config.json", "README.md"
_OURS = "graftlib_edit_sha256: "


def metadata_of(edit: Edit) -> dict[str, str]:
    """What goes into the header of a safetensors file and the metadata of an ONNX file."""
    return {
        "graftlib.edit": edit.to_json(),
        "graftlib.edit_sha256": edit.sha256,
        "graftlib.source_sha256": edit.source,
    }


def save(model: nn.Module, edit: Edit, report: SlimReport, folder: str | os.PathLike[str]) -> None:
    """See `Slim.save`."""
    state = _once(model)
    if any(tensor.is_meta for tensor in state.values()):
        raise SurgeryError(
            "the model is on the meta device and has no values to save.",
            fix="slim a model with values; slim.edit.save(path) saves the edit alone",
        )
    try:
        data = to_bytes(_apart(state), {"format": "pt", **metadata_of(edit)})
    except UnicodeEncodeError as error:
        raise SurgeryError(
            f"a tensor's name cannot be written to a file: {shown(error.object, 80)}.",
            why="it holds half of a surrogate pair, which is no text",
            fix="give the module another name",
        ) from None
    home = make_folder(folder, error=SurgeryError)
    write_folder(home, {WEIGHTS: data}, None, config_of(model), edit, report)


def write_folder(
    home: Path,
    weights: Mapping[str, Path | bytes],
    index: bytes | None,
    config: bytes | None,
    edit: Edit,
    report: SlimReport,
) -> None:
    """Put what belongs to a slimmed model in its place, and take away what would contradict it.

    Args:
        home: the folder.
        weights: name -> a safetensors file, on the disk of the folder or as it shall be.
        index: of the shards; None for one file.
        config: of Hugging Face; None where none says the sizes.
        edit: whose hash is in the headers of the files.
        report: for the model card; a card that somebody else wrote stays.

    Raises:
        SurgeryError: it cannot be written.
    """
    files = {INDEX: index, CONFIG: config} | ({WEIGHTS: None} if WEIGHTS not in weights else {})
    places = {n: destination(home / n, error=SurgeryError) for n in (*weights, *files, EDIT, CARD)}
    new = [(data, places[name]) for name, data in weights.items()]
    try:
        gone = [(None, places[name]) for name in (EDIT, INDEX) if places[name].exists()]
        rest = [(each, places[n]) for n, each in files.items() if each or places[n].exists()]
        if not places[CARD].exists() or _is_ours(places[CARD]):
            rest.append((_card(edit, report), places[CARD]))
        place_all([*gone, *new, *rest, (edit.to_json().encode(), places[EDIT])])
    except OSError as refusal:
        raise unwritable(home, refusal, SurgeryError) from refusal


def _is_ours(card: Path) -> bool:
    with card.open("rb") as file:
        return _OURS.encode() in file.read(4096)  # its head, as a card has it


def _card(edit: Edit, report: SlimReport) -> bytes:
    """A model card, as Hugging Face has them."""
    return f"""---
tags:
- graftlib
- pruned
{_OURS}{edit.sha256}
graftlib_source_sha256: {edit.source}
---
# {edit.model}, slimmed

Some units (channels, neurons, heads) of a larger {edit.model} stayed, and the others went; `{EDIT}` says which. Nothing
is said here of how good the model is: measure it before use.

```text
{report}
```

```python
import graftlib

model = graftlib.load("this folder", factory)  # factory makes the larger {edit.model}, with any values
```
""".encode()


def load(folder: str | os.PathLike[str], factory: Callable[[], nn.Module]) -> nn.Module:
    """The model that `Slim.save` or `slim_folder` wrote, in its own class.

    Args:
        folder: that `Slim.save` or `slim_folder` wrote to.
        factory: makes a model of the original's class and sizes, with any values; nothing is unpickled. It runs in
            this process, so it is as trusted as your own code.

    Returns:
        a model on the factory's device, with the saved values bit for bit in the saved dtypes; training flags are
        those that the factory gives.

    Raises:
        CheckpointError: a file is missing or damaged, the two do not belong together, or the weights do not fit.
        SurgeryError: the edit is malformed, or what the factory makes is not what was slimmed.

    >>> import tempfile, torch
    >>> from graftlib import slim, trace
    >>> make = lambda: nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> small = slim(trace(make(), torch.zeros(1, 4)), budget={"params": 0.6})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     small.save(folder)
    ...     again = load(folder, make)
    >>> again[0].out_features, torch.equal(again[2].weight, small.model[2].weight)
    (16, True)
    """
    check(CheckpointError, folder=(folder, (str, os.PathLike)), factory=(factory, (Callable,)))
    if isinstance(factory, nn.Module):
        raise CheckpointError(
            "the factory is a model, and no function that makes one.",
            fix="pass a function, such as lambda: Model(…): it makes a model of the original's sizes",
        )
    home = Path(folder)
    edit = Edit.load(home / EDIT)
    files = WeightFiles.of(home)
    for name, metadata in files.metadata.items():
        if metadata.get("graftlib.edit_sha256") != edit.sha256:
            raise CheckpointError(
                f"{named(home / EDIT)} is not the edit that {named(home / name)} was saved with.",
                fix="save the slimmed model again, or take both files from one place",
            )
    model = factory()
    check(CheckpointError, model=(model, (nn.Module,)))
    model = edit.apply(model, inplace=True)
    _fill(model, {name: files.tensor(name) for name in files.entries})
    return model


def _once(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every tensor under its first name alone."""
    first: dict[int, str] = {}
    state = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    return {name: state[name].detach() for name in first.values()}


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, none in the memory of another."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return apart


@torch.no_grad()
def _fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    state = {n: t for n, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    faults = {name: "is none of the model's" for name in tensors if name not in state}
    given = {id(state[name]) for name in tensors if name in state}
    faults |= {name: "is missing" for name, tensor in state.items() if id(tensor) not in given}
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        if name not in state:
            continue
        if state[name].shape != tensor.shape:
            faults[name] = f"{tuple(tensor.shape)}, and {tuple(state[name].shape)} in the model"
        elif kind_of(state[name]) != kind_of(tensor):
            faults[name] = f"{tensor.dtype}, and {state[name].dtype} in the model"
        earlier = first.setdefault(id(state[name]), name)
        if earlier != name and not _equal(tensors[earlier], tensor):
            faults[name] = f"differs from {shown(earlier)}, which is the same tensor in the model"
    if faults:
        raise CheckpointError(
            f"the weights do not fit what the factory makes: {len(faults)} tensors differ.",
            where=dict(list(faults.items())[:8]),
            fix="give the function that made the model which was slimmed",
            faults=faults,
        )
    for name, tensor in tensors.items():
        held = state[name]
        if held.dtype != tensor.dtype:
            held.data = held.data.to(tensor.dtype)
        held.copy_(tensor)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and bytes(raw(one)) == bytes(raw(other))


def kind_of(tensor: Tensor) -> str | torch.dtype:
    """What a tensor's numbers are: floating-point ones may have another precision, all else is what it is."""
    return "floats" if tensor.is_floating_point() else tensor.dtype


def config_of(model: nn.Module) -> bytes | None:
    """The config of a Hugging Face model, once its class, built from it, has the shapes of the model; else None."""
    config: Any = vars(model).get("config")
    if not hasattr(config, "to_json_string") or not hasattr(model, "save_pretrained"):
        return None
    config = copy.deepcopy(config)
    config.architectures = [type(model).__name__]
    kind: Any = type(model)
    try:
        with torch.device("meta"), warnings.catch_warnings(), mute("transformers"):
            warnings.simplefilter("ignore")
            built: nn.Module = kind(copy.deepcopy(config))
    except Exception:  # whatever a foreign constructor raises
        return None
    shapes = [{n: t.shape for n, t in each.state_dict().items()} for each in (model, built)]
    return config.to_json_string().encode() if shapes[0] == shapes[1] else None
