"""What is at the path answers as the model does, and nothing else ever gets there."""

import errno
import json
import random
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from examples.common.onnx_graph import onnx_graph_signature
from graftlib.errors import ExportError, MissingExtraError
from graftlib.export import export_onnx, extras, proof, ship

QUICK = {"measure": False, "card": False}


def run(path, *inputs):
    runtime = proof.session(Path(path))
    names = [entry.name for entry in runtime.get_inputs()]
    return runtime.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})


def answers(model, *inputs):
    with torch.no_grad():
        return model.eval()(*inputs).numpy()


def left_over(folder):
    return sorted(entry.name for entry in Path(folder).iterdir())


# Parity: the file answers as the model does, at batch sizes that nobody told it.


def test_a_conv_net_holds_at_any_batch(models, tmp_path):
    model, path = models.TinyConv(), tmp_path / "m.onnx"
    report = export_onnx(model, path, torch.randn(1, 3, 8, 8), **QUICK)
    x = torch.randn(7, 3, 8, 8)
    np.testing.assert_allclose(run(path, x)[0], answers(model, x), atol=1e-5)
    assert report.comparison.batch_sizes == (1, 2, 5)
    assert report.inputs[0].shape == ("batch", 3, 8, 8)
    assert report.outputs[0].shape == ("batch", 5)
    assert report.top1_agreement == 1.0
    assert report.comparison.rows == 1 + 1 + 2 + 5
    assert left_over(tmp_path) == ["m.onnx"]


def test_a_transformer_on_integer_tokens(models, tmp_path):
    model, path = models.TinyTransformer(), tmp_path / "m.onnx"
    tokens = torch.randint(0, 11, (2, 6))
    report = export_onnx(model, path, (tokens,), **QUICK)
    x = torch.randint(0, 11, (3, 6))
    np.testing.assert_allclose(run(path, x)[0], answers(model, x), atol=1e-5)
    assert report.max_rel_difference < 1e-5


def test_several_inputs_nested_keywords_and_a_table_without_a_batch(models, tmp_path):
    args = (torch.randn(1, 4), torch.randn(6, 6))
    kwargs = {"extra": {"y": torch.randn(1, 3), "mix": True}}
    report = export_onnx(models.TwoInputs(), tmp_path / "m.onnx", args, kwargs, **QUICK)
    assert [spec.shape[0] for spec in report.inputs] == ["batch", 6, "batch"]
    assert len(report.fixed_inputs) == 1
    assert len(report.outputs) == 2


def test_keywords_in_another_order_are_not_mixed_up(models, tmp_path):
    kwargs = {"second": torch.randn(2, 3), "first": torch.randn(2, 3)}
    report = export_onnx(models.ReadsKeywordsOutOfOrder(), tmp_path / "m.onnx", (), kwargs, **QUICK)
    assert {spec.name for spec in report.inputs} == {"first", "second"}
    by_name = dict(
        zip([s.name for s in report.inputs], [kwargs[s.name] for s in report.inputs], strict=True)
    )
    out = run(report.path, *by_name.values())[0]
    np.testing.assert_allclose(out, (kwargs["first"] - 2 * kwargs["second"]).numpy(), atol=1e-6)


# The batch.


def test_a_batch_that_the_model_spells_out_is_refused_and_the_advice_works(models, tmp_path):
    path, x = tmp_path / "m.onnx", torch.randn(2, 3, 4)
    with pytest.raises(ExportError, match="dynamic_batch=False") as caught:
        export_onnx(models.FixedBatch(), path, x, **QUICK)
    assert "batch size 2 only" in str(caught.value)
    assert left_over(tmp_path) == []
    report = export_onnx(models.FixedBatch(), path, x, dynamic_batch=False, **QUICK)
    assert not report.dynamic_batch
    assert report.comparison.batch_sizes == (2,)
    assert report.inputs[0].shape == (2, 3, 4)


# Negative controls: what does not hold is not written.


def test_randomness_in_eval_mode_is_refused_and_the_old_file_stays(models, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match="answers differently") as caught:
        export_onnx(models.DrawsNoise(), path, torch.randn(2, 4), **QUICK)
    assert caught.value.comparison.max_rel > 1e-4
    assert path.read_bytes() == b"old"
    assert left_over(tmp_path) == ["m.onnx"]


@pytest.mark.parametrize("trouble", [1.01, float("nan"), float("inf")])
def test_a_runtime_that_lies_is_caught(models, tmp_path, monkeypatch, trouble):
    honest = proof._ask_runtime
    lie = lambda *a: [out * np.float32(trouble) for out in honest(*a)]  # noqa: E731
    monkeypatch.setattr(proof, "_ask_runtime", lie)
    with pytest.raises(ExportError, match="answers differently"):
        export_onnx(models.TinyConv(), tmp_path / "m.onnx", torch.randn(1, 3, 8, 8), **QUICK)
    assert left_over(tmp_path) == []


def test_the_tolerance_that_the_error_names_lets_the_file_pass(models, tmp_path, monkeypatch):
    honest = proof._ask_runtime
    monkeypatch.setattr(proof, "_ask_runtime", lambda *a: [out * 1.01 for out in honest(*a)])
    model, x = models.TinyConv(), torch.randn(1, 3, 8, 8)
    with pytest.raises(ExportError) as caught:
        export_onnx(model, tmp_path / "m.onnx", x, **QUICK)
    tolerance = float(caught.value.fix.rsplit("tolerance=", 1)[1].rstrip(")"))
    assert (
        export_onnx(model, tmp_path / "m.onnx", x, tolerance=tolerance, **QUICK).max_rel_difference
        > 0
    )


def test_an_answer_without_a_finite_number_proves_nothing(models, tmp_path):
    with pytest.raises(ExportError, match="no finite number"):
        export_onnx(models.NanAnswer(), tmp_path / "m.onnx", torch.randn(2, 3), **QUICK)


def test_an_untraceable_model(models, tmp_path):
    with pytest.raises(ExportError, match="cannot be exported") as caught:
        export_onnx(models.BranchesOnValues(), tmp_path / "m.onnx", torch.randn(2, 3), **QUICK)
    assert caught.value.__cause__ is not None
    assert len(str(caught.value).splitlines()) < 8
    assert left_over(tmp_path) == []


def test_inputs_that_the_model_does_not_take(models, tmp_path):
    with pytest.raises(ExportError, match="cannot be exported"):
        export_onnx(models.TinyConv(), tmp_path / "m.onnx", torch.randn(2, 4, 8, 8), **QUICK)


def test_no_example_input(models, tmp_path):
    with pytest.raises(ExportError, match="no example input"):
        export_onnx(models.TinyConv(), tmp_path / "m.onnx", **QUICK)


def test_a_model_without_values(models, tmp_path):
    with torch.device("meta"):
        model = nn.Linear(3, 3)
    with pytest.raises(ExportError, match="meta device"):
        export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 3), **QUICK)


# The disk.


def test_a_missing_folder_is_named_and_the_advice_works(models, tmp_path):
    path, x = tmp_path / "not" / "there" / "m.onnx", torch.randn(1, 3)
    with pytest.raises(ExportError, match="does not exist") as caught:
        export_onnx(nn.Linear(3, 2), path, x, **QUICK)
    exec(caught.value.fix.split(": ", 1)[1], {"Path": Path})
    assert export_onnx(nn.Linear(3, 2), path, x, **QUICK).path == path


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ExportError, match="is a folder"):
        export_onnx(nn.Linear(3, 2), tmp_path, torch.randn(1, 3), **QUICK)


def test_an_unwritable_folder(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ExportError, match="may write to"):
        export_onnx(nn.Linear(3, 2), tmp_path / "m.onnx", torch.randn(1, 3), **QUICK)


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def full(file):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ship, "_check", full)
    with pytest.raises(ExportError, match="free some space") as caught:
        export_onnx(nn.Linear(3, 2), path, torch.randn(1, 3), **QUICK)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert left_over(tmp_path) == ["m.onnx"]


def test_a_rename_that_fails_half_way_puts_everything_back(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    honest = Path.replace

    def stubborn(self, target):
        if Path(target).name == "m.card.json" and self.parent.name != "kept":
            raise OSError(errno.EIO, "Input/output error")
        return honest(self, target)

    monkeypatch.setattr(Path, "replace", stubborn)
    with pytest.raises(ExportError, match="cannot be written"):
        export_onnx(nn.Linear(3, 2), path, torch.randn(1, 3), measure=False)
    assert path.read_bytes() == b"old"
    assert left_over(tmp_path) == ["m.onnx"]


def test_weights_beyond_one_file_go_beside_it(models, tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "ONE_FILE", 0)
    model, path = models.TinyConv(width=64), tmp_path / "m.onnx"
    report = export_onnx(model, path, torch.randn(1, 3, 8, 8), **QUICK)
    assert left_over(tmp_path) == [name for name, _ in report.files]
    assert re.fullmatch(r"m\.onnx m\.onnx\.[0-9a-f]{8}\.data", " ".join(left_over(tmp_path)))
    x = torch.randn(3, 3, 8, 8)
    np.testing.assert_allclose(run(path, x)[0], answers(model, x), atol=1e-5)


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "LIBRARIES", ("onnx", "onnx_that_is_not_there"))
    with pytest.raises(MissingExtraError, match=r"graftlib\[onnx\]") as caught:
        export_onnx(nn.Linear(3, 2), tmp_path / "m.onnx", torch.randn(1, 3))
    assert caught.value.missing == ("onnx_that_is_not_there",)


# The model stays as it was.


def test_the_model_and_the_random_generators_are_untouched(models, tmp_path):
    model = models.TinyConv().train()
    model.head.eval()
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    seen = []
    model.conv.register_forward_hook(lambda *_: seen.append(1))
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    before = fingerprint(model)
    export_onnx(model, tmp_path / "m.onnx", x, **QUICK)
    assert fingerprint(model) == before
    assert x.grad is None


def fingerprint(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        [
            (n, type(m), m.training, len(m._forward_hooks), m.__dict__.keys())
            for n, m in model.named_modules()
        ],
        {
            n: (id(t), t._version, t.device, t.requires_grad, t.sum().item())
            for n, t in tensors.items()
        },
        {
            n: (id(p.grad), p.grad.sum().item())
            for n, p in model.named_parameters()
            if p.grad is not None
        },
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_an_accelerator_stays_there(models, tmp_path):
    model = models.TinyConv().cuda()
    export_onnx(model, tmp_path / "m.onnx", torch.randn(1, 3, 8, 8, device="cuda"), **QUICK)
    assert {p.device.type for p in model.parameters()} == {"cuda"}


def test_compiled_and_parallel_wrappers_are_looked_through(tmp_path):
    model = nn.Linear(3, 2)
    plain = export_onnx(model, tmp_path / "a.onnx", torch.randn(2, 3), **QUICK)
    wrapped = export_onnx(nn.DataParallel(model), tmp_path / "b.onnx", torch.randn(2, 3), **QUICK)
    assert onnx_graph_signature(plain.path) == onnx_graph_signature(wrapped.path)
    compiled = export_onnx(torch.compile(model), tmp_path / "c.onnx", torch.randn(2, 3), **QUICK)
    assert compiled.model == "Linear"


# What comes with the file.


def test_two_exports_are_the_same_bytes_and_name_no_path(models, tmp_path):
    model, x = models.TinyConv(), torch.randn(1, 3, 8, 8)
    a = export_onnx(model, tmp_path / "a.onnx", x, **QUICK)
    b = export_onnx(model, tmp_path / "b.onnx", x, **QUICK)
    assert a.sha256 == b.sha256
    assert str(Path(torch.__file__).parent).encode() not in a.path.read_bytes()


def test_the_report_prints_measures_and_leaves_a_card(models, tmp_path):
    path = tmp_path / "slim.onnx"
    x = torch.randn(4, 3, 8, 8)
    report = export_onnx(models.TinyConv(), path, x, source=models.TinyConv(width=64))
    assert left_over(tmp_path) == ["slim.card.json", "slim.onnx"]
    assert json.loads(report.card.read_text()) == json.loads(json.dumps(report.to_dict()))
    assert report.target.batch == 1
    assert report.target.threads == 1
    assert report.target.runs >= 5
    assert report.source.parameters > report.target.parameters
    assert report.size_bytes == path.stat().st_size
    assert report.nodes == len(onnx.load(path).graph.node)
    text = str(report)
    for word in (
        "sha256",
        "opset",
        "relative",
        "top-1",
        "median",
        "more memory",
        "of the time",
        "[batch, 3, 8, 8]",
    ):
        assert word in text


def test_half_precision_has_its_own_tolerance():
    assert proof.tolerance_for(nn.Linear(2, 2)) == 1e-4
    assert proof.tolerance_for(nn.Linear(2, 2).half()) > 1e-3


# The set of files.


@pytest.mark.parametrize("card", [True, False])
def test_a_new_export_takes_the_old_data_and_the_old_card_away(models, tmp_path, monkeypatch, card):
    """...and no other model's: the data are told by their name and by what they hold."""
    monkeypatch.setattr(ship, "ONE_FILE", 0)
    path, x = tmp_path / "m.onnx", torch.randn(1, 3, 8, 8)
    unrelated = tmp_path / "m.onnx.0123abcd.data"
    unrelated.write_text("not ours: its name does not say what it holds")
    export_onnx(models.TinyConv(width=64), path, x, measure=False)
    old = left_over(tmp_path)
    report = export_onnx(models.TinyConv(width=65), path, x, measure=False, card=card)
    names = {name for name, _ in report.files} | {unrelated.name}
    assert set(left_over(tmp_path)) == names | ({"m.card.json"} if card else set())
    assert len(set(left_over(tmp_path)) - set(old)) == 1
    if card:
        assert json.loads((tmp_path / "m.card.json").read_text())["sha256"] == report.sha256


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "store").mkdir()
    link = tmp_path / "m.onnx"
    link.symlink_to("store/real.onnx")
    export_onnx(nn.Linear(3, 2), link, torch.randn(1, 3), measure=False)
    assert link.is_symlink()
    assert left_over(tmp_path / "store") == ["real.card.json", "real.onnx"]
