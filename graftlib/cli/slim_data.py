"""Calibration data for ``graftlib slim --data``: files of a folder as the batches that the model is called with.

In: a folder of images, files of arrays, or a text file. Out: (args, kwargs) for each batch, on the model's device.
Images are scaled, cropped and normalised as the library of the model does it before evaluation, texts are split by the
tokenizer of the folder, arrays go in as they are. Nothing is unpickled; labels are not used, nor are folders' names.
Where there are more samples than asked for, those that are taken lie evenly over all files in the order of their paths,
so that every class of an image folder has its share.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, GraftError, MissingExtraError, shown
from .models import Loaded, pretrained, require
from .names import ModelName

__all__ = ["batches_of"]

_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
_ARRAYS = (".npz", ".pt", ".safetensors")
_TEXT = ".txt"
_BATCH = 16
_TOKENS = 128

Batch = tuple[tuple[Any, ...], dict[str, Any]]


def batches_of(data: Path, name: ModelName, loaded: Loaded, samples: int) -> list[Batch]:
    """What ``--data`` names, as batches of at most 16 samples.

    Args:
        data: a folder, searched with all that is in it, or one file.
        name: of the model, which says whose images and texts it takes.
        loaded: the model.
        samples: how many at most.

    Raises:
        GraftError: there are no such files, they are of several kinds, one cannot be read, or the model's library does
            not say how images or texts become its inputs.
        MissingExtraError: the library that reads them is not installed.
    """
    if not (data.is_dir() or data.is_file()):
        what = "is neither a folder nor a regular file" if data.exists() else "does not exist"
        raise GraftError(f"{shown(str(data))} {what}.", fix="give --data a folder or file")
    files = sorted(p for p in data.rglob("*") if p.is_file()) if data.is_dir() else [data]
    kinds = {
        kind: [p for p in files if p.suffix.lower() in kind]
        for kind in (_IMAGES, _ARRAYS, (_TEXT,))
    }
    present = [kind for kind, its in kinds.items() if its]
    if len(present) != 1:
        what = "several kinds of files" if present else "no files that can be read"
        raise GraftError(
            f"{shown(str(data))} holds {what}.",
            fix=f"give images ({', '.join(_IMAGES)}), or arrays ({', '.join(_ARRAYS)}), or a text file ({_TEXT})",
        )
    its = kinds[present[0]]
    if present[0] is _IMAGES:
        rows = _images(_spread(its, samples), name, loaded)
    elif present[0] is _ARRAYS:
        rows = _arrays(its, loaded, samples)
    else:
        rows = _texts(its, name, samples)
    home = loaded.device
    return [
        (tuple(t.to(home) for t in args), {n: t.to(home) for n, t in kwargs.items()})
        for args, kwargs in rows
    ]


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, evenly."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


# Images ---------------------------------------------------------------------------------------------------------------


def _images(files: Sequence[Path], name: ModelName, loaded: Loaded) -> Iterator[Batch]:
    transform = _transform(name, loaded)
    opened = require("PIL.Image", "vision")
    for start in range(0, len(files), _BATCH):
        tensors = []
        for path in files[start : start + _BATCH]:
            try:
                with opened.open(path) as image:
                    tensors.append(transform(image.convert("RGB")))
            except (OSError, ValueError) as error:
                raise _unreadable(path, error) from error
        yield (torch.stack(tensors),), {}


def _transform(name: ModelName, loaded: Loaded) -> Callable[[Any], Tensor]:
    """From an image to what the model takes, as its library does it before evaluation."""
    if name.library == "torchvision":
        models = require("torchvision.models", "vision")
        weights = models.get_model_weights(name.rest).DEFAULT
        transform: Callable[[Any], Tensor] = weights.transforms()
        return transform
    if name.library == "timm":
        timm = require("timm.data", "timm")
        transform = timm.create_transform(**timm.resolve_model_data_config(loaded.model))
        return transform
    if name.library == "hf":
        processor = _processor(name, "AutoImageProcessor", "image processor")
        first: Callable[[Any], Tensor] = lambda image: (  # noqa: E731
            processor(image, return_tensors="pt")["pixel_values"][0]
        )
        return first
    raise GraftError(
        f"{shown(str(name))} does not say how images become its inputs.",
        fix="give the tensors that it takes: a .npz, .safetensors or .pt file of arrays, samples first",
    )


# Arrays ---------------------------------------------------------------------------------------------------------------


def _arrays(files: Sequence[Path], loaded: Loaded, samples: int) -> Iterator[Batch]:
    read = [(path, _inputs(path, loaded)) for path in files]
    places = [(i, row) for i, (_, inputs) in enumerate(read) for row in range(_length(inputs))]
    chosen = _spread(places, samples)
    for i, (_, (args, kwargs)) in enumerate(read):
        rows = [row for number, row in chosen if number == i]
        for start in range(0, len(rows), _BATCH):
            part = torch.tensor(rows[start : start + _BATCH])
            yield tuple(t[part] for t in args), {n: t[part] for n, t in kwargs.items()}


def _length(inputs: Batch) -> int:
    return len(next(iter([*inputs[0], *inputs[1].values()])))


def _inputs(path: Path, loaded: Loaded) -> Batch:
    """All samples of a file: arrays by the names of the forward pass are keywords, others are positional in order."""
    arrays = _read(path)
    words = list(inspect.signature(loaded.model.forward).parameters)
    known = [name for name in arrays if name in words]
    if not known and (len(arrays) == 1 or all(name == f"arr_{i}" for i, name in enumerate(arrays))):
        args, kwargs = tuple(arrays.values()), {}
    elif known:
        args, kwargs = (), {name: arrays[name] for name in known}
    else:
        raise GraftError(
            f"{shown(str(path))} does not say which of its arrays is which input.",
            where={"arrays": ", ".join(map(shown, list(arrays)[:8])), "inputs": ", ".join(words)},
            fix="name them as the parameters of the model's forward, or save one alone",
        )
    counts = {len(t) if t.ndim else 0 for t in (*args, *kwargs.values())}
    if len(counts) != 1 or 0 in counts:
        raise GraftError(
            f"the arrays of {shown(str(path))} hold different numbers of samples, or none.",
            where={shown(n): str(tuple(t.shape)) for n, t in list(arrays.items())[:8]},
            fix="stack the samples along the first axis of each",
        )
    return args, kwargs


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".npz":
            import numpy as np

            with np.load(path, allow_pickle=False) as content:
                return {name: torch.from_numpy(content[name]) for name in content.files}
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: dict[str, Tensor] = load_file(path)
            return loaded
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own exceptions, none of them a contract
        raise _unreadable(path, error) from error
    content = {"arr_0": content} if isinstance(content, Tensor) else content
    if isinstance(content, (list, tuple)):
        content = {f"arr_{i}": each for i, each in enumerate(content)}
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(
            f"{shown(str(path))} holds more than tensors.", fix="save a tensor, or names -> tensors"
        )
    return {str(name): tensor for name, tensor in content.items()}


# Texts ----------------------------------------------------------------------------------------------------------------


def _texts(files: Sequence[Path], name: ModelName, samples: int) -> Iterator[Batch]:
    if name.library != "hf":
        raise GraftError(
            f"{shown(str(name))} has no tokenizer.",
            fix="give its inputs as a .npz, .safetensors or .pt file, or a model as hf:FOLDER",
        )
    tokenizer = _processor(name, "AutoTokenizer", "tokenizer")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    try:
        lines = [line for path in files for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise _unreadable(files[0], error) from error
    lines = _spread([line for line in lines if line.strip()], samples)
    if not lines:
        raise GraftError(f"{shown(str(files[0]))} holds no text.", fix="one text on each line")
    most = min(tokenizer.model_max_length, _TOKENS)
    for start in range(0, len(lines), _BATCH):
        part = lines[start : start + _BATCH]
        batch = tokenizer(part, padding=True, truncation=True, max_length=most, return_tensors="pt")
        yield (), dict(batch)


def _processor(name: ModelName, kind: str, what: str) -> Any:
    """What transformers reads from the model's folder beside the model."""
    try:
        return pretrained(kind, name.path or Path())
    except MissingExtraError:
        raise
    except Exception as error:  # JSON, validation and unknown kinds each raise their own
        raise CheckpointError(
            f"{shown(str(name.path))} holds no {what} that can be used.",
            why=f"{type(error).__name__}: {str(error)[:200]}",
            fix="add its files to the folder, or give the inputs as a .npz, .safetensors or .pt file",
        ) from error


def _unreadable(path: Path, error: Exception) -> GraftError:
    why = str(error).partition("\n")[0] or type(error).__name__
    return CheckpointError(
        f"{shown(str(path))} cannot be read.", why=why, fix="remove it, or save it again"
    )
