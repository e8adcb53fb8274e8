"""Two files have one signature exactly when their graphs are equal."""

import onnx
from onnx import TensorProto, helper, numpy_helper

from examples.common.onnx_graph import onnx_graph_signature


def build(weight=1.0, perm=(1, 0), doc=""):
    import numpy as np

    held = numpy_helper.from_array(np.full((2, 2), weight, np.float32), "w")
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=list(perm)),
        helper.make_node("Add", ["t", "w"], ["y"], doc_string=doc),
    ]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    return helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:], [held]))


def test_equal_graphs_have_equal_signatures_from_disk_and_memory(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(build(), path)
    assert onnx_graph_signature(path) == onnx_graph_signature(
        build(doc="a comment is no difference")
    )


def test_a_weight_or_an_attribute_is_seen():
    assert onnx_graph_signature(build()) != onnx_graph_signature(build(weight=1.0000001))
    assert onnx_graph_signature(build()) != onnx_graph_signature(build(perm=(0, 1)))
