"""Where models come from: models in memory, checkpoints that are read lazily, folders of them, generators.

A checkpoint's graph is traced on the meta device and its tensors are read by name, so memory follows the tensors that
were asked for and never the zoo; nothing is unpickled. Names in a file are untrusted text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from msgspec import Struct
from safetensors import safe_open
from torch import Tensor, nn

from graftlib.arguments import check
from graftlib.disk import named, require_file
from graftlib.documents import read_json
from graftlib.errors import CheckpointError, GraftError, nearest, shown
from graftlib.graph import LayerGraph, trace, unwrap

from .errors import AssemblyError

__all__ = [
    "LoadedModel",
    "Source",
    "ZooEntry",
    "fingerprint",
    "folder",
    "sources_of",
    "state_of",
    "with_values",
]

Args = Sequence[Any] | Tensor


class Source(Protocol):
    """What a source can do."""

    @property
    def name(self) -> str:
        """For the reader; need not be unique."""

    def graph(self) -> LayerGraph:
        """Traced anew at each call; its model may be on the meta device."""

    def graph_with_values(self) -> LayerGraph:
        """The same with a model that holds its values."""

    def state(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Tensors by FQN: those of `names`, or all."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    Attributes:
        model: never changed.
        args, kwargs: example inputs.
        name: for the reader.
    """

    model: nn.Module
    args: Args = ()
    kwargs: Mapping[str, Any] | None = None
    name: str = ""

    def graph(self) -> LayerGraph:
        """See `Source`."""
        return trace(self.model, self.args, self.kwargs)

    def graph_with_values(self) -> LayerGraph:
        """See `Source`."""
        return self.graph()

    def state(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """See `Source`; the model's own tensors, detached."""
        whole = state_of(self.model)
        return whole if names is None else {name: whole[name] for name in names}


@dataclass(frozen=True)
class ZooEntry:
    """A model on disk: how its modules are made, and where its tensors are.

    Attributes:
        factory: gives the untrained module; called under the meta device, so it costs no memory. It may also give
            ``(model, args)`` or ``(model, args, kwargs)``.
        checkpoint: a ``.safetensors`` file, or the ``.safetensors.index.json`` of a sharded one.
        args, kwargs: example inputs, where the factory gives none and they are not the base's.
        name: for the reader; the file's stem by default.

    Raises:
        CheckpointError: (when read) the file is missing, damaged, or not of these modules; all that differs is named.
    """

    factory: Callable[[], Any]
    checkpoint: str | Path
    args: Args = ()
    kwargs: Mapping[str, Any] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        check(
            AssemblyError,
            factory=(self.factory, (Callable,)),
            checkpoint=(self.checkpoint, (str, os.PathLike)),
            name=(self.name, str),
        )
        if not self.name:
            object.__setattr__(self, "name", Path(self.checkpoint).name.partition(".")[0])

    def graph(self) -> LayerGraph:
        """See `Source`; on the meta device."""
        model, args, kwargs = self._build()
        self._check(model)
        return trace(model, args, kwargs)

    def graph_with_values(self) -> LayerGraph:
        """See `Source`; on the CPU."""
        _, args, kwargs = self._build()
        return trace(self.model(), args, kwargs)

    def state(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """See `Source`; read from the file, on the CPU."""
        model, _, _ = self._build()
        with _Reader(Path(self.checkpoint)) as reader:
            aliases = _aliases(model, reader.shapes)
            wanted = list(_shapes(model)) if names is None else list(names)
            return {name: reader.read(aliases[name]) for name in wanted}

    def model(self) -> nn.Module:
        """The module with its weights, on the CPU, in eval mode."""
        built = self.factory()
        model: nn.Module = built[0] if isinstance(built, tuple) else built
        self._check(model)
        model.load_state_dict(self.state(), strict=False)
        return model.eval()

    def _build(self) -> tuple[nn.Module, Args, Mapping[str, Any] | None]:
        with torch.device("meta"):
            built = self.factory()
        parts = built if isinstance(built, tuple) else (built,)
        model, args, kwargs = (*parts, None, None)[:3]
        if not isinstance(model, nn.Module):
            raise AssemblyError(
                f"the factory of {self.name!a} gives a {type(model).__name__}, not a model.",
                fix="give an nn.Module, (model, args) or (model, args, kwargs)",
            )
        return model, self.args if args is None else args, self.kwargs if kwargs is None else kwargs

    def _check(self, model: nn.Module) -> None:
        with _Reader(Path(self.checkpoint)) as reader:
            _compare(model, reader.shapes, Path(self.checkpoint))


def folder(
    path: str | Path,
    factory: Callable[[Path], Any],
    *,
    args: Args = (),
    kwargs: Mapping[str, Any] | None = None,
    pattern: str = "*.safetensors",
) -> list[ZooEntry]:
    """The checkpoints of a folder as a zoo, in the order of their names.

    Args:
        path: the folder.
        factory: checkpoint's path -> its untrained module (or ``(model, args, kwargs)``).
        args: positional example inputs, where the factory gives none and they are not the base's.
        kwargs: the same by keyword.
        pattern: of file names.

    Raises:
        AssemblyError: there is no such folder, or nothing in it has such a name.
    """
    files = sorted(Path(path).glob(pattern)) if Path(path).is_dir() else []
    if not files:
        raise AssemblyError(
            f"the folder {str(path)!r} holds no {pattern}.",
            fix="save each model with safetensors.torch.save_file(model.state_dict(), path)",
        )
    return [ZooEntry(partial(factory, each), each, args, kwargs) for each in files]


def sources_of(sources: Any, args: Args, kwargs: Mapping[str, Any] | None) -> Iterator[Source]:
    """Each source as a `Source`, one at a time; a generator is asked for the next only when it is needed.

    Args:
        sources: one source or an iterable of them: a model, ``(model, args)``, ``(model, args, kwargs)`` or a
            `ZooEntry`.
        args: positional example inputs of sources that bring none.
        kwargs: the same by keyword.

    Raises:
        AssemblyError: something is none of these.
    """
    # An nn.Sequential is iterable, and a tuple may be one source or several.
    single = isinstance(sources, (nn.Module, ZooEntry, LoadedModel)) or (
        isinstance(sources, tuple)
        and sources
        and isinstance(sources[0], nn.Module)
        and not all(isinstance(each, (nn.Module, ZooEntry, LoadedModel)) for each in sources[1:])
    )
    if not (single or isinstance(sources, Iterable)) or isinstance(sources, (str, bytes, Tensor)):
        raise AssemblyError(
            f"sources={shown(sources)} are no models.",
            fix="give a model, (model, args, kwargs), a ZooEntry, or a list of these",
        )
    for i, each in enumerate([sources] if single else sources):
        yield _source(each, i, args, kwargs)


def _source(source: Any, number: int, args: Args, kwargs: Mapping[str, Any] | None) -> Source:
    if isinstance(source, (ZooEntry, LoadedModel)):
        known = isinstance(source.args, Tensor) or bool(source.args) or bool(source.kwargs)
        return source if known else replace(source, args=args, kwargs=kwargs)
    parts = source if isinstance(source, tuple) else (source,)
    if not (1 <= len(parts) <= 3 and isinstance(parts[0], nn.Module)):
        raise AssemblyError(
            f"source {number} is a {type(source).__name__}.",
            fix="give a model, (model, args, kwargs) or ZooEntry(factory, checkpoint)",
        )
    model, own, by_name = (*parts, None, None)[:3]
    model = with_values(unwrap(model, AssemblyError))
    if own is None and by_name is None:
        own, by_name = args, kwargs
    return LoadedModel(
        model, () if own is None else own, by_name, f"{type(model).__name__} {number}"
    )


def with_values(model: nn.Module) -> nn.Module:
    """The model itself.

    Raises:
        AssemblyError: a tensor of it is on the meta device.
    """
    if any(tensor.is_meta for tensor in state_of(model).values()):
        raise AssemblyError(
            f"{type(model).__name__} is on the meta device and holds no values.",
            fix="trace the model on the CPU",
        )
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and persistent buffers by every name they have, detached; the model's own memory."""
    return {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bits; the order of the names does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(
            f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode("utf-8", "backslashreplace")
        )
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------- files


class _Index(Struct):
    """Of a checkpoint in several files; other fields are the libraries' own."""

    weight_map: dict[str, str]


class _Reader:
    """Tensors of one checkpoint, by name, from one file or several."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._home: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __enter__(self) -> _Reader:
        with ExitStack() as opening:
            try:
                index = self._index()
                for file in self._files(index):
                    require_file(file, error=CheckpointError)
                    opened = opening.enter_context(safe_open(file, framework="pt", device="cpu"))
                    for name in opened.keys():  # noqa: SIM118 - not a mapping
                        if index.get(name, file.name) != file.name:
                            continue  # a tensor that stands in two files is read where the index says
                        if name in self._home:
                            raise ValueError(
                                f"{shown(name)} is in two files, and the index names none"
                            )
                        self._home[name] = opened
                        self.shapes[name] = tuple(opened.get_slice(name).get_shape())
            except GraftError:
                raise
            except Exception as error:  # safetensors has errors of its own for each damage
                raise CheckpointError(
                    f"{named(self._path)} cannot be read as safetensors.",
                    why=str(error).partition("\n")[0] or type(error).__name__,
                    fix="save it with safetensors.torch.save_file(model.state_dict(), path)",
                ) from error
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._home[name].get_tensor(name)
        return tensor

    def _index(self) -> dict[str, str]:
        """Name of a tensor -> name of its file; empty where the path is no index."""
        if self._path.suffix != ".json":
            return {}
        index = read_json(self._path, _Index, what="index of a checkpoint", error=CheckpointError)
        # Never outside of the folder.
        return {name: Path(shard).name for name, shard in index.weight_map.items()}

    def _files(self, index: Mapping[str, str]) -> list[Path]:
        if self._path.suffix != ".json":
            return [self._path]
        return [self._path.with_name(name) for name in sorted(set(index.values()))]


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _aliases(model: nn.Module, saved: Mapping[str, object]) -> dict[str, str]:
    """Name in the model -> name in the file: a tied tensor is saved under one of its names."""
    state = model.state_dict(keep_vars=True)
    by_tensor: dict[int, str] = {}
    for name, tensor in state.items():
        if name in saved:
            by_tensor.setdefault(id(tensor), name)
    return {
        name: name if name in saved else by_tensor[id(tensor)]
        for name, tensor in state.items()
        if name in saved or id(tensor) in by_tensor
    }


def _compare(model: nn.Module, saved: Mapping[str, tuple[int, ...]], path: Path) -> None:
    own, aliases = _shapes(model), _aliases(model, saved)
    wrong = [(name, "is missing from the file") for name in own if name not in aliases]
    wrong += [
        (name, f"{own[name]} in the model, {saved[alias]} in the file")
        for name, alias in aliases.items()
        if saved[alias] != own[name]
    ]
    wrong += [(name, "is unknown to the model") for name in saved if name not in own]
    if not wrong:
        return
    rows = {}
    for name, why in wrong[:_MOST]:
        near = nearest(name, list(own), n=1) if name not in own else ()
        rows[shown(name)] = why + "".join(f"; nearest {each}" for each in near)
    raise CheckpointError(
        f"{named(path)} is not a checkpoint of this {type(model).__name__}.",
        where=rows,
        why=f"{len(wrong)} entries differ",
        fix="give the factory of the model that was saved",
    )


_MOST = 8
"""Entries that one error lists."""
