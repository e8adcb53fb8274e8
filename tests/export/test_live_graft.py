"""While a graft is alive, what is shipped is what training made, and the graft goes on."""

import numpy as np
import pytest
import torch
from torch import nn

from examples.common.onnx_graph import onnx_graph_signature
from graftlib.export import export_onnx, proof
from graftlib.graft import Adapter, attach
from graftlib.graph import trace
from graftlib.match import Mapping


class Doubles(Adapter):
    """Writes twice the source's matrix."""

    def build(self, matrices, links):
        class Module(nn.Module):
            def forward(self, values):
                doubled = {link.target: 2 * values[link.source] for link in links}
                return [doubled[i] for i, matrix in enumerate(matrices) if matrix.written]

        return Module()


@pytest.mark.parametrize("hand_it_over", [False, True])
def test_a_pending_write_is_not_shipped_and_stays_pending(tmp_path, hand_it_over):
    source, target, x = (
        nn.Sequential(nn.Linear(3, 4)),
        nn.Sequential(nn.Linear(3, 4)),
        torch.randn(2, 3),
    )
    learned = target[0].weight.detach().clone()
    mapping = Mapping(trace(source, (x,)), trace(target, (x,))).link("0", "0")
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    graft = attach(Doubles(), mapping, cycle=1).follow(optimizer)
    written = target[0].weight.detach().clone()
    assert not torch.equal(written, learned)  # the write is pending

    handed = graft if hand_it_over else None
    live = export_onnx(target, tmp_path / "live.onnx", x, graft=handed, measure=False)
    assert torch.equal(target[0].weight, written)  # and still is
    runtime = proof.session(live.path)
    shipped = runtime.run(None, {runtime.get_inputs()[0].name: x.numpy()})[0]
    wanted = x @ learned.T + target[0].bias.detach()
    np.testing.assert_allclose(shipped, wanted.numpy(), atol=1e-6)

    graft.detach()
    after = export_onnx(target, tmp_path / "after.onnx", x, measure=False)
    assert onnx_graph_signature(live.path) == onnx_graph_signature(after.path)
