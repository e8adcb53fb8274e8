"""Where the attentions are.

That is each fused op, and each softmax whose scores are a product of two tensors and whose result multiplies a third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx

from .ops import arguments, does, name_of, spec, words
from .walk import inputs, reach, users

__all__ = ["Attention", "find_attentions"]

_SOFTMAX = words("softmax _softmax")
# Ops without a word of their own that stand between the scores and the softmax, or between it and the values.
_ON_SCORES = words("tanh max maximum minimum copy_")


@dataclass(frozen=True)
class Attention:
    """One attention.

    Attributes:
        operands: role (``query``, ``key``, ``value``) -> (node, axis of its features).
        result: what it gives; its features stand on the last axis and its other axes are the query's, or None
            where they do not.
    """

    operands: dict[str, tuple[fx.Node, int]]
    result: fx.Node | None


def find_attentions(graph: fx.Graph, weights: set[fx.Node]) -> list[Attention]:
    """All attentions, in execution order.

    Args:
        graph: in the normal form.
        weights: nodes that depend on no input (`reads.weight_nodes`).
    """
    attentions = []
    for node in graph.nodes:
        if name_of(node) == "scaled_dot_product_attention":
            named = arguments(node)
            operands = {word: (named[word], -1) for word in ("query", "key", "value")}
            attentions.append(Attention(operands, node))
        elif name_of(node) in _SOFTMAX and (attention := _written_out(node, weights)):
            attentions.append(attention)
    return attentions


def _written_out(softmax: fx.Node, weights: set[fx.Node]) -> Attention | None:
    scores = _product(softmax, weights, inputs)
    context = _product(softmax, weights, users)
    if scores is None or context is None:
        return None
    query, key = _factors(scores, contracted=True)
    onto = {softmax, *filter(_on_scores, reach([softmax], users, _on_scores))}
    pair = _factors(context, contracted=False)
    if query is None or key is None or None in pair:
        return None
    values = [factor for factor in pair if factor is not None and factor[0] not in onto]
    if len(values) != 1:
        return None
    operands = {"query": query, "key": key, "value": values[0]}
    return Attention(operands, context if _keeps_order(scores, context, values[0][0]) else None)


def _keeps_order(scores: fx.Node, context: fx.Node, value: fx.Node) -> bool:
    """Whether the result has the query's axes in the query's order, and the value's features last."""
    if "einsum" in (name_of(scores), name_of(context)):
        if name_of(scores) != name_of(context):
            return False
        one, two = _words(scores), _words(context)
        if one is None or two is None or context.all_input_nodes[1] is not value:
            return False
        (query, _), named = one
        (attention, _), result = two
        renamed = dict(zip(named, attention, strict=False))
        return [renamed.get(letter) for letter in query[:-1]] == list(result[:-1])
    return context.args[1] is value


def _words(product: fx.Node) -> tuple[list[str], str] | None:
    """The letters of an `einsum` of two tensors: of its factors, and of its result."""
    equation = str(product.args[0]).replace(" ", "")
    terms, _, result = equation.partition("->")
    words = terms.split(",")
    plain = len(words) == 2 and len(product.all_input_nodes) == 2 and "." not in equation
    return (words, result) if plain and result else None


def _product(
    softmax: fx.Node, weights: set[fx.Node], step: Callable[[fx.Node], Iterable[fx.Node]]
) -> fx.Node | None:
    """The one product of data that steps from a softmax lead to, through ops that keep scores what they are."""
    reached = reach(
        [softmax],
        lambda node: [other for other in step(node) if other not in weights],
        lambda node: name_of(node) not in _SOFTMAX and _on_scores(node),
    )
    products = [
        node
        for node in reached
        if spec(node).how == "product"
        and sum(source not in weights for source in node.all_input_nodes) >= 2
    ]
    return products[0] if len(products) == 1 else None


def _on_scores(node: fx.Node) -> bool:
    return does(node) in ("moves", "keeps") or name_of(node) in _ON_SCORES | _SOFTMAX


Factor = tuple[fx.Node, int] | None


def _factors(product: fx.Node, *, contracted: bool) -> tuple[Factor, Factor]:
    """Both factors of a product, each with the axis of its features.

    Args:
        product: the op.
        contracted: the features are summed over (query times key); else they survive (scores times values).
    """
    name = name_of(product)
    if name == "einsum":
        return _einsum_factors(product, contracted)
    first = 1 if name == "baddbmm" else 0
    one, other = product.args[first], product.args[first + 1]
    if not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
        return None, None
    return ((one, -1), (other, -2)) if contracted else ((one, -2), (other, -1))


def _einsum_factors(product: fx.Node, contracted: bool) -> tuple[Factor, Factor]:
    letters = _words(product)
    if letters is None:
        return None, None
    words, result = letters
    nodes = product.all_input_nodes
    if contracted:
        features = [letter for letter in words[0] if letter in words[1] and letter not in result]
        if len(features) != 1:
            return None, None
        return (nodes[0], words[0].index(features[0])), (nodes[1], words[1].index(features[0]))
    own = [
        [c for c in word if c in result and c not in words[1 - i]] for i, word in enumerate(words)
    ]
    if any(len(letters) != 1 for letters in own):
        return None, None
    return (nodes[0], words[0].index(own[0][0])), (nodes[1], words[1].index(own[1][0]))
