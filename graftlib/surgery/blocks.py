"""Which blocks of a model can be left out or repeated: read from its graph.

In: a `LayerGraph`. Out: `Block` records, by name. A block is a module with two weights or more that stands in an
`nn.ModuleList` or `nn.Sequential`, runs once, and hands on one tensor, the **stream**, in the shape in which it took
it: a layer of BERT, ViT, GPT-2 or Llama, a residual block of a ResNet that does not change the size. Blocks of one
container are of one **form** where their subgraphs are isomorphic: the same ops in the same wiring, over tensors of
the same shapes.
Elsewhere: the edits (`depth`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..arguments import check
from ..graph import LayerGraph
from ..graph.ops import schema_name
from ..graph.structure import alias, rebuild, unwrap
from ..graph.tensors import replaced, tensor_leaves
from .recording import alone, as_batches, called
from .refusal import SurgeryError

__all__ = ["Block", "blocks", "hooked", "inside", "stream_of", "subgraph"]

_FEWEST_WEIGHTS = 2


@dataclass(frozen=True)
class Block:
    """A module of a container that hands on a tensor of the shape that it takes.

    Attributes:
        fqn: of the module.
        container: FQN of the `nn.ModuleList` or `nn.Sequential` that it stands in.
        place: its place there, from 0.
        kind: its class name.
        form: equal for blocks of one container that are built alike; counted from 0 over the graph.
        shape: of the stream, at the traced input.
        elements: of its parameters.
        importance: 1 - cosine of what enters and what leaves, mean over data, 0.0 to 2.0; None without data.
    """

    fqn: str
    container: str
    place: int
    kind: str
    form: int
    shape: tuple[int, ...]
    elements: int
    importance: float | None = None

    def __str__(self) -> str:
        importance = "" if self.importance is None else f"  importance {self.importance:.4f}"
        size = f"stream {self.shape}  {self.elements:,} parameters"
        return f"{self.fqn}  {self.kind}  form {self.form}  {size}{importance}"


def blocks(
    graph: LayerGraph, *, data: Iterable[Any] | None = None, model: nn.Module | None = None
) -> tuple[Block, ...]:
    """The blocks of a graph, outer before inner, in the order of the model.

    Args:
        graph: from `graftlib.trace`.
        data: as for `prune`; with it each block has its importance, from one pass: 1 - cosine of the stream before and
            after the block, over features, mean over samples and positions (block influence, Men et al. 2024, ShortGPT,
            arXiv:2403.03853, eq. 1). The features of images (N, C, H, W) between convolutions stand on axis 1, all
            others on the last.
        model: None is the traced one, else another of the same structure; what the importance is measured on.

    Raises:
        SurgeryError: an argument is not what it should be, or the model does not take `data`.

    Examples:
        >>> import graftlib
        >>> layer = lambda: nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True)
        >>> stack = nn.Sequential(layer(), layer(), nn.Linear(8, 2)).eval()
        >>> [(b.fqn, b.form) for b in blocks(graftlib.trace(stack, torch.randn(1, 3, 8)))]
        [('0', 0), ('1', 0)]
    """
    check(
        SurgeryError,
        graph=(graph, (LayerGraph,)),
        data=(data, (Iterable, type(None))),
        model=(model, (nn.Module, type(None))),
    )
    records, forms = [], dict[Any, int]()
    once = _run_once(graph)
    for container, listed in _containers(graph.model):
        for place, (name, module) in enumerate(listed._modules.items()):
            if module is None or _is_group(module, listed):
                continue
            fqn = f"{container}.{name}" if container else name
            weights = sum(parameter.ndim > 1 for parameter in module.parameters())
            nodes = subgraph(graph, fqn)
            stream = stream_of(nodes) if weights >= _FEWEST_WEIGHTS and fqn in once else None
            if stream is None:
                continue
            form = forms.setdefault((container, _form(nodes, fqn)), len(forms))
            shape = tuple(stream[1].meta["val"].shape)
            elements = sum(parameter.numel() for parameter in module.parameters())
            records.append(
                Block(fqn, container, place, type(module).__name__, form, shape, elements)
            )
    if data is None:
        return tuple(records)
    source = unwrap(graph.model if model is None else model, SurgeryError)
    importances = _importances(source, records, data)
    return tuple(replace(each, importance=importances[each.fqn]) for each in records)


def _containers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(FQN, module) of every list of modules."""
    for fqn, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            yield fqn, module


def _is_group(module: nn.Module, container: nn.Module) -> bool:
    """A bare list is a block in a `ModuleList` alone: elsewhere it groups whatever follows each other, as a stage."""
    return type(module) in (nn.Sequential, nn.ModuleList) and not (
        type(module) is nn.Sequential and isinstance(container, nn.ModuleList)
    )


def inside(module: str, fqn: str) -> bool:
    """Whether a module is one or lies in it."""
    return module == fqn or module.startswith(f"{fqn}.")


def subgraph(graph: LayerGraph, fqn: str) -> list[fx.Node]:
    """The ops that run inside of a module, in order."""
    return [
        node
        for node in graph.fx.nodes
        if node.op == "call_function" and inside(node.meta["module"], fqn)
    ]


def _run_once(graph: LayerGraph) -> set[str]:
    """FQNs of modules that hold a layer with parameters which ran once."""
    names: set[str] = set()
    for layer in graph.layers:
        if layer.parameters and layer.calls == 1:
            words = layer.fqn.split(".")
            names.update(".".join(words[:end]) for end in range(1, len(words) + 1))
    return names


def stream_of(nodes: Sequence[fx.Node]) -> tuple[fx.Node, fx.Node] | None:
    """(what enters, what leaves) of the stream through a subgraph; None where no tensor leaves as one came."""
    own = set(nodes)
    leaving = [node for node in nodes if any(user not in own for user in node.users)]
    entering = [
        each
        for node in nodes
        for each in node.all_input_nodes
        if each not in own and each.op != "get_attr"
    ]
    for end in reversed(leaving):
        like = [node for node in dict.fromkeys(entering) if _alike(node, end)]
        if like:
            # Of several it is the one made last: an encoder's states stand ready before a decoder's blocks run.
            order = {node: i for i, node in enumerate(end.graph.nodes)}
            return max(like, key=order.__getitem__), end
    return None


def _alike(one: fx.Node, other: fx.Node) -> bool:
    a, b = one.meta["val"], other.meta["val"]
    tensors = isinstance(a, Tensor) and isinstance(b, Tensor)
    return tensors and a.shape == b.shape and a.dtype == b.dtype and a.is_floating_point()


def _form(nodes: Sequence[fx.Node], fqn: str) -> Any:
    """What two subgraphs must agree in to be isomorphic: ops, wiring, names of parameters, shapes."""
    places = {node: i for i, node in enumerate(nodes)}
    outside: dict[fx.Node, int] = {}

    def name(node: fx.Node) -> Any:
        if node in places:
            return places[node]
        shapes = _shapes(node)
        if node.op == "get_attr":
            target = str(node.target)
            return (target.removeprefix(fqn) if inside(target, fqn) else "constant", shapes)
        return (outside.setdefault(node, len(outside)), shapes)

    return tuple(
        (schema_name(node.target), tuple(map(name, node.all_input_nodes)), _shapes(node))
        for node in nodes
    )


def _shapes(node: fx.Node) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in tensor_leaves(node.meta["val"]))


# What a hook does to the stream: (what entered, what leaves) -> what leaves instead; None leaves it.
Change = Callable[[Tensor, Tensor], Tensor | None]


def hooked(model: nn.Module, fqn: str, change: Change) -> None:
    """Let a module of a copy hand on what `change` makes of the stream; for ever.

    Raises:
        SurgeryError: (when it runs) no tensor enters of the shape that leaves.
    """

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        leaving = tensor_leaves(output)
        for i, end in enumerate(leaving):
            for start in tensor_leaves((args, kwargs)):
                if start.shape == end.shape and start.is_floating_point():
                    other = change(start, end)
                    if other is None:
                        return None
                    return replaced(output, [*leaving[:i], other, *leaving[i + 1 :]])
        raise SurgeryError(f"no tensor goes through '{fqn}' in one shape.")

    model.get_submodule(fqn).register_forward_hook(hook, with_kwargs=True)


def _importances(
    model: nn.Module, records: Sequence[Block], data: Iterable[Any]
) -> dict[str, float]:
    sums = {each.fqn: [0.0, 0.0] for each in records}
    copied = rebuild(model, alias)
    for each in records:
        ranks = [parameter.ndim for parameter in model.get_submodule(each.fqn).parameters()]
        axis = 1 if len(each.shape) in ranks and len(each.shape) > 2 else -1

        def measure(
            start: Tensor, end: Tensor, sums: list[float] = sums[each.fqn], axis: int = axis
        ) -> None:
            cosines = torch.cosine_similarity(start.double(), end.double(), dim=axis)
            sums[0] += float((1 - cosines).sum())
            sums[1] += cosines.numel()

        hooked(copied, each.fqn, measure)
    with alone(), torch.no_grad():
        for batch in as_batches(data):
            called(copied, batch)
    missed = [fqn for fqn, (_, count) in sums.items() if not count]
    if missed:
        raise SurgeryError(f"'{missed[0]}' does not run on data.", fix="pass what the model takes")
    return {fqn: total / count for fqn, (total, count) in sums.items()}
