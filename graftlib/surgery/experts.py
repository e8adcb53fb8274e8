"""`prune_experts`: fewer experts in the layers that choose among some for each token.

In: a model and how many experts, or which, each layer keeps. Out: the model without the others: their weights, whether
stacked in one tensor or in a list of modules, and their rows of the router. Where they are is read from the graph: a
router is the linear layer whose features a ``topk`` or ``argmax`` orders, its experts are what lies beside it.
Always true: what comes out gives, in double precision, what the model gives when its routers rate the dropped experts
with minus infinity; both were run before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._torch_private import seeing_ops
from ..arguments import Share, check
from ..errors import nearest, shown
from ..graph import LayerGraph
from ..graph.axes import axis_classes
from ..graph.axes.trial import Trial, difference, without_numbers
from ..graph.caches import copy_to_edit, drop_caches
from ..graph.ops import arguments, does, name_of
from ..graph.select import select
from ..graph.walk import inputs, reach
from .config import config_problems, config_state, warn_of
from .edits import Rows, model_of, tensor_of, whole_numbers
from .order import depths_of, old_name, rearrange, renamed
from .proof import TOLERANCE, fill, run_trial, trial_of, unproven
from .recording import Op, Twin, as_batches
from .refusal import SurgeryError
from .stale import cut_rows

__all__ = ["Experts", "expert_usage", "experts", "prune_experts"]

Keep = int | float | Sequence[int]
_LEVELS = 3  # above its router, the module of a layer of experts
_COUNT = re.compile(r"(.*_)?experts")
_SAME = ("to", "_to_copy", "t", "transpose", "permute", "alias", "detach", "clone")
_PRODUCTS = ("linear", "matmul", "mm", "addmm")


@dataclass(frozen=True)
class Experts:
    """One layer of experts.

    Attributes:
        fqn: of the smallest module that holds the router and the experts.
        router: FQN of the router's weight, (experts, features).
        count: how many experts there are.
        top_k: how many of them a token goes to.
        stacked: (FQN, axis) of every tensor with a place for each expert, the router's own among them.
        container: FQN of the list of experts, where each is a module; else empty.
    """

    fqn: str
    router: str
    count: int
    top_k: int
    stacked: tuple[tuple[str, int], ...]
    container: str = ""

    def __str__(self) -> str:
        return f"{self.fqn}: {self.count} experts, {self.top_k} for a token"


def experts(graph: LayerGraph) -> tuple[Experts, ...]:
    """The layers of experts of a model, in its order.

    Args:
        graph: from `graftlib.trace`.
    """
    layers: dict[str, Experts] = {}
    known = dict(graph.model.named_parameters())
    for node in graph.ops.nodes:
        if node.op != "call_function" or name_of(node) not in ("topk", "argmax"):
            continue
        count = int(node.all_input_nodes[0].meta["val"].shape[-1])
        top_k = int(arguments(node).get("k", 1))
        for maker in reach([node], inputs, lambda each: does(each) != "mixes"):
            if maker.op != "call_function" or does(maker) != "mixes":
                continue
            for router in _weights_of(maker):
                shape = known[router].shape if router in known else ()
                if len(shape) == 2 and shape[0] == count:
                    layer = _layer(graph, router, count, top_k)
                    if layer is not None:
                        layers.setdefault(router, layer)
    return tuple(layers.values())


def _weights_of(node: Any) -> list[str]:
    """FQNs of the tensors that a product reads, turned or cast or as they are."""
    sources = [node, *reach([node], inputs, lambda each: name_of(each) in _SAME)]
    return [str(each.target) for each in sources if each.op == "get_attr"]


def _layer(graph: LayerGraph, router: str, count: int, top_k: int) -> Experts | None:
    words = router.split(".")[:-1]
    classes = [c for c in axis_classes(graph) if c.size == count and not c.free]
    for end in range(len(words) - 1, max(len(words) - 1 - _LEVELS, -1), -1):
        fqn = ".".join(words[:end])
        start = f"{fqn}." if fqn else ""
        mine = [
            [(m.fqn, m.axis) for m in each.members]
            for each in classes
            if all(
                m.fqn.startswith(start) and m.axis == 0 and m.factors == (count,)
                for m in each.members
            )
        ]
        stacked = tuple(dict.fromkeys(place for members in mine for place in members))
        containers = [
            f"{start}{name}"
            for name, module in graph.model.get_submodule(fqn).named_modules()
            if isinstance(module, (nn.ModuleList, nn.ModuleDict))
            and len(module) == count
            and len({type(each) for each in module.children()}) == 1
        ]
        wide = [f for f, _ in stacked if f != router and tensor_of(graph.model, f).ndim > 2]
        if (router, 0) in stacked and (wide or len(containers) == 1):
            container = "" if wide else containers[0]
            return Experts(fqn, router, count, top_k, stacked, container)
    return None


def expert_usage(
    graph: LayerGraph, data: Iterable[Any], *, model: nn.Module | None = None
) -> dict[str, Tensor]:
    """How much each expert is used: the mean of the router's softmax over all tokens of `data`.

    Args:
        graph: from `graftlib.trace`.
        data: a few inputs, as for `prune`; tokens of padding count as others do.
        model: None is the traced one, else another of the same structure.

    Returns:
        FQN of a layer of experts -> (experts,) float64 on the CPU; each sums to 1.

    Raises:
        SurgeryError: the model does not run on `data`, or a router is not seen there.
    """
    model = model_of(graph, model, data=(data, (Iterable,)))
    layers = experts(graph)
    sums = {each.fqn: torch.zeros(each.count, dtype=torch.float64, device="cpu") for each in layers}
    tokens = dict.fromkeys(sums, 0)

    def add(layer: Experts, logits: Tensor) -> None:
        rated = logits.detach().double().softmax(-1).flatten(0, -2)
        sums[layer.fqn] += rated.sum(0).cpu()
        tokens[layer.fqn] += len(rated)

    twin = Twin(model)
    for batch in as_batches(data):
        twin.run(batch, _Ratings(twin.model, layers, add))
    for fqn, count in tokens.items():
        if not count:
            raise SurgeryError(
                f"no token of the data reaches the router of '{fqn}'.", fix="give more data"
            )
    return {fqn: each / tokens[fqn] for fqn, each in sums.items()}


class _Ratings:
    """Gives what each router makes of its input to a function, which may write to it; sees ops as they run."""

    def __init__(self, model: nn.Module, layers: Iterable[Experts], use: Any) -> None:
        self._layers = {id(tensor_of(model, each.router)): each for each in layers}
        self._alive: list[Any] = []  # an id is that of a tensor as long as this one lives
        self._use = use

    def __call__(self, op: Op) -> None:
        func, args, kwargs, result = op
        values = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        layer = next((self._layers[id(v)] for v in values if id(v) in self._layers), None)
        name = func._schema.name.rpartition("::")[2]
        if layer is None:
            return
        if name in _SAME:
            self._alive.append(result)
            self._layers[id(result)] = layer
        elif name in _PRODUCTS:
            self._use(layer, result)


def prune_experts(
    graph: LayerGraph,
    keep: Keep | Mapping[str, Keep],
    data: Iterable[Any] | None = None,
    *,
    model: nn.Module | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Keep some experts of layers that choose among several for each token, and their rows of the router.

    Args:
        graph: from `graftlib.trace`.
        keep: how many experts (int), what share of them (float up to 1.0), or which ones (their numbers; they keep
            their order): of every layer of experts, or by globs of such layers (see `experts`; others stay).
        data: inputs, as for `prune`: where a count or a share is asked for, those of the largest mean router
            probability are kept (see `expert_usage`).
        model: None is the traced one, else another of the same structure.
        inplace: edit the model itself; otherwise a copy is made.

    Returns:
        the edited model: the one that the original is with the dropped experts rated minus infinity. Attributes and,
        where all layers keep as many, a Hugging Face config follow.

    Raises:
        SurgeryError: an argument is not what it should be; there are no experts; fewer would be left than a token goes
            to; the code ties experts otherwise (in groups); or nothing proves the edit on the traced input. The model
            is as it was.

    Warns:
        SurgeryWarning: the config of a Hugging Face model cannot say the numbers of experts.
    """
    model = model_of(graph, model, inplace, data=(data, (Iterable, type(None))))
    asked = _asked(graph, keep)
    rated = None
    if any(isinstance(each, (int, float)) for each in asked.values()):
        if data is None:
            raise SurgeryError(
                "nothing says which experts are used most.",
                fix="give inputs with data=[…], or the numbers of the experts to keep",
            )
        rated = expert_usage(graph, data, model=model)
    kept = {
        layer: _numbers(layer, each, None if rated is None else rated[layer.fqn])
        for layer, each in asked.items()
    }
    rows: Rows = {place: kept[layer] for layer in kept for place in layer.stacked}
    order = {
        layer.container: tuple(
            [*graph.model.get_submodule(layer.container)._modules][i] for i in units.tolist()
        )
        for layer, units in kept.items()
        if layer.container
    }
    before, depths = config_state(model, graph), depths_of(graph.model, order)

    def edit(edited: nn.Module) -> nn.Module:
        rearrange(edited, order)
        cut_rows(edited, rows)
        _count(edited, kept)
        return edited

    pruned = edit(copy_to_edit(model, graph, SurgeryError))
    _prove(graph, model, pruned, kept, rows, [*renamed(graph.model, order)])
    if inplace:
        drop_caches(model, graph, SurgeryError)
        pruned = edit(model)
    warn_of(config_problems(pruned, before, {}, depths))
    return pruned


def _asked(graph: LayerGraph, keep: Keep | Mapping[str, Keep]) -> dict[Experts, Keep]:
    layers = {each.fqn: each for each in experts(graph)}
    if not layers:
        raise SurgeryError(
            f"'{graph.name}' has no experts to choose among.",
            why="looked for are linear layers whose features a topk or an argmax orders, beside as many experts",
            fix="trace it with an input that reaches them",
        )
    if not isinstance(keep, Mapping):
        return dict.fromkeys(layers.values(), keep)
    asked: dict[Experts, Keep] = {}
    for pattern, each in keep.items():
        hits = select(pattern, [*layers])
        if not hits:
            raise SurgeryError(
                f"{shown(pattern)} hits no layer of experts.",
                near=lambda: nearest(pattern, [*layers]),  # noqa: B023
                fix="name layers as in surgery.experts(graph), with globs",
            )
        asked |= {layers[hit.name]: each for hit in hits}
    return asked


def _numbers(layer: Experts, keep: Keep, rated: Tensor | None) -> Tensor:
    if isinstance(keep, float):
        check(SurgeryError, keep=(keep, Share))
        keep = max(round(keep * layer.count), 1)
    if isinstance(keep, int) and not isinstance(keep, bool):
        assert rated is not None
        count = keep
        units = rated.topk(min(max(keep, 0), layer.count)).indices.sort().values
    else:
        units = torch.unique(whole_numbers(keep))
        count = len(units)
    if (
        not layer.top_k <= count <= layer.count
        or not 0 <= int(units[0]) <= int(units[-1]) < layer.count
    ):
        raise SurgeryError(
            f"{shown(keep)} cannot be kept of the experts of '{layer.fqn}'.",
            where={"experts": layer.count, "for a token": layer.top_k},
            fix=f"keep {layer.top_k} to {layer.count}, or their numbers from 0 to {layer.count - 1}",
        )
    return units


def _count(model: nn.Module, kept: Mapping[Experts, Tensor]) -> None:
    """Attributes that say how many experts there are: in each layer, and above layers that keep as many."""
    for fqn, module in model.named_modules():
        near = [each for each in kept if _within(fqn, each.fqn) or _within(each.fqn, fqn)]
        for name, value in vars(module).items():
            now = {len(kept[each]) for each in near if each.count == value}
            if type(value) is int and _COUNT.fullmatch(name) and len(now) == 1:
                vars(module)[name] = now.pop()


def _within(fqn: str, other: str) -> bool:
    return not other or f"{fqn}.".startswith(f"{other}.")


# --- the proof --------------------------------------------------------------------------------------------------------


def _prove(
    graph: LayerGraph,
    model: nn.Module,
    edited: nn.Module,
    kept: Mapping[Experts, Tensor],
    rows: Rows,
    names: Sequence[tuple[str, str, bool]],
) -> None:
    """The edited model gives what the old one gives whose routers rate the dropped experts with minus infinity."""
    before, after = trial_of(graph, model), trial_of(graph, edited)
    drawn = before.draw_zeros()  # a router of zeros rates all alike
    fill(after.model, before.model, rows, drawn, lambda fqn: old_name(fqn, names))
    after.args, after.kwargs = before.args, before.kwargs

    def mask(layer: Experts, logits: Tensor) -> None:
        gone = torch.ones(layer.count, dtype=torch.bool, device="cpu")
        gone[kept[layer]] = False
        logits[..., gone] = float("-inf")

    outputs = _seen(before, graph, _Ratings(before.model, kept, mask))
    mine = run_trial(after, graph)
    due = [_selected(one, other, kept) for one, other in zip(outputs, mine, strict=True)]
    error = difference(due, mine)
    if error > TOLERANCE:
        raise SurgeryError(
            "without these experts the model is not the one in which they are never chosen.",
            where={"relative change": f"{error:.1e}"},
            why="the code ties experts otherwise: in groups, or by a capacity of each",
            fix="keep other experts, or as many of each group",
        )
    turned = [after.tensor(layer.router) for layer in kept]
    for router in turned:
        router.copy_(router.roll(1, 0) + router.roll(1, 1))
    if without_numbers(mine) or difference(mine, run_trial(after, graph)) <= 100 * TOLERANCE:
        raise unproven(
            f"nothing proves that '{graph.name}' chooses the same experts.",
            "what its routers say does not show in the outputs on the traced input",
        )


def _seen(trial: Trial, graph: LayerGraph, see: _Ratings) -> list[Tensor]:
    """The outputs of a trial whose ops are seen as they run."""

    def sink(func: Any, args: Any, kwargs: Any, compute: Any) -> Any:
        result = compute()
        see((func, tuple(args), dict(kwargs), result))
        return result

    with seeing_ops(sink):
        return run_trial(trial, graph)


def _selected(old: Tensor, new: Tensor, kept: Mapping[Experts, Tensor]) -> Tensor:
    """An output with a place for each expert (what a router said), where it is one."""
    if old.shape[:-1] == new.shape[:-1] and old.shape != new.shape:
        ways = [
            old[..., u]
            for each, u in kept.items()
            if (each.count, len(u)) == (old.shape[-1], new.shape[-1])
        ]
        return min(ways, key=lambda way: difference([way], [new]), default=old)
    return old
