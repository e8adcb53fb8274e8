"""`drop_blocks` and `deepen`: fewer or more of a model's repeated blocks.

Both give each container an **order**: the old names of its blocks, as they shall stand; a name that is missing is left
out, one that stands twice is copied. An order is plain data. What knows the depth follows: the names of the blocks, the
places that they hold (``layer_idx``), counts (``num_layers``), a Hugging Face config.
Always true: the edited model was run next to the old one, in double precision. With dropped blocks it gave what the old
one gives when these hand on what they take; with copies, what the old one gives. Nothing is written before.
Elsewhere: which modules are blocks (`blocks`), the config (`config`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from ..graph.structure import duplicate, own, unwrap
from .blocks import Block, hooked, inside, stream_of, subgraph
from .blocks import blocks as blocks_of
from .config import config_problems, config_state
from .edits import editable, tensor_of
from .proof import TOLERANCE, run_trial, trial_of
from .refusal import SurgeryError
from .scratch import GROUPED
from .search import Depths

__all__ = ["Order", "deepen", "drop_blocks", "new_names", "order_without", "rearrange"]

# FQN of a container -> the old names of its children, as they shall stand.
Order = Mapping[str, tuple[str, ...]]
_EXACT = 1e-12
_PLACES = re.compile(r"_?(layer|block)?_?(idx|id|index|number)")
_COUNTS = re.compile(r"(num_|n_)?(hidden_)?(layers?|blocks?)|depth")


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
    check(
        SurgeryError,
        graph=(graph, (LayerGraph,)),
        blocks=(blocks, (Iterable,)),
        model=(model, (nn.Module, type(None))),
        inplace=(inplace, bool),
    )
    model = unwrap(graph.model if model is None else model, SurgeryError)
    gone = _asked(graph, [blocks] if isinstance(blocks, str) else blocks)
    order = order_without(graph, gone.values())
    empty = [container for container, names in order.items() if not names]
    if empty:
        raise SurgeryError(f"nothing would be left in '{empty[0]}'.", fix="keep one block of it")

    def prove(edited: nn.Module) -> None:
        _prove_dropped(graph, model, edited, order, list(gone))

    return _edited(graph, model, order, prove, lambda edited: None, inplace)


def order_without(graph: LayerGraph, blocks: Iterable[Block]) -> Order:
    """What their containers hold once these blocks are left out."""
    blocks = list(blocks)
    gone = {each.fqn for each in blocks}
    return {
        container: tuple(name for name in names if _joined(container, name) not in gone)
        for container, names in _children(graph.model, blocks).items()
    }


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
    check(
        SurgeryError,
        graph=(graph, (LayerGraph,)),
        copies=(copies, (Mapping,)),
        model=(model, (nn.Module, type(None))),
        inplace=(inplace, bool),
    )
    counts = Annotated[int, Meta(ge=1, le=10_000)]
    check(SurgeryError, copies=([*copies.values()], list[counts]))
    model = unwrap(graph.model if model is None else model, SurgeryError)
    asked = _asked(graph, copies)
    number = dict(zip(asked, copies.values(), strict=True))
    zeros = {fqn: _zeros(graph, fqn) for fqn in asked}
    order = {
        container: tuple(
            name for name in names for _ in range(1 + number.get(_joined(container, name), 0))
        )
        for container, names in _children(graph.model, asked.values()).items()
    }
    added = {
        f"{new}{name.removeprefix(old)}"
        for new, old in _copies(graph.model, order)
        for name in zeros[old]
    }

    def finish(edited: nn.Module) -> None:
        for fqn in added:
            tensor_of(edited, fqn).detach().zero_()

    def prove(edited: nn.Module) -> None:
        _prove_deepened(graph, model, edited, order, number, added)

    return _edited(graph, model, order, prove, finish, inplace)


# --- requests ---------------------------------------------------------------------------------------------------------


def _asked(graph: LayerGraph, requests: Iterable[str | Block]) -> dict[str, Block]:
    """The blocks that are meant, by name."""
    known = {each.fqn: each for each in blocks_of(graph)}
    asked: dict[str, Block] = {}
    for request in requests:
        fqn = request.fqn if isinstance(request, Block) else request
        if fqn not in known:
            raise SurgeryError(
                f"{shown(fqn)} is no block that can be left out or repeated.",
                why="a block stands in an nn.ModuleList or nn.Sequential, holds two weights or more, runs once and "
                "gives a tensor of the shape that it takes",
                near=lambda: nearest(str(fqn), [*known]),  # noqa: B023
                fix="take one of surgery.blocks(graph)",
            )
        for other in asked:
            if inside(fqn, other) or inside(other, fqn):
                raise SurgeryError(f"'{fqn}' and '{other}' are asked for, and one holds the other.")
        asked[fqn] = known[fqn]
    if not asked:
        raise SurgeryError("no block is named.", fix="take some of surgery.blocks(graph)")
    return asked


def _children(model: nn.Module, wanted: Iterable[Block]) -> dict[str, tuple[str, ...]]:
    return {b.container: tuple(model.get_submodule(b.container)._modules) for b in wanted}


def _joined(*words: str) -> str:
    return ".".join(filter(None, words))


# --- the edit ---------------------------------------------------------------------------------------------------------


def _edited(
    graph: LayerGraph,
    model: nn.Module,
    order: Order,
    prove: Callable[[nn.Module], None],
    finish: Callable[[nn.Module], None],
    inplace: bool,
) -> nn.Module:
    _must_be_traced(model, graph)
    before = config_state(model, graph)
    depths = _depths(graph.model, order)

    def edit(edited: nn.Module) -> nn.Module:
        rearrange(edited, order)
        finish(edited)
        for _, problem in config_problems(edited, before, {}, depths):
            raise SurgeryError(
                "the config cannot say how many blocks there are now.",
                why=problem,
                fix="choose whole layers whose number alone the config holds",
            )
        return edited

    edited = edit(editable(model, graph, [], inplace=False))
    prove(edited)
    if inplace:
        drop_caches(model, graph, SurgeryError)
        return edit(model)
    return edited


def _must_be_traced(model: nn.Module, graph: LayerGraph) -> None:
    mine, known = (
        {n: tuple(t.shape) for n, t in m.state_dict().items()} for m in (model, graph.model)
    )
    other = [name for name in {**known, **mine} if mine.get(name) != known.get(name)]
    if other:
        raise SurgeryError(
            f"the model is not the one that was traced: {len(other)} tensors differ.",
            where={"first": ", ".join(map(repr, other[:3]))},
            fix="trace this model, and edit it by its own graph",
        )


def _depths(model: nn.Module, order: Order) -> Depths:
    """For each container how many children it had, and which of them stand in it now."""
    olds = {container: [*model.get_submodule(container)._modules] for container in order}
    return tuple(
        (container, len(olds[container]), tuple(olds[container].index(name) for name in names))
        for container, names in order.items()
    )


def rearrange(model: nn.Module, order: Order) -> None:
    """Let the containers hold what the order says, in place; places and counts follow."""
    for container in sorted(order, key=lambda fqn: -fqn.count(".")):
        module = model.get_submodule(container)
        olds: dict[str, nn.Module] = dict(module._modules)  # type: ignore[arg-type]
        places = _places_in([*olds.values()])
        names = order[container]
        news = dict[str, nn.Module]()
        for name, old in zip(new_names([*olds], names), names, strict=True):
            again = any(olds[old] is each for each in news.values())
            news[name] = duplicate(olds[old], own) if again else olds[old]
        module._modules.clear()
        module._modules.update(news)
        for place, each in enumerate(news.values()):
            for inner, part in each.named_modules():
                for attribute in [*vars(part)]:
                    if (inner, attribute) in places:
                        vars(part)[attribute] = place + places[inner, attribute]
        if len(names) != len(olds):
            _count(model, container, len(olds), len(names))


def _places_in(modules: Sequence[nn.Module]) -> dict[tuple[str, str], int]:
    """(name of a module in a block, attribute) -> the number of the first block, where it counts the blocks."""
    firsts: dict[tuple[str, str], set[int]] = {}
    for place, module in enumerate(modules):
        for inner, part in module.named_modules():
            for attribute, value in vars(part).items():
                if type(value) is int and _PLACES.fullmatch(attribute):
                    firsts.setdefault((inner, attribute), set()).add(value - place)
    return {key: first.pop() for key, first in firsts.items() if len(first) == 1}


def _count(model: nn.Module, container: str, old: int, new: int) -> None:
    """Attributes that said how many blocks a container has, of it and above it, up to the next container."""
    words = container.split(".") if container else []
    for end in range(len(words), -1, -1):
        part = model.get_submodule(".".join(words[:end]))
        if end < len(words) and isinstance(part, (nn.ModuleList, nn.Sequential)):
            return
        for name, value in vars(part).items():
            if type(value) is int and value == old and _COUNTS.fullmatch(name):
                vars(part)[name] = new


def new_names(olds: Sequence[str], names: Sequence[str]) -> list[str]:
    """Of children in another order: numbers are counted anew; a copy with a name of its own has a number behind it."""
    numbered = [re.fullmatch(r"(.*?)(\d+)", name) for name in olds]
    first = numbered[0]
    if first and all(
        each and each[1] == first[1] and int(each[2]) == int(first[2]) + i
        for i, each in enumerate(numbered)
    ):
        return [f"{first[1]}{int(first[2]) + i}" for i in range(len(names))]
    news = list[str]()
    for i, name in enumerate(names):
        count = names[:i].count(name)
        news.append(f"{name}_{count}" if count else name)
    return news


def _renamed(model: nn.Module, order: Order) -> Iterator[tuple[str, str, bool]]:
    """(new FQN, old FQN, whether it is a copy) of every child of the edited containers."""
    for container, names in order.items():
        olds = [*model.get_submodule(container)._modules]
        for i, new in enumerate(new_names(olds, names)):
            copied = names[i] in names[:i]
            yield _joined(container, new), _joined(container, names[i]), copied


def _copies(model: nn.Module, order: Order) -> Iterator[tuple[str, str]]:
    return ((new, old) for new, old, copied in _renamed(model, order) if copied)


def _old_name(fqn: str, renamed: Sequence[tuple[str, str, bool]]) -> str:
    for new, old, _ in renamed:
        if inside(fqn, new):
            return f"{old}{fqn[len(new) :]}"
    return fqn


# --- the proof --------------------------------------------------------------------------------------------------------


def _prove_dropped(
    graph: LayerGraph, model: nn.Module, edited: nn.Module, order: Order, gone: Sequence[str]
) -> None:
    """The edited model gives what the old one gives in which the dropped blocks hand on what they take."""
    doubt = None
    for drawn in (False, True):
        doubt = _dropped(graph, _trials(graph, model, edited, order, drawn=drawn), gone)
        if doubt is None:
            return
    assert doubt is not None
    raise doubt


def _dropped(
    graph: LayerGraph, trials: tuple[Trial, Trial], gone: Sequence[str]
) -> SurgeryError | None:
    before, after = trials
    owned = [any(inside(module, fqn) for fqn in gone) for module in _makers(graph)]

    def identity(start: Tensor, end: Tensor) -> Tensor:
        return start

    for fqn in gone:
        hooked(before.model, fqn, identity)
    every = run_trial(before, graph)
    outputs = [each for each, own in zip(every, owned, strict=True) if not own]
    error = difference(outputs, _run_edited(after, graph, gone))
    if error > TOLERANCE:
        raise SurgeryError(
            f"without {_named(gone)} the model is not the one in which they do nothing.",
            where={"relative change": f"{error:.1e}"},
            why="the code around the blocks knows them by number, or they hand on more than the stream",
            fix="drop other blocks",
        )
    random = torch.Generator().manual_seed(0)

    def noise(start: Tensor, end: Tensor) -> Tensor:
        return start * torch.rand(start.shape, dtype=start.dtype, generator=random, device="cpu")

    for fqn in gone:
        hooked(before.model, fqn, noise)
    again = [each for each, own in zip(run_trial(before, graph), owned, strict=True) if not own]
    return _doubt(graph, outputs, difference(outputs, again), gone)


def _prove_deepened(
    graph: LayerGraph,
    model: nn.Module,
    edited: nn.Module,
    order: Order,
    number: Mapping[str, int],
    zeros: Iterable[str],
) -> None:
    """The edited model gives what the old one gives, and, between, what the copies give besides."""
    doubt = None
    for drawn in (False, True):
        trials = _trials(graph, model, edited, order, zeros, drawn=drawn)
        doubt = _deepened(graph, trials, number, zeros)
        if doubt is None:
            return
    assert doubt is not None
    raise doubt


def _deepened(
    graph: LayerGraph,
    trials: tuple[Trial, Trial],
    number: Mapping[str, int],
    zeros: Iterable[str],
) -> SurgeryError | None:
    before, after = trials
    outputs = run_trial(before, graph)
    more = sum(n for module in _makers(graph) for fqn, n in number.items() if inside(module, fqn))
    results = _run_edited(after, graph, [*number])
    error = _missing(outputs, results) if len(results) == len(outputs) + more else float("inf")
    if error > _EXACT:
        raise SurgeryError(
            f"copies of {_named([*number])} that should do nothing change what the model gives.",
            where={"relative change": f"{error:.1e}"},
            why="the code around the blocks knows them by number, or they hand on more than the stream",
            fix="copy other blocks",
        )
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
    zeros: Iterable[str] = (),
    *,
    drawn: bool,
) -> tuple[Trial, Trial]:
    """Both in doubles; parameters that are zero everywhere hide what is before them, and have numbers in both.

    With `drawn`, norms and statistics have others, too: in a model before its training a signal may die away.
    """
    before, after = trial_of(graph, model, drawn=drawn), trial_of(graph, edited)
    numbers, renamed, zeros = before.draw_zeros(), [*_renamed(graph.model, order)], {*zeros}
    originals = {**dict(before.model.named_parameters()), **dict(before.model.named_buffers())}
    for fqn, tensor in [*after.model.named_parameters(), *after.model.named_buffers()]:
        old = _old_name(fqn, renamed)
        unknown = drawn or old in numbers or tensor_of(edited, fqn).is_meta
        if fqn not in zeros and old in originals and unknown:
            tensor.detach().copy_(originals[old].detach())
    after.args, after.kwargs = before.args, before.kwargs
    return before, after


def _run_edited(trial: Trial, graph: LayerGraph, names: Sequence[str]) -> list[Tensor]:
    try:
        return trial.run()
    except Exception as error:  # a model may raise anything
        raise SurgeryError(
            f"the modules do not run with {_named(names)} dropped or copied.",
            why=f"the code around the blocks knows them by number: {type(error).__name__}: {error}"[
                :300
            ],
            fix="choose other blocks, or let the code run over its container",
        ) from error


def _makers(graph: LayerGraph) -> list[str]:
    """For each output the module that made it."""
    nodes: Any = graph.fx.output_node().args[0]
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
    return SurgeryError(
        f"'{graph.name}' cannot be proven without or with more of {_named(names)}.",
        why=f"{doubt} on the traced input: a wrong edit would not show",
        fix="trace with an input that shows it: trace(model, args) with values as the model meets them",
    )


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
