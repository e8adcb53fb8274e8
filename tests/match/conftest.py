"""A graph made by hand, for facts that no small model would show all at once."""

import pytest
import torch

from graftlib.errors import MatchError
from graftlib.graph.parameter import Parameter, Part


class FakeGraph:
    """What `graftlib.match` reads of a layer graph: names, records and tensors."""

    def __init__(self, name, records, *, device="cpu"):
        self.name = name
        self.records = {record.fqn: record for record in records}
        self.tensors = {
            record.fqn: torch.nn.Parameter(torch.randn(record.shape, device=device))
            for record in records
            if record.tied_to is None
        }

    def parameters(self, pattern="*", *, kind=None, role=None):
        assert (pattern, kind, role) == ("*", None, None)
        return list(self.records.values())

    def parameter(self, address):
        fqn, _, part = address.partition("::")
        if fqn not in self.records:
            raise MatchError(f"there is no {fqn!r} in {self.name}.")
        return self.records[fqn].select(part) if part else self.records[fqn]

    def tensor(self, fqn):
        return self.tensors[self.records[fqn].tied_to or fqn]


def weight(fqn, shape, kind="linear", role="weight", depth=0.5, **facts):
    """A record of a weight; its axes follow its kind."""
    axes = ("in", "out") if kind == "transposed_conv" else ("out", "in")
    layer = fqn.rpartition(".")[0]
    return Parameter(fqn, tuple(shape), torch.float32, kind, role, layer, depth, axes, **facts)


def spread(records):
    """The same records, from the first layer to the last."""
    records = list(records)
    for i, record in enumerate(records):
        object.__setattr__(record, "depth", i / max(len(records) - 1, 1))
    return records


def blocks(count, width, prefix="blocks"):
    """`count` residual blocks: a norm, an expanding and a contracting linear layer, biases."""
    records = []
    for i in range(count):
        depth = (i + 0.5) / count
        at = f"{prefix}.{i}"
        records += [
            weight(f"{at}.norm.weight", (width,), "norm", "gain", depth),
            weight(f"{at}.fc1.weight", (4 * width, width), depth=depth),
            weight(f"{at}.fc1.bias", (4 * width,), "bias", "bias", depth),
            weight(f"{at}.fc2.weight", (width, 4 * width), depth=depth + 0.1 / count),
            weight(f"{at}.fc2.bias", (width,), "bias", "bias", depth),
        ]
    return records


def packed(fqn, width, heads, depth=0.5):
    """A packed query, key and value."""
    parts = {
        name: Part(0, range(i * width, (i + 1) * width), heads, f"attention.{name}")
        for i, name in enumerate(("query", "key", "value"))
    }
    return weight(fqn, (3 * width, width), role="attention.fused", depth=depth, parts=parts)


def separate(prefix, width, depth=0.5, order=("query", "key", "value")):
    """Query, key and value as three layers, in any order."""
    return [
        weight(f"{prefix}.{name}.weight", (width, width), role=f"attention.{name}", depth=depth)
        for name in order
    ]


@pytest.fixture(scope="session")
def make():
    """The factories above, as attributes."""

    class Make:
        pass

    make = Make()
    make.graph, make.weight, make.spread = FakeGraph, weight, spread
    make.blocks, make.packed, make.separate = blocks, packed, separate
    return make
