"""Rules of ops that sum over an axis of two tensors: linear layers, matrix products, einsum, attention."""

# Equations are no sentences.
# ruff: noqa: D403, D415

from __future__ import annotations

import string
from typing import Any

from ..ops import Features, aten, op, rule
from .algebra import Expr, fixed, freeze, product, split, tie
from .combine import broadcast, freeze_dims, fresh
from .values import Axes

_PRODUCT = Features(0, 1, None, axis=-1, out_axis=1, in_axis=0)


@rule(
    "aten.linear",
    does="mixes",
    kind="linear",
    slots={"1": "weight", "2": "bias"},
    features=Features(0, 1, 2, axis=-1, out_axis=0, in_axis=1),
)
def linear(x: Axes, weight: Axes, bias: Axes | None = None) -> Axes:
    """z[..., o] = sum_i x[..., i] W[o, i] + b[o]"""
    tie(x[-1], weight[-1])
    if len(weight) == 1:
        return Axes(x[:-1])
    if bias is not None:
        tie(weight[0], bias[-1])
    return Axes((*x[:-1], weight[0]))


@rule("aten.matmul", does="mixes", how="product", features=_PRODUCT)
@rule("aten.mm", does="mixes", features=_PRODUCT)
@rule("aten.bmm", does="mixes", how="product")
@rule(*aten("mv dot linalg_matmul vdot inner.x"))
def matmul(x: Axes, y: Axes) -> Axes:
    """z[..., i, j] = sum_k x[..., i, k] y[..., k, j]"""
    tie(x[-1], y[-2] if len(y) > 1 else y[-1])
    batch = broadcast(Axes(x[:-2]), Axes(y[:-2]))
    rows = x[-2:-1]
    columns = y[-1:] if len(y) > 1 else ()
    return Axes((*batch, *rows, *columns))


@rule(
    "aten.addmm",
    does="mixes",
    kind="linear",
    slots={"2": "weight"},
    features=Features(1, 2, 0, axis=-1, out_axis=1, in_axis=0),
)
@rule("aten.baddbmm", does="mixes", how="product")
@rule("aten.addmv", "aten.addbmm")
def addmm(bias: Axes, x: Axes, y: Axes, **kwargs: Any) -> Axes:
    """z = b + x y"""
    out = matmul(x, y)
    if op().node.name.startswith("addbmm"):
        out = Axes(out[1:])
    return broadcast(out, bias)


@rule("aten.outer", "aten.ger")
def outer(x: Axes, y: Axes) -> Axes:
    """z[i, j] = x[i] y[j]"""
    return Axes((x[0], y[0]))


@rule("aten.tensordot")
def tensordot(x: Axes, y: Axes, dims_x: list[int], dims_y: list[int]) -> Axes:
    """z[free of x, free of y] = the sum over pairs of dimensions"""
    left, right = [d % len(x) for d in dims_x], [d % len(y) for d in dims_y]
    for a, b in zip(left, right, strict=True):
        tie(x[a], y[b])
    kept = [axis for i, axis in enumerate(x) if i not in left]
    return Axes([*kept, *(axis for i, axis in enumerate(y) if i not in right)])


@rule("aten.bilinear", does="mixes", slots={"2": "weight", "3": "bias"})
def bilinear(x: Axes, y: Axes, weight: Axes, bias: Axes | None = None) -> Axes:
    """z[..., o] = sum_ij x[..., i] W[o, i, j] y[..., j] + b[o]"""
    tie(x[-1], weight[1])
    tie(y[-1], weight[2])
    if bias is not None:
        tie(weight[0], bias[0])
    return Axes((*broadcast(Axes(x[:-1]), Axes(y[:-1])), weight[0]))


@rule("aten.einsum", does="mixes", how="product")
def einsum(equation: str, tensors: list[Axes], **kwargs: Any) -> Axes:
    """one axis a letter; a letter that the result lacks is summed over"""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    known: dict[str, Expr] = {}
    dots: list[Axes] = []
    counts: dict[str, int] = {}
    for term, x in zip(terms.split(","), tensors, strict=True):
        before, ellipsis, after = term.partition("...")
        inside = len(x) - len(before) - len(after)
        for letter, axis in [
            *zip(before, x, strict=False),
            *zip(after, x[len(x) - len(after) :] if after else (), strict=True),
        ]:
            counts[letter] = counts.get(letter, 0) + 1
            if letter not in known or known[letter].size == 1:
                known[letter] = axis
            elif axis.size > 1:
                tie(known[letter], axis)
        if ellipsis:
            dots.append(Axes(x[len(before) : len(before) + inside]))
    if not arrow:
        result = "..." if dots else ""
        result += "".join(c for c in sorted(counts) if counts[c] == 1 and c in string.ascii_letters)
    spread = broadcast(*dots) if dots else Axes()
    before, ellipsis, after = result.partition("...")
    middle = spread if ellipsis else ()
    return Axes([*(known[c] for c in before), *middle, *(known[c] for c in after)])


@rule(*aten("cdist _cdist_forward _euclidean_dist"))
def cdist(x: Axes, y: Axes, *args: Any) -> Axes:
    """z[..., i, j] = |x[..., i, :] - y[..., j, :]|"""
    tie(x[-1], y[-1])
    return Axes((*broadcast(Axes(x[:-2]), Axes(y[:-2])), x[-2], y[-2]))


@rule("aten.cosine_similarity")
def cosine_similarity(x: Axes, y: Axes, dim: int = 1, eps: float = 0.0) -> Axes:
    """z = sum_i x[i] y[i] / |x| |y|"""
    out = broadcast(x, y)
    d = dim % len(out)
    return Axes((*out[:d], *out[d + 1 :]))


@rule("aten.linalg_cross", "aten.cross")
def cross(x: Axes, y: Axes, *args: Any, **kwargs: Any) -> Axes:
    """z = x × y along `dim`"""
    out = broadcast(x, y)
    freeze(out[op().named.get("dim", -1) or -1])
    return out


@rule(
    *aten(
        """
        scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_attention_math _scaled_dot_product_efficient_attention
        """
    )
)
def attention(
    query: Axes, key: Axes, value: Axes, mask: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """z[.., h, l, v] = sum_s softmax_s(sum_e q[.., h, l, e] k[.., h, s, e] + m) v[.., h, s, v]

    Fewer heads of keys and values: q's heads are ``heads of k x repeats``.
    """
    tie(query[-1], key[-1])
    tie(key[-2], value[-2])
    batch = broadcast(*(Axes(x[:-3]) for x in (query, key, value)))
    heads: tuple[Expr, ...] = ()
    if len(query) > 2:
        heads = (_shared_heads(query[-3], key[-3], value[-3]),)
    rows = Axes((*batch, *heads, query[-2], key[-2]))
    if isinstance(mask, Axes):
        broadcast(rows, mask)
    if op().named.get("is_causal"):
        freeze(query[-2])
        freeze(key[-2])
    out = Axes((*batch, *heads, query[-2], value[-1]))
    if len(op().shapes) == 1:
        return out
    return [out, *(Axes(fixed(n) for n in shape) for shape in op().shapes[1:])]


def _shared_heads(query: Expr, key: Expr, value: Expr) -> Expr:
    for other in (key, value):
        if other.size == query.size:
            tie(query, other)
        elif other.size > 1 and query.size > other.size:
            kept, _ = split(query, other.size, query.size // other.size)
            tie(kept, other)
        elif other.size > query.size:
            freeze(other)
    return query


@rule("aten._grouped_mm", "transformers.grouped_mm_fallback")
def grouped_matmul(x: Axes, y: Axes, *args: Any, **kwargs: Any) -> Axes:
    """z[t, j] = sum_k x[t, k] y[expert of t, k, j]: rows in runs of one expert each"""
    for operand in (x, y):
        freeze_dims(operand, range(len(operand) - 2))
    if len(x) == 2:
        freeze(x[0])
    tie(x[-1], y[-2])
    if len(x) == len(y) == 2:
        freeze(x[-1])
        return Axes((fixed(op().shape[0]), x[0], y[-1]))
    return Axes((*(fixed(n) for n in op().shape[:-2]), x[-2], y[-1]))


@rule("aten.kron")
def kron(x: Axes, y: Axes) -> Axes:
    """z[i p + k, j q + l] = x[i, j] y[k, l]"""
    return Axes(product([a, b]) for a, b in zip(x, y, strict=True))


@rule("aten.chain_matmul", "aten.linalg_multi_dot")
def chain(tensors: list[Axes]) -> Axes:
    """z = x_1 x_2 …"""
    out = tensors[0]
    for x in tensors[1:]:
        out = matmul(out, x)
    return out


@rule("aten.combinations", "aten.vander")
def listed(x: Axes, *args: Any, **kwargs: Any) -> Axes:
    """lists of pairs, powers: in order"""
    freeze(x[0])
    return Axes(fixed(n) if n != 1 else fresh(1) for n in op().shape)
