"""Recurrent layers on the meta device: shapes as torch computes them, without a step each."""

import pytest
import torch
from torch import nn

from graftlib.graph.capture import capture
from graftlib.graph.shapes import recurrent_shapes

LAYERS = {
    "lstm": nn.LSTM(4, 3),
    "gru": nn.GRU(4, 3),
    "tanh": nn.RNN(4, 3),
    "relu": nn.RNN(4, 3, nonlinearity="relu"),
    "layers": nn.GRU(4, 3, num_layers=2),
    "both ways": nn.LSTM(4, 3, bidirectional=True),
    "both ways, layers": nn.GRU(4, 3, num_layers=2, bidirectional=True),
    "projected": nn.LSTM(4, 3, proj_size=2, bidirectional=True),
    "batch first": nn.LSTM(4, 3, batch_first=True),
}


def results(graph):
    (node,) = [n for n in graph.nodes if isinstance(n.meta.get("val"), tuple) and n.op != "output"]
    return [(tuple(t.shape), t.stride(), t.dtype) for t in node.meta["val"]]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(5, 2, 4), (5, 4)], ids=["batch", "no batch"])
def test_the_shapes_are_those_of_a_real_run(name, shape):
    model, x = LAYERS[name], torch.randn(shape)
    meta, real = (capture(model, (x,), tracers=(tracer,)).graph for tracer in ("meta", "real"))
    assert [n.target for n in meta.nodes] == [n.target for n in real.nodes]
    assert results(meta) == results(real)


def test_a_packed_sequence_too():
    model = nn.LSTM(4, 3, bidirectional=True)
    x = nn.utils.rnn.pack_padded_sequence(torch.randn(5, 2, 4), torch.tensor([5, 3]))
    seen = []

    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = model

        def forward(self, data):
            out, state = self.rnn(nn.utils.rnn.PackedSequence(data, x.batch_sizes))
            seen.append([tuple(t.shape) for t in (out.data, *state)])
            return out.data

    for tracer in ("meta", "real"):
        capture(Packed(), (x.data,), tracers=(tracer,))
    assert seen[0] == seen[1] == [(8, 6), (2, 2, 3), (2, 2, 3)]


def test_a_million_steps_take_no_step():
    """Step by step this would take hours."""
    x = torch.empty(10**6, 1, 4, device="meta")
    graph = capture(nn.LSTM(4, 3).to("meta"), (x,), tracers=("meta",)).graph
    assert tuple(graph.output_node().meta["val"][0].shape) == (10**6, 1, 3)


def test_other_ops_and_devices_are_left_to_torch():
    x, state = torch.randn(5, 2, 4), torch.zeros(1, 2, 3)
    weights = list(nn.GRU(4, 3).parameters())
    args = (x, state, weights, True, 1, 0.0, False, False, False)
    assert recurrent_shapes(torch.ops.aten.gru.input, args) is None
    on_meta = (x.to("meta"), state.to("meta"), *args[2:])
    assert recurrent_shapes(torch.ops.aten.gru.input, on_meta) is not None
    assert recurrent_shapes(torch.ops.aten.relu.default, (x.to("meta"),)) is None
