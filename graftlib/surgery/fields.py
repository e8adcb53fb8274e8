"""The numbers in a config: where they are, and how one is set.

In: a config, as Hugging Face writes them: an object whose attributes are numbers, lists, dicts and other such objects.
Out: path -> number, for configs inside of configs, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["Path", "lists", "numbers", "set_field", "shown"]

Path = tuple[str | int, ...]


def numbers(config: object, path: Path = ()) -> Iterator[tuple[Path, float]]:
    """(path, number) of every integer and float, in the order of the fields."""
    if isinstance(config, (int, float)) and not isinstance(config, bool):
        yield path, config
    elif isinstance(config, (list, tuple)):
        for place, each in enumerate(config):
            yield from numbers(each, (*path, place))
    elif isinstance(config, dict) or hasattr(config, "to_dict"):
        fields = config if isinstance(config, dict) else vars(config)
        for name, each in fields.items():
            if not str(name).startswith("_"):
                yield from numbers(each, (*path, name))


def lists(config: object) -> Iterator[tuple[Path, list[Any]]]:
    """(path, entries) of every list, of whatever it is, of a config and of those inside of it."""
    fields = config if isinstance(config, dict) else vars(config)
    for name, each in fields.items():
        if isinstance(each, (list, tuple)):
            yield (name,), [*each]
        elif hasattr(each, "to_dict"):
            yield from (((name, *path), entries) for path, entries in lists(each))


def set_field(config: Any, path: Path, value: object) -> Any:
    """The config with one field set, in place; a tuple is replaced by another one."""
    head, *rest = path
    inner = getattr(config, "__dict__", config)
    if rest:
        value = set_field(inner[head], tuple(rest), value)
    if isinstance(config, tuple):
        return (*config[: int(head)], value, *config[int(head) + 1 :])
    if isinstance(config, (list, dict)):
        config[head] = value  # type: ignore[index]
    elif not rest or isinstance(value, tuple):
        setattr(config, str(head), value)
    return config


def shown(path: Path) -> str:
    """A path as one writes it: ``text_config.hidden_sizes[1]``."""
    text = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in path)
    return text.removeprefix(".")
