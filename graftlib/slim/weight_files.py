"""The safetensors files of a folder: one, or shards with an index as Hugging Face has them; in blocks, both ways.

In: a folder. Out: tensors by name, whole or some rows at a time; a file written tensor by tensor. Always true: a tensor
that is given lies on the disk until it is read; no more than a block of one is in memory for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..disk import named, read_whole, require_file
from ..errors import CheckpointError, shown
from ..surgery.squares import rows_at_once
from .edit import raw

__all__ = ["INDEX", "WEIGHTS", "Entry", "WeightFiles", "write_file"]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_BLOCK = 1 << 24  # elements
_MOST_INDEX = 256_000_000


@dataclass(frozen=True)
class Entry:
    """What the header of a file says of a tensor: its file, dtype (as safetensors names it: ``"BF16"``) and shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        bits = re.search(r"\d+", self.dtype)
        return int(bits[0]) // 8 if bits else 1

    @property
    def floating(self) -> bool:
        """Whether its values are floating-point numbers."""
        return self.dtype.startswith(("F", "BF"))


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of a folder.

    Attributes:
        home: the folder.
        entries: name of a tensor -> what is said of it.
        metadata: name of a file -> the text in its header.
        index: the index of the shards; None for one file.
    """

    home: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, Mapping[str, str]]
    index: Mapping[str, Any] | None

    @classmethod
    def of(cls, home: Path) -> WeightFiles:
        """Read the headers of ``model.safetensors``, or else of the shards that the index names.

        Raises:
            CheckpointError: a file is missing or damaged, or the index does not fit its files.
        """
        index = None if (home / WEIGHTS).exists() else _index(home)
        mapped = {} if index is None else index["weight_map"]
        entries: dict[str, Entry] = {}
        metadata: dict[str, dict[str, str]] = {}
        twice: dict[str, str] = {}
        for name in dict.fromkeys(mapped.values()) if index is not None else [WEIGHTS]:
            with _opened(home / name) as file:
                metadata[name] = file.metadata() or {}
                for key in file.keys():  # noqa: SIM118, not a mapping
                    if mapped.get(key, name) != name:
                        continue  # the index says which of two is meant
                    if key in entries:
                        twice[key] = f"in {shown(entries[key].file)} and in {shown(name)}"
                    part = file.get_slice(key)
                    entries[key] = Entry(name, part.get_dtype(), tuple(part.get_shape()))
        if twice:
            raise CheckpointError(
                f"{named(home / INDEX)} does not say which of {len(twice)} tensors is meant.",
                where=dict(list(twice.items())[:8]),
                fix="name the file of each tensor in its weight_map",
            )
        wrong = [name for name in mapped if name not in entries]
        if wrong:
            raise CheckpointError(
                f"{named(home / INDEX)} names {len(wrong)} tensors that are not in its files.",
                where={"first": ", ".join(wrong[:4])},
                fix="fetch the folder again",
            )
        return cls(home, entries, metadata, index)

    def tensor(self, name: str) -> Tensor:
        """The whole tensor; what of it is never read stays on the disk."""
        with _opened(self.home / self.entries[name].file) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def blocks(self, name: str) -> Iterator[Tensor]:
        """A tensor some rows at a time; one without axes, or without elements, as it is."""
        entry = self.entries[name]
        if not entry.shape or not prod(entry.shape):
            yield self.tensor(name)
            return
        width = prod(entry.shape[1:])
        step = rows_at_once(width)
        step *= max(_BLOCK // (width * step), 1)
        for start in range(0, entry.shape[0], step):
            # Opened anew, as what was read of an open file counts as this process' memory.
            with _opened(self.home / entry.file) as file:
                rows: Tensor = file.get_slice(name)[start : start + step]
            yield rows


def write_file(
    path: Path,
    entries: Mapping[str, Entry],
    blocks: Callable[[str], Iterable[Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file, a block at a time, with the tensors in the order that the library gives them.

    Args:
        path: a new file.
        entries: name of a tensor -> its dtype and shape.
        blocks: gives the values of a tensor by name, block after block.
        metadata: of the header.

    Raises:
        OSError: the disk refuses.
    """
    names = sorted(entries, key=lambda name: (-entries[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        entry = entries[name]
        start, end = end, end + entry.itemsize * prod(entry.shape)
        header[name] = {
            "dtype": entry.dtype,
            "shape": [*entry.shape],
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for block in blocks(name):
                file.write(raw(block))
        assert file.tell() == 8 + len(text) + end


def _opened(path: Path) -> Any:
    require_file(path, error=CheckpointError)
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as refusal:
        raise CheckpointError(
            f"{named(path)} cannot be read as safetensors.",
            why=str(refusal)[:300],
            fix="fetch or save it again",
        ) from None


def _index(home: Path) -> dict[str, Any]:
    if not (home / INDEX).exists():
        require_file(home / WEIGHTS, error=CheckpointError)
    text = read_whole(home / INDEX, limit=_MOST_INDEX, error=CheckpointError)
    try:
        index = json.loads(text)
        files = index["weight_map"]
        sound = all(isinstance(f, str) and f == Path(f).name and f for f in files.values())
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise CheckpointError(
            f"{named(home / INDEX)} is no index of safetensors files.",
            why=f"it shall say {shown('weight_map')}: name of a tensor -> name of a file in the folder",
            fix="fetch the folder again",
        )
    read: dict[str, Any] = index
    return read
