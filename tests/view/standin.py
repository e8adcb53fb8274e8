"""Layer graphs by hand: the attributes that the picture reads, and nothing else."""

import itertools
from dataclasses import dataclass, field

import networkx as nx
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from graftlib.graph.parameter import Parameter


@dataclass(frozen=True)
class Layer:
    name: str
    fqn: str
    kind: str
    parameters: tuple = ()
    in_shapes: tuple = ()
    out_shapes: tuple = ()
    calls: int = 1
    depth: float | None = None


@dataclass
class Graph:
    name: str
    model: nn.Module
    layers: tuple
    nx: nx.MultiDiGraph
    held: list
    tracer: str = "by hand"
    real: bool = False
    answers: dict = field(default_factory=dict)

    def parameters(self, pattern="*"):
        return self.held

    def parameter(self, address):
        return next(p for p in self.held if p.address == address or p.layer == address)

    def tensor(self, fqn):
        return self.model.get_parameter(fqn)


@dataclass(frozen=True)
class Pair:
    source: Parameter
    target: Parameter
    direction: str = "forward"
    rule: str = "by hand"


@dataclass
class Mapping:
    source: Graph
    target: Graph
    pairs: tuple = ()


def parameter(fqn, shape, kind="linear", role="weight", depth=0.5, **more):
    layer = fqn.rpartition(".")[0]
    return Parameter(
        fqn, tuple(shape), torch.float32, kind, role, layer, depth, ("out", "in"), **more
    )


def by_hand(name, layers, edges=None, model=None):
    """`layers`: name -> {parameter name: shape}; a chain, unless edges are given."""
    held = [
        parameter(f"{layer}.{own}", shape, "bias" if own == "bias" else "linear")
        for layer, owned in layers.items()
        for own, shape in owned.items()
    ]
    records = tuple(
        Layer(
            layer,
            layer,
            "Linear" if owned else "relu",
            tuple(f"{layer}.{own}" for own in owned),
            ((1, 4),),
            ((1, 4),),
        )
        for layer, owned in layers.items()
    )
    names = list(layers)
    graph = nx.MultiDiGraph()
    for record in records:
        graph.add_node(record.name, layer=record)
    for u, v in edges if edges is not None else itertools.pairwise(names):
        graph.add_edge(u, v, shape=(1, 4), dtype=torch.float32)
    return Graph(name, model or nn.Module(), records, graph, held)


def by_fx(model, *inputs):
    """A torchvision model's layer graph, by symbolic tracing."""
    traced = fx.symbolic_trace(model.eval())
    ShapeProp(traced).propagate(*inputs)
    known = {id(p): n for n, p in model.named_parameters()}
    names, layers, held = {}, [], []
    graph = nx.MultiDiGraph()
    compute = [
        n for n in traced.graph.nodes if n.op in ("call_module", "call_function", "call_method")
    ]
    for place, node in enumerate(compute):
        stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        depth = place / max(1, len(compute) - 1)
        if node.op == "call_module":
            name, kind, owner = (
                node.target,
                type(model.get_submodule(node.target)).__name__,
                model.get_submodule(node.target),
            )
            owned = [known[id(p)] for p in owner.parameters(recurse=False)]
            if name in names.values():
                name = f"{name}@{place}"
                owned = []
        else:
            kind = node.target if isinstance(node.target, str) else node.target.__name__
            name, owned, owner = (
                ".".join(
                    filter(
                        None, [stack[-1] if stack else "", node.name.split("_")[-1] + str(place)]
                    )
                ),
                [],
                None,
            )
        for fqn in owned:
            p = model.get_parameter(fqn)
            if fqn.endswith("bias"):
                what = "bias"
            elif isinstance(owner, nn.Conv2d):
                what = "depthwise" if owner.groups > 1 else "conv"
            else:
                what = "linear" if isinstance(owner, nn.Linear) else "norm"
            held.append(
                Parameter(
                    fqn,
                    tuple(p.shape),
                    p.dtype,
                    what,
                    "weight",
                    name,
                    depth,
                    ("out", "in", "kh", "kw")[: p.ndim],
                )
            )
        ins = tuple(
            tuple(a.meta["tensor_meta"].shape)
            for a in node.all_input_nodes
            if "tensor_meta" in a.meta
        )
        layer = Layer(
            name, name, kind, tuple(owned), ins, (tuple(node.meta["tensor_meta"].shape),), 1, depth
        )
        layers.append(layer)
        names[node] = name
        graph.add_node(name, layer=layer)
        for source in node.all_input_nodes:
            if source in names:
                graph.add_edge(
                    names[source], name, shape=ins[0] if ins else (), dtype=torch.float32
                )
    return Graph(type(model).__name__, model, tuple(layers), graph, held)


def convs_linked(source, target, step=4):
    """Every `step`-th convolution to a convolution at about the same depth."""
    gives = [p for p in source.held if p.kind == "conv"]
    takes = [p for p in target.held if p.kind in ("conv", "depthwise", "linear")]
    pairs = [
        Pair(
            gives[min(len(gives) - 1, i * len(gives) // len(takes))],
            takes[i],
            ("forward", "both", "backward")[i % 3],
        )
        for i in range(0, len(takes), step)
    ]
    return Mapping(source, target, tuple(pairs))
