"""Names of torch that torch does not promise: all in one file, and still there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import torch

from graftlib import _torch_private
from graftlib._torch_private import seeing_ops

ROOT = Path(__file__).resolve().parent.parent
# Name -> what stops working without it.
NEEDED = {
    "torch._C.DispatchKey.PreDispatch": "recording ops whole: every trace but `fake` and `export`, fits",
    "torch._C._DisablePythonDispatcher": "recording ops whole",
    "torch._dispatch.python.enable_python_dispatcher": "recording ops whole",
    "torch._subclasses.schema_check_mode.SchemaCheckMode": "recording ops whole",
    "torch.utils._python_dispatch.TorchDispatchMode": "recording ops whole",
    "torch._C.DisableTorchFunction": "reading shapes beside the modes of others",
    "torch._C._set_grad_enabled": "graphs of `fake` and `export` that switch gradients",
    "torch.amp.autocast_mode._enter_autocast": "graphs of `fake` and `export` with autocast",
    "torch.amp.autocast_mode._exit_autocast": "graphs of `fake` and `export` with autocast",
    "torch._ops.OpOverload": "graphs of `fake` and `export`",
    "torch._subclasses.FakeTensorMode": "the `fake` trace",
    "torch._subclasses.fake_tensor.DataDependentOutputException": "skipping `export` where values decide",
    "torch._subclasses.fake_tensor.DynamicOutputShapeException": "skipping `export` where values decide",
    "torch.multiprocessing.reductions.StorageWeakRef": "knowing a tensor by its memory: traces, caches",
    "torch.utils.weak.TensorWeakRef": "knowing a tensor again: traces",
    "torch.utils._pytree.tree_flatten": "the tensors of inputs and outputs",
    "torch.nn.modules.conv._ConvNd": "kinds of parameters that no op reads",
    "torch.nn.modules.batchnorm._NormBase": "kinds of parameters that no op reads",
    "torch.nn.modules.batchnorm._BatchNorm": "drawing running statistics for checks",
}


def there(path: str) -> bool:
    """Whether a dotted name of torch is there: the longest module in it, then attributes."""
    names = path.split(".")
    for end in range(len(names), 0, -1):
        try:
            value: object = importlib.import_module(".".join(names[:end]))
        except ModuleNotFoundError:
            continue
        for name in names[end:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


def test_what_broke_with_this_torch():
    gone = [f"{path}: {why}" for path, why in NEEDED.items() if not there(path)]
    assert gone == [], f"torch {torch.__version__} has moved names that graftlib needs"


def test_a_name_that_is_gone_is_seen():
    assert not there("torch._C.NoSuchKey.PreDispatch")
    assert not there("torch._no_such_module.name")


def test_an_op_is_seen_whole_and_its_result_may_be_another():
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    seen = []

    def sink(op, args, kwargs, compute):
        seen.append(op)
        return compute() + 1

    with torch.no_grad(), seeing_ops(sink):
        y = torch.nn.functional.linear(x, weight)
    assert seen == [torch.ops.aten.linear.default]
    assert torch.equal(y, torch.full((2, 4), 4.0))


def private_names(path: Path) -> list[str]:
    """Names of torch with a leading underscore, imported or spelled out."""
    names = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("torch.")]
        elif isinstance(node, ast.Attribute):
            names += re.findall(r"^(?:torch|nn)(?:\.\w+)+$", ast.unparse(node))
    return [name for name in names if re.search(r"\b_(?!_)", name)]


def test_they_stand_in_one_file():
    home = Path(_torch_private.__file__)
    files = [*home.parent.rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]
    others = {
        path.as_posix(): names for path in files if path != home and (names := private_names(path))
    }
    assert others == {}


@pytest.mark.parametrize(
    "code", ["from torch._ops import x", "import torch\ny = torch._C.f()", "import torch._ops"]
)
def test_another_file_that_has_one_is_seen(tmp_path: Path, code: str):
    (tmp_path / "file.py").write_text(code)
    assert private_names(tmp_path / "file.py")
