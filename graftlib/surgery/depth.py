"""`drop_blocks` and `deepen`: fewer or more of a model's repeated blocks.

Both give each container an order of its blocks (`order`). Always true: the edited model was run next to the old one,
in double precision. With dropped blocks it gave what the old one gives when these hand on what they take; with copies,
what the old one gives. Nothing is written before.
Elsewhere: which modules are blocks (`blocks`), the config (`config`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations, islice
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor, fx, nn

from ..arguments import check
from ..errors import nearest, shown
from ..graph import LayerGraph
from ..graph.axes.trial import Trial, difference, without_numbers
from ..graph.caches import drop_caches
from ..graph.ops import arguments, does, name_of, spec, words
from .blocks import Block, hooked, inside, stream_of, subgraph
from .blocks import blocks as blocks_of
from .config import config_problems, config_state
from .edits import editable, model_of, must_be_traced, tensor_of
from .order import Order, depths_of, old_name, order_of, rearrange, renamed
from .proof import TOLERANCE, fill, run_trial, trial_of, unproven
from .refusal import SurgeryError
from .scratch import GROUPED

__all__ = ["deepen", "drop_blocks"]

_EXACT = 1e-12
_CHOICES = 64  # of which outputs are gone with a block
_NUMBERED = "the code around the blocks knows them by number"


def drop_blocks(
    graph: LayerGraph,
    blocks: Iterable[str | Block],
    *,
    model: nn.Module | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Leave blocks out; the others stay as they are and stand closer, under new numbers.

    Which ones: those of the least importance (``blocks(graph, data=…)``) are what the field drops first (Men et al.
    2024, ShortGPT, arXiv:2403.03853). The function changes to the one in which a dropped block hands on what it takes.

    Args:
        graph: from `graftlib.trace`.
        blocks: names of blocks, or records that `blocks` gave.
        model: None is the traced one, else another of the same structure.
        inplace: edit the model itself; otherwise a copy is made.

    Returns:
        the edited model, with numbered names, places, counts and configs as they follow.

    Raises:
        SurgeryError: an argument is not what it should be; a name is no block; the code knows its blocks by number; a
            Hugging Face config cannot say what is left; or nothing proves the edit on the traced input. The model is
            as it was.
    """
    model = model_of(graph, model, inplace, blocks=(blocks, (Iterable,)))
    gone = [*_asked(graph, [blocks] if isinstance(blocks, str) else blocks)]
    order = order_of(graph.model, dict.fromkeys(gone, 0))
    empty = [container for container, names in order.items() if not names]
    if empty:
        raise SurgeryError(f"nothing would be left in '{empty[0]}'.", fix="keep one block of it")
    return _edited(graph, model, order, partial(_dropped, graph, gone), (), inplace)


def deepen(
    graph: LayerGraph,
    copies: Mapping[str | Block, int],
    *,
    model: nn.Module | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Put copies of blocks behind them whose residual branches are zero: the function stays, exactly.

    In a copy the last projection of every branch is zero, and its bias (LLaMA Pro, Wu et al. 2024, arXiv:2401.02415,
    sec. 3.2), or what scales the branch as a whole: a LayerScale, the gain and shift of a norm behind it. One of these
    alone, so that it has a gradient. A ReLU on the stream is none to a copy, as the block before it ends in one.

    Args:
        graph: from `graftlib.trace`.
        copies: block -> how many copies; by name, or records that `blocks` gave.
        model: None is the traced one, else another of the same structure.
        inplace: edit the model itself; otherwise a copy is made.

    Returns:
        the edited model, with numbered names, places, counts and configs as they follow. A copy shares no tensor.

    Raises:
        SurgeryError: as for `drop_blocks`; or no copy of a block can be the identity, as a norm stands on its stream
            (post-norm, as in BERT), it has no residual, or an op of a branch is not known to keep zeros. The model is
            as it was.
    """
    model = model_of(graph, model, inplace, copies=(copies, (Mapping,)))
    counts = Annotated[int, Meta(ge=1, le=10_000)]
    check(SurgeryError, copies=([*copies.values()], list[counts]))
    number = dict(zip(_asked(graph, copies), copies.values(), strict=True))
    zeros = {fqn: _zeros(graph, fqn) for fqn in number}
    order = order_of(graph.model, {fqn: 1 + count for fqn, count in number.items()})
    added = [
        f"{new}{name.removeprefix(old)}"
        for new, old, copied in renamed(graph.model, order)
        if copied
        for name in zeros[old]
    ]
    return _edited(graph, model, order, partial(_deepened, graph, number, added), added, inplace)


# --- requests ---------------------------------------------------------------------------------------------------------


def _asked(graph: LayerGraph, requests: Iterable[str | Block]) -> list[str]:
    """The names of the blocks that are meant."""
    known = [each.fqn for each in blocks_of(graph)]
    asked: list[str] = []
    for request in requests:
        fqn = request.fqn if isinstance(request, Block) else request
        if fqn not in known:
            raise SurgeryError(
                f"{shown(fqn)} is no block that can be left out or repeated.",
                why="a block stands in an nn.ModuleList or nn.Sequential, holds two weights or more, runs once and "
                "gives a tensor of the shape that it takes",
                near=lambda: nearest(str(fqn), known),  # noqa: B023
                fix="take one of surgery.blocks(graph)",
            )
        for other in asked:
            if inside(fqn, other) or inside(other, fqn):
                raise SurgeryError(f"'{fqn}' and '{other}' are asked for, and one holds the other.")
        asked.append(fqn)
    if not asked:
        raise SurgeryError("no block is named.", fix="take some of surgery.blocks(graph)")
    return asked


# --- the edit ---------------------------------------------------------------------------------------------------------


def _edited(
    graph: LayerGraph,
    model: nn.Module,
    order: Order,
    doubt: Callable[[Trial, Trial], SurgeryError | None],
    zeros: Sequence[str],
    inplace: bool,
) -> nn.Module:
    """The model in this order, with `zeros` in some tensors, once no `doubt` is left of it."""
    must_be_traced(model, graph, {**graph.model.state_dict(), **model.state_dict()})
    before, depths = config_state(model, graph), depths_of(graph.model, order)

    def edit(edited: nn.Module) -> nn.Module:
        rearrange(edited, order)
        for fqn in zeros:
            tensor_of(edited, fqn).detach().zero_()
        for _, problem in config_problems(edited, before, {}, depths):
            raise SurgeryError(
                "the config cannot say how many blocks there are now.",
                why=problem,
                fix="choose whole layers whose number alone the config holds",
            )
        return edited

    edited = edit(editable(model, graph, [], inplace=False))
    # With other norms and statistics as well: in a model before its training a signal may die away.
    doubts = (
        doubt(*_trials(graph, model, edited, order, zeros, drawn=drawn)) for drawn in (False, True)
    )
    first = next(doubts)
    if first is not None and (second := next(doubts)) is not None:
        raise second
    if inplace:
        drop_caches(model, graph, SurgeryError)
        return edit(model)
    return edited


# --- the proof --------------------------------------------------------------------------------------------------------


def _dropped(
    graph: LayerGraph, gone: Sequence[str], before: Trial, after: Trial
) -> SurgeryError | None:
    """The edited model gives what the old one gives in which the dropped blocks hand on what they take.

    What a dropped block gives besides is gone. Its stream is as well where all are given (``hidden_states``), and not
    where it was the last.
    """
    makers, ends = _makers(graph), {_end(graph, fqn) for fqn in gone}
    nodes: Any = graph.fx.output_node().args[0]
    mine = [any(inside(module, fqn) for fqn in gone) for module in makers]
    left = [i for i, own in enumerate(mine) if not own or nodes[i] in ends]
    random = torch.Generator().manual_seed(0)

    def outputs(change: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        for fqn in gone:
            hooked(before.model, fqn, change)
        return run_trial(before, graph)

    def noise(start: Tensor, end: Tensor) -> Tensor:
        return start * torch.rand(start.shape, dtype=start.dtype, generator=random, device="cpu")

    due, results = outputs(lambda start, end: start), _run_edited(after, graph, gone)
    streams = [i for i in left if mine[i]]
    fewer = len(left) - len(results)
    error, kept = float("inf"), left
    for without in islice(combinations(streams, fewer), _CHOICES) if fewer >= 0 else ():
        some = [i for i in left if i not in without]
        error, kept = min((error, kept), (difference([due[i] for i in some], results), some))
    if error > TOLERANCE:
        what = f"without {_named(gone)} the model is not the one in which they do nothing."
        raise _other(what, error, "drop other blocks")
    wrong = outputs(noise)
    control = difference([due[i] for i in kept], [wrong[i] for i in kept])
    return _doubt(graph, [due[i] for i in kept], control, gone)


def _end(graph: LayerGraph, fqn: str) -> fx.Node | None:
    """Where the stream leaves a block."""
    stream = stream_of(subgraph(graph, fqn))
    return None if stream is None else stream[1]


def _deepened(
    graph: LayerGraph, number: Mapping[str, int], zeros: Sequence[str], before: Trial, after: Trial
) -> SurgeryError | None:
    """The edited model gives what the old one gives, and, between, what the copies give besides."""
    outputs = run_trial(before, graph)
    more = sum(n for module in _makers(graph) for fqn, n in number.items() if inside(module, fqn))
    results = _run_edited(after, graph, [*number])
    counted = len(outputs) <= len(results) <= len(outputs) + more
    error = _missing(outputs, results) if counted else float("inf")
    if error > _EXACT:
        what = f"copies of {_named([*number])} that should do nothing change what the model gives."
        raise _other(what, error, "copy other blocks")
    random = torch.Generator().manual_seed(0)
    for fqn in zeros:
        value = after.tensor(fqn)
        value.copy_(torch.rand(value.shape, dtype=value.dtype, generator=random, device="cpu"))
    return _doubt(graph, outputs, _missing(outputs, run_trial(after, graph)), [*number])


def _trials(
    graph: LayerGraph,
    model: nn.Module,
    edited: nn.Module,
    order: Order,
    zeros: Sequence[str],
    *,
    drawn: bool,
) -> tuple[Trial, Trial]:
    """Both in doubles; parameters that are zero everywhere hide what is before them, and have numbers in both.

    With `drawn`, norms and statistics have others, too.
    """
    before, after = trial_of(graph, model, drawn=drawn), trial_of(graph, edited)
    names = [*renamed(graph.model, order)]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    unknown = [*before.draw_zeros(), *(n for n, t in tensors.items() if drawn or t.is_meta)]
    fill(after.model, before.model, {}, unknown, lambda fqn: old_name(fqn, names))
    for fqn in zeros:
        after.tensor(fqn).zero_()
    after.args, after.kwargs = before.args, before.kwargs
    return before, after


def _run_edited(trial: Trial, graph: LayerGraph, names: Sequence[str]) -> list[Tensor]:
    try:
        return trial.run()
    except Exception as error:  # a model may raise anything
        raise SurgeryError(
            f"the modules do not run with {_named(names)} dropped or copied.",
            why=f"{_NUMBERED}: {type(error).__name__}: {error}"[:300],
            fix="choose other blocks, or let the code run over its container",
        ) from error


def _makers(graph: LayerGraph) -> list[str]:
    """For each output the module that made it."""
    nodes: Any = graph.ops.output_node().args[0]
    return [node.meta.get("module") or "" for node in nodes]


def _missing(outputs: Sequence[Tensor], results: Iterable[Tensor]) -> float:
    """How far outputs are from standing, in their order, among results: the error of the first that does not."""
    rest = iter(results)
    for each in outputs:
        nearest_error = float("inf")
        for other in rest:
            error = difference([each], [other])
            nearest_error = min(error, nearest_error)
            if error <= _EXACT:
                break
        else:
            return nearest_error
    return 0.0


def _other(what: str, error: float, fix: str) -> SurgeryError:
    why = f"{_NUMBERED}, or they hand on more than the stream"
    return SurgeryError(what, where={"relative change": f"{error:.1e}"}, why=why, fix=fix)


def _doubt(
    graph: LayerGraph, outputs: Sequence[Tensor], control: float, names: Sequence[str]
) -> SurgeryError | None:
    """Why a wrong edit would not have been seen."""
    if without_numbers(outputs):
        doubt = "an output holds no finite number"
    elif control <= 100 * TOLERANCE:
        doubt = f"what {_named(names)} give does not show in the outputs"
    else:
        return None
    what = f"'{graph.name}' cannot be proven without or with more of {_named(names)}."
    return unproven(what, f"{doubt} on the traced input: a wrong edit would not show")


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"'{name}'" for name in names[:4]) + more


# --- identities -------------------------------------------------------------------------------------------------------

_SAME = words("dropout alias clone contiguous detach _to_copy to")
# f(0) = 0 and f'(0) is not, for one tensor or for each of several.
_ZERO_STAYS = words(
    "gelu silu tanh hardtanh hardswish leaky_relu elu mish neg mean sum div "
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool2d max_pool2d constant_pad_nd pad"
)

_NORMS = words("batch_norm layer_norm group_norm instance_norm rms_norm")


def _zeros(graph: LayerGraph, fqn: str) -> set[str]:
    """FQNs of the parameters of a block that make it the identity once they are zero.

    Raises:
        SurgeryError: it cannot be the identity.
    """
    nodes = subgraph(graph, fqn)
    stream = stream_of(nodes)
    assert stream is not None  # it is a block
    try:
        branches = _branches(stream[1], stream[0], {*nodes}, _ends_positive(stream[1]))
        if not branches:
            raise _NoIdentityError("it has no residual branch")
        named = {name for branch in branches for name in _silenced(branch, fqn, graph.model)}
    except _NoIdentityError as error:
        raise SurgeryError(
            f"no copy of '{fqn}' can do nothing at the start.",
            why=str(error),
            fix="deepen blocks that add their branches to the stream, with the norms in the branches (pre-norm)",
        ) from None
    return named


class _NoIdentityError(Exception):
    """Why a block cannot be the identity."""


def _ends_positive(node: fx.Node) -> bool:
    """A block that ends in a ReLU: what enters a copy behind it is not negative."""
    while name_of(node).removesuffix("_") in _SAME:
        node = node.all_input_nodes[0]
    return name_of(node).removesuffix("_") == "relu"


def _branches(node: fx.Node, start: fx.Node, own: set[fx.Node], positive: bool) -> list[fx.Node]:
    """What is added to the stream between `start` and `node`; a ReLU changes nothing where it is `positive`."""
    name = name_of(node).removesuffix("_")
    if node is start:
        return []
    if node not in own:
        raise _NoIdentityError("its residual does not come from what enters it")
    if name == "add" and len(node.all_input_nodes) == 2 and node.kwargs.get("alpha", 1) == 1:
        one, other = node.all_input_nodes
        reasons = []
        for stream, branch in ((one, other), (other, one)):
            try:
                return [*_branches(stream, start, own, positive), branch]
            except _NoIdentityError as error:
                reasons.append(error)
        raise max(reasons, key=lambda each: "norm" in str(each))
    if name in _SAME or spec(node).how in ("same", "reshape"):
        return _branches(node.all_input_nodes[0], start, own, positive)
    if name == "relu" and positive:
        return _branches(node.all_input_nodes[0], start, own, positive)
    if name in _NORMS:
        raise _NoIdentityError("a norm stands on its stream (post-norm)")
    raise _NoIdentityError(f"'{name}' stands on its stream, in '{node.meta['module']}'")


def _silenced(node: Any, fqn: str, model: nn.Module) -> set[str]:
    """FQNs of parameters of the block that make a tensor zero once they are."""
    if not isinstance(node, fx.Node):
        if node is None or node == 0:
            return set()
        raise _NoIdentityError(f"a branch adds {node}")
    if node.op == "get_attr":
        name = str(node.target)
        if inside(name, fqn) and name in dict(model.named_parameters()):
            if tensor_of(model, name).is_meta:
                raise _NoIdentityError("its parameters are on the meta device")
            return {name}
        raise _NoIdentityError(f"'{name}' of a branch is no parameter of the block")
    name = name_of(node).removesuffix("_")
    named = arguments(node) if node.op == "call_function" else {}
    if does(node) == "mixes" or name.rpartition(".")[2] in GROUPED:
        weight, bias = _weight_of(node, named)
        return _silenced(weight, fqn, model) | _silenced(bias, fqn, model)
    if name in _NORMS:
        if named.get("weight") is None:
            raise _NoIdentityError(
                f"a norm without a gain ends a branch, in '{node.meta['module']}'"
            )
        return _silenced(named["weight"], fqn, model) | _silenced(named.get("bias"), fqn, model)
    if name == "mul":
        return _of_factors(node.all_input_nodes, fqn, model)
    if name in ("add", "sub"):
        return {
            each
            for value in (named["self"], named["other"])
            for each in _silenced(value, fqn, model)
        }
    if name in _SAME or name in _ZERO_STAYS or does(node) == "moves":
        moved = node.all_input_nodes if name in ("cat", "stack") else node.all_input_nodes[:1]
        return {each for value in moved for each in _silenced(value, fqn, model)}
    raise _NoIdentityError(f"'{name or node.name}' ends a branch, in '{node.meta.get('module')}'")


def _weight_of(node: fx.Node, named: Mapping[str, Any]) -> tuple[fx.Node, Any]:
    """(the weight of a product, its bias or None)."""
    features, values = spec(node).features, [*named.values()]
    bias = named.get("bias")
    if features is not None and features.bias is not None:
        bias = values[features.bias]
    weights = [each for each in node.all_input_nodes if each is not bias and _is_weight(each)]
    if len(weights) != 1 or name_of(node) == "baddbmm":
        raise _NoIdentityError(
            f"no product with a weight ends a branch, in '{node.meta['module']}'"
        )
    return weights[0], bias


def _is_weight(node: fx.Node) -> bool:
    """Made of parameters alone."""
    read = node.op == "get_attr" and "constant" not in node.meta
    return read or (bool(node.all_input_nodes) and all(map(_is_weight, node.all_input_nodes)))


def _of_factors(factors: Sequence[fx.Node], fqn: str, model: nn.Module) -> set[str]:
    """Of a product one factor is zero, what is made of parameters before what is not; never two: it would not learn."""
    ways, reason = list[set[str]](), _NoIdentityError("a product of nothing ends a branch")
    for factor in sorted(factors, key=_is_weight, reverse=True):
        try:
            ways.append(_silenced(factor, fqn, model))
        except _NoIdentityError as error:
            reason = error
    for i, way in enumerate(ways):
        if all(way.isdisjoint(other) for k, other in enumerate(ways) if k != i):
            return way
        reason = _NoIdentityError("zeros in both factors of a product would have no gradient")
    raise reason
