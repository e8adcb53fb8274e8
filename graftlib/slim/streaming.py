"""Slim a checkpoint that need not fit into memory: its files are read and written a block at a time.

In: a folder of safetensors files and a function that makes the model's class. Out: a folder of the same form with the
small model. Always true: the files are those of the edit in memory, to the bit; what is in memory at a time is a few
blocks, sums along the axes of each tensor, and what a model without values takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..arguments import check
from ..disk import destination, make_folder, named, scratch_folder, unwritable
from ..errors import CheckpointError, shown
from ..graph import trace
from ..graph.structure import duplicate, like_meta, own
from ..progress import part, track
from ..surgery import SurgeryError, SurgeryWarning
from ..surgery.importance import magnitude
from ..surgery.search import EmptyOnMeta
from ..surgery.squares import Squares
from .edit import Edit, digest_of, raw
from .saving import EDIT, config_of, kind_of, metadata_of, write_folder
from .slimming import Slim
from .verb import slim
from .weight_files import Entry, WeightFiles, write_file

__all__ = ["slim_folder"]

_THREADS = 8
_INDICES = 1 << 24  # elements


def slim_folder(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    factory: Callable[[], nn.Module],
    args: Sequence[Any] | Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    budget: Mapping[str, float],
    ranking: str = "uniform",
    solver: str = "greedy",
    multiple_of: int = 8,
    minimum: float = 0.1,
    keep: str | Sequence[str] = (),
) -> Slim:
    """A smaller model from files that may be larger than memory, as files that `graftlib.load` reads.

    As `slim` with ``importance="magnitude"`` and `Slim.save`, with the same values to the bit, where the model in
    memory has the dtypes of the files. Peak memory follows a block of the largest tensor, not the model.

    Args:
        folder: holds ``model.safetensors``, or shards and ``model.safetensors.index.json``.
        output: another folder, made where it is missing. It gets files of the same names with their tensors' kept
            units, the index, and the rest as `Slim.save`; all of them or none. What a killed run left there is removed
            by the next one.
        factory: makes a model of the checkpoint's class and sizes; nothing is unpickled. It is called once, and its
            parameters get no memory, as far as they are made empty (as layers of torch do).
        args: positional example inputs for `trace`, on the CPU; costs are counted for them.
        kwargs: keyword example inputs.
        budget: see `slim`.
        ranking: see `slim`.
        solver: see `slim`.
        multiple_of: see `slim`.
        minimum: see `slim`.
        keep: see `slim`.

    Returns:
        the model on the meta device, with its edit and report.

    Raises:
        CheckpointError: a file is missing or damaged, or the files are not those of what `factory` makes.
        SurgeryError: see `slim`; or the output cannot be written.

    Warns:
        SurgeryWarning: see `slim`; and for tensors in the files that the model has not, which are left out.
    """
    check(
        SurgeryError,
        folder=(folder, (str, os.PathLike)),
        output=(output, (str, os.PathLike)),
        factory=(factory, (Callable,)),
    )
    if Path(folder).resolve() == Path(output).resolve():
        raise SurgeryError(
            f"{named(folder)} cannot be slimmed in its place.",
            fix="name another folder for the output",
        )
    files = WeightFiles.of(Path(folder))
    model, names = _on_disk(factory, files)
    bare = duplicate(model, lambda t: like_meta(t) if id(t) in names and _large(t) else own(t))
    graph = trace(bare, args, kwargs)
    with part(0.0, 0.4):
        squares, source = _surveyed(files, names)
    rank = magnitude(graph, model, squares)
    with part(0.4, 0.6):
        small = slim(
            graph,
            budget=budget,
            importance=lambda _, __, each: rank(each),
            ranking=ranking,
            solver=solver,
            multiple_of=multiple_of,
            minimum=minimum,
            keep=keep,
        )
    small = replace(small, edit=replace(small.edit, source=source))
    with part(0.6, 1.0):
        _write(files, [name for its in names.values() for name in its], output, small)
    return small


def _on_disk(
    factory: Callable[[], nn.Module], files: WeightFiles
) -> tuple[nn.Module, dict[int, list[str]]]:
    """The model over tensors that stay on the disk until they are read, and `id` of each -> all of its names.

    The file's name of a tensor is the first.
    """
    with EmptyOnMeta():
        model = factory()
    check(CheckpointError, model=(model, (nn.Module,)))
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            names.setdefault(id(tensor), []).append(name)
            tensors[id(tensor)] = tensor
    faults: dict[str, str] = {}
    for key, its in names.items():
        its.sort(key=lambda name: name not in files.entries)
        entry = files.entries.get(its[0])
        if entry is None:
            faults[its[0]] = "is missing from the files"
        elif entry.shape != tensors[key].shape:
            faults[its[0]] = f"{entry.shape}, and {tuple(tensors[key].shape)} in the model"
    if faults:
        raise _unlike(files, faults)
    known = {name for its in names.values() for name in its}
    unknown = [name for name in files.entries if name not in known]
    if unknown:
        warnings.warn(
            f"{len(unknown)} tensors of {named(files.home)} are none of the model's and are left out: "
            + ", ".join(unknown[:8]),
            SurgeryWarning,
            stacklevel=3,
        )

    stored = {key: _stored(files, its[0], tensors[key]) for key, its in names.items()}
    faults = {
        names[key][0]: f"{tensor.dtype}, and {tensors[key].dtype} in the model"
        for key, tensor in stored.items()
        if kind_of(tensor) != kind_of(tensors[key])
    }
    if faults:
        raise _unlike(files, faults)
    twin = duplicate(model, lambda t: stored[id(t)] if id(t) in stored else own(t))
    return twin, {id(stored[key]): its for key, its in names.items()}


def _unlike(files: WeightFiles, faults: Mapping[str, str]) -> CheckpointError:
    return CheckpointError(
        f"{named(files.home)} does not hold what the factory makes: {len(faults)} tensors differ.",
        where=dict(list(faults.items())[:8]),
        fix="give the class and sizes of the checkpoint; where only names differ, load it with "
        "from_pretrained and write it anew with save_pretrained",
        faults=dict(faults),
    )


def _large(tensor: Tensor) -> bool:
    """Whether a trace goes without its values: indices and masks say what goes together."""
    return tensor.is_floating_point() or tensor.numel() > _INDICES


def _stored(files: WeightFiles, name: str, like: Tensor) -> Tensor:
    tensor = files.tensor(name)
    if not isinstance(like, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, like.requires_grad and tensor.is_floating_point())


def _surveyed(files: WeightFiles, names: Mapping[int, Sequence[str]]) -> tuple[Squares, str]:
    """Sums of squares of all tensors, by every name, and the digest of the state dict; each value is read once."""
    squares = Squares()

    def read(its: Sequence[str]) -> list[tuple[str, str, Sequence[int], str]]:
        name, sha, dtypes = its[0], hashlib.sha256(), set[str]()

        def hashed() -> Iterator[Tensor]:
            for block in files.blocks(name):
                sha.update(raw(block))
                dtypes.add(str(block.dtype))
                yield block

        for other in its[1:]:
            if other in files.entries and not _same(files, name, other):
                raise CheckpointError(
                    f"{named(files.home)} holds two values for one tensor of the model.",
                    where={"names": f"{shown(name)}, {shown(other)}"},
                    why="these are one tensor in the model, and differ in the files",
                    fix="load it with from_pretrained and write it anew with save_pretrained, or make a model "
                    "in which they are not tied",
                )
        entry = files.entries[name]
        if entry.shape and all(entry.shape) and entry.floating:
            squares.read(its, entry.shape, hashed())
        else:
            deque(hashed(), maxlen=0)
        (dtype,) = dtypes
        return [(each, dtype, entry.shape, sha.hexdigest()) for each in its]

    # The largest first, so that no thread is left alone with it at the end.
    order = sorted(names.values(), key=lambda its: -prod(files.entries[its[0]].shape))
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _THREADS)) as pool:
        rows = [row for its in track(pool.map(read, order), len(order)) for row in its]
    return squares, digest_of(rows)


def _same(files: WeightFiles, one: str, other: str) -> bool:
    """Whether two tensors in the files are the same bits."""
    entries = files.entries[one], files.entries[other]
    if entries[0].dtype != entries[1].dtype or entries[0].shape != entries[1].shape:
        return False
    pairs = zip(files.blocks(one), files.blocks(other), strict=True)
    return all(bytes(raw(a)) == bytes(raw(b)) for a, b in pairs)


def _write(
    files: WeightFiles, names: Iterable[str], output: str | os.PathLike[str], small: Slim
) -> None:
    """The files of the small model, whole or not at all."""
    home, edit = make_folder(output, error=SurgeryError), small.edit
    by_file: dict[str, dict[str, Entry]] = {}
    for name in names:
        if name in files.entries:
            entry = files.entries[name]
            shape = tuple(
                len(edit.cuts(name).get(axis, range(n))) for axis, n in enumerate(entry.shape)
            )
            by_file.setdefault(entry.file, {})[name] = replace(entry, shape=shape)
    try:
        with scratch_folder(destination(home / EDIT, error=SurgeryError)) as scratch:
            for file, entries in track(by_file.items()):
                header = {"format": "pt", **metadata_of(edit)}
                write_file(scratch / file, entries, partial(_kept, files, edit), header)
            index = None if files.index is None else _index(files.index, by_file)
            weights = {file: scratch / file for file in by_file}
            write_folder(home, weights, index, config_of(small.model), edit, small.report)
    except OSError as refusal:
        raise unwritable(output, refusal, SurgeryError) from refusal


def _kept(files: WeightFiles, edit: Edit, name: str) -> Iterator[Tensor]:
    """The kept units of a tensor, block by block."""
    cuts, start = edit.cuts(name), 0
    for block in files.blocks(name):
        end = start + (len(block) if block.ndim else 0)
        for axis, places in sorted(cuts.items()):
            mine = places[(places >= start) & (places < end)] - start if axis == 0 else places
            block = block.index_select(axis, mine)
        start = end
        yield block


def _index(index: Mapping[str, Any], by_file: Mapping[str, Mapping[str, Entry]]) -> bytes:
    entries = {name: entry for its in by_file.values() for name, entry in its.items()}
    metadata = dict(index.get("metadata") or {})
    metadata["total_size"] = sum(prod(e.shape) * e.itemsize for e in entries.values())
    if "total_parameters" in metadata:
        metadata["total_parameters"] = sum(prod(e.shape) for e in entries.values())
    weight_map = {name: entry.file for name, entry in sorted(entries.items())}
    return json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2).encode() + b"\n"
