"""Walks along the edges of a captured graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from torch import fx

__all__ = ["follow", "inputs", "reach", "users"]

Value = TypeVar("Value")


def users(node: fx.Node) -> Iterable[fx.Node]:
    """The nodes that read a node."""
    return node.users


def inputs(node: fx.Node) -> Iterable[fx.Node]:
    """The nodes that a node reads."""
    return node.all_input_nodes


def reach(
    start: Iterable[fx.Node],
    step: Callable[[fx.Node], Iterable[fx.Node]],
    through: Callable[[fx.Node], object],
) -> Iterator[fx.Node]:
    """The nodes that steps from `start` lead to, each once, the nearest first; not `start` itself.

    Args:
        start: where the walk begins.
        step: from a node to the next ones, such as `users`.
        through: whether the walk goes on behind a node that it reached.
    """
    queue = list(start)
    seen = {*queue}
    for node in queue:  # grows while it is walked
        for other in step(node):
            if other not in seen:
                seen.add(other)
                yield other
                if through(other):
                    queue.append(other)


def follow(
    node: fx.Node,
    value: Value,
    step: Callable[[fx.Node, fx.Node, Value], Value | None],
    *,
    limit: int | None = None,
) -> Iterator[tuple[fx.Node, fx.Node, Value, bool]]:
    """Carry what is known of a node to those that read it: (reader, what it reads, the value there, carried on).

    Args:
        node: where the walk begins.
        value: what is known of it.
        step: (reader, what it reads, the value there) -> the value of the reader; None where the way ends.
        limit: of nodes whose readers are looked at.
    """
    queue = [(node, value)]
    for here, known in islice(queue, limit):  # grows while it is walked
        for user in here.users:
            after = step(user, here, known)
            if after is not None:
                queue.append((user, after))
            yield user, here, known, after is not None
