"""Which modules of a model are repeated, and which of them can be left out or repeated once more.

A module is **repeated** when it holds two weights or more and stands in a list of modules, or beside another of its
class: a layer of BERT or GPT-2, a residual block of a ResNet, a stage of a Swin and a block in it. A repeated module of
an `nn.ModuleList` or `nn.Sequential` is a **block** when the graph says that it runs once and hands on one tensor, the
**stream**, in the shape in which it took it: a layer of a ViT or Llama, a block of a ResNet that does not change the
size. Blocks of one container are of one **form** where their subgraphs are isomorphic: the same ops in the same wiring,
over tensors of the same shapes.
Elsewhere: the edits (`depth`); what looks alike to a reader (`graftlib.view.tree`: names and shapes, with or without a
graph).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph import LayerGraph
from ..graph.ops import schema_name
from ..graph.structure import alias, rebuild
from ..graph.tensors import replaced, tensor_leaves
from .edits import model_of
from .recording import alone, as_batches, called
from .refusal import SurgeryError

__all__ = ["Block", "blocks", "hooked", "inside", "joined", "repeated", "stream_of", "subgraph"]

_FEWEST_WEIGHTS = 2
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


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
    model = model_of(graph, model, data=(data, (Iterable, type(None))))
    records, forms = [], dict[Any, int]()
    once = _run_once(graph)
    for fqn in repeated(graph.model):
        container, _, name = fqn.rpartition(".")
        siblings = graph.model.get_submodule(container)
        if fqn not in once or not isinstance(siblings, (nn.ModuleList, nn.Sequential)):
            continue
        nodes = subgraph(graph, fqn)
        stream = stream_of(nodes)
        if stream is None:
            continue
        module, place = siblings._modules[name], [*siblings._modules].index(name)
        assert module is not None
        form = forms.setdefault((container, _form(nodes, fqn)), len(forms))
        shape = tuple(stream[1].meta["val"].shape)
        elements = sum(parameter.numel() for parameter in module.parameters())
        records.append(Block(fqn, container, place, type(module).__name__, form, shape, elements))
    if data is None:
        return tuple(records)
    importances = _importances(model, records, data)
    return tuple(replace(each, importance=importances[each.fqn]) for each in records)


def repeated(model: nn.Module) -> tuple[str, ...]:
    """FQNs of the repeated modules, outer before inner.

    A bare `nn.Sequential` is one in an `nn.ModuleList` alone: elsewhere it groups whatever follows each other. Other
    bare lists never are.
    """
    names = []
    for fqn, parent in model.named_modules():
        kinds = Counter(type(child) for child in parent.children())
        for name, child in parent.named_children():
            if type(child) in _LISTS:
                listed = isinstance(parent, nn.ModuleList) and type(child) is nn.Sequential
            else:
                listed = isinstance(parent, _LISTS) or kinds[type(child)] > 1
            weights = sum(parameter.ndim > 1 for parameter in child.parameters())
            if listed and weights >= _FEWEST_WEIGHTS:
                names.append(joined(fqn, name))
    return tuple(names)


def joined(*names: str) -> str:
    """One FQN of several; that of the root is empty."""
    return ".".join(filter(None, names))


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
