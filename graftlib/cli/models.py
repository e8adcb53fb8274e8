"""From a name to a model and example inputs.

Out: an `nn.Module` in eval mode with inputs that it accepts. Nothing is downloaded and nothing is unpickled; values are
random (by seed) unless a folder or a checkpoint brings them. Only ``FILE.py:FACTORY`` runs code that is not installed.
Not here: looking names up (`names`), reading checkpoints (`weights`), making tensors (`inputs`).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .._torch_private import pytree
from ..errors import CheckpointError, GraftError, ModelNameError, optional, shown
from . import inputs
from .names import ModelName, find_model
from .weights import load_weights

__all__ = ["Loaded", "execute", "folder_factory", "load_model", "pretrained", "require"]


@dataclass(frozen=True)
class Loaded:
    """A model and the inputs to run it with.

    Attributes:
        name: as given.
        model: in eval mode, on `device`.
        args: positional example inputs, on `device`.
        kwargs: example inputs by keyword, on `device`.
        device: ``"cpu"``, ``"cuda"`` or ``"meta"``; of a file's model, where its factory put it.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"


def require(module: str, extra: str) -> Any:
    """An optional library, or a `MissingExtraError` that names the extra it comes with."""
    library = module.partition(".")[0]
    return optional(module, f"this needs {library}, which cannot be imported.", extra)


# ----------------------------------------------------------------------------------------- loading


def load_model(
    name: str,
    *,
    device: str = "auto",
    values: bool = False,
    weights: Path | None = None,
    shapes: Sequence[tuple[int, ...]] = (),
    dtype: str | None = None,
    seed: int = 0,
) -> Loaded:
    """Build the model that `name` names, with inputs to run it.

    Args:
        name: see `names.FORMS`.
        device: ``auto``, ``cpu``, ``cuda`` or ``meta``. ``auto`` is the meta device where nothing needs values, else
            the CPU; a file's model stays where its factory put it.
        values: whether the caller needs real values (an export does, a trace does not).
        weights: a state_dict to load.
        shapes: shapes of positional inputs, in place of the model's own example.
        dtype: their element type, as in `options.DTYPES`; None takes float32, or int64 for tokens.
        seed: of random weights and inputs.

    Raises:
        ModelNameError: no such model; a factory that fails or returns something else; no input is known.
        MissingExtraError: its library is not installed.
        CheckpointError: weights that are truncated or belong to another model.
        GraftError: no such device here; an input too large for the memory.
    """
    found = find_model(name)
    if weights is not None and device == "auto":
        device = "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise GraftError("there is no CUDA device here.", fix="use --device cpu, or --device auto")
    torch.manual_seed(seed)
    with _quiet():
        loaded = _LOADERS[found.library](found, device, values, _request(shapes, dtype))
    if weights is not None:
        load_weights(loaded.model, weights)
    return Loaded(name, loaded.model.eval(), loaded.args, loaded.kwargs, loaded.device)


def _request(shapes: Sequence[tuple[int, ...]], dtype: str | None) -> inputs.InputRequest:
    return inputs.InputRequest(tuple(shapes), getattr(torch, dtype) if dtype else None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Constructors of libraries announce changes of their own; a user of this command line cannot act on them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(torchvision|timm|transformers)\b")
        yield


def _build(make: Callable[[], nn.Module], device: str) -> nn.Module:
    """Make a model on `device`; a constructor that reads a value cannot run on meta, so move it there afterwards."""
    if device != "meta":
        return make().to(device)
    try:
        with torch.device("meta"):
            return make()
    except (RuntimeError, NotImplementedError):
        return make().to("meta")


def _load_torchvision(
    found: ModelName, device: str, values: bool, request: inputs.InputRequest
) -> Loaded:
    models = require("torchvision.models", "vision")
    family = models.get_model_builder(found.rest).__module__.split(".")[2]
    if device == "auto":
        # Detectors choose boxes by their values (non-maximum suppression).
        device = "cpu" if values or family == "detection" else "meta"
    options: dict[str, Any] = {"weights": None}
    if family in ("detection", "segmentation"):
        options["weights_backbone"] = None  # the default would download it
    model = _build(lambda: models.get_model(found.rest, **options), device)
    default = models.get_model_weights(found.rest).DEFAULT
    args = inputs.for_torchvision(family, default, request, device)
    return Loaded(found.rest, model, args, {}, device)


def _load_timm(found: ModelName, device: str, values: bool, request: inputs.InputRequest) -> Loaded:
    timm = require("timm", "timm")
    device = _resolve(device, values)
    model = _build(lambda: timm.create_model(found.rest, pretrained=False), device)
    config: Any = model.pretrained_cfg
    size = (2, *config.get("input_size", (3, 224, 224)))
    return Loaded(found.rest, model, inputs.plain(request, size, device), {}, device)


def _load_folder(
    found: ModelName, device: str, values: bool, request: inputs.InputRequest
) -> Loaded:
    folder = found.path or Path()
    has_weights = any(folder.glob("*.safetensors"))
    device = _resolve(device, values)
    kind, config = _kind_of(folder)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # a cache object among the outputs is no tensor
    try:
        if has_weights and device != "meta":
            how = {"use_safetensors": True, "local_files_only": True, "dtype": torch.float32}
            model = kind.from_pretrained(folder, config=config, **how).to(device)
        else:
            model = _build(lambda: kind(config), device)
    except Exception as error:
        raise CheckpointError(
            f"{shown(str(folder))} does not give a {kind.__name__}.",
            why=f"{type(error).__name__}: {error}",
            fix="fetch the folder again, or name another --device" if has_weights else None,
        ) from error
    args, kwargs = inputs.for_hf(model, request, device)
    return Loaded(found.rest, model, args, kwargs, device)


def folder_factory(
    folder: Path, shapes: Sequence[tuple[int, ...]] = (), dtype: str | None = None
) -> tuple[Callable[[], nn.Module], dict[str, Any]]:
    """What makes the model of a folder with random values, and example inputs for it by name, on the CPU.

    Args:
        folder: with a config.json.
        shapes: see `load_model`.
        dtype: see `load_model`.

    Raises:
        CheckpointError: the config cannot be used.
        ModelNameError: there is no such class, or no input is known.
    """
    kind, config = _kind_of(folder)

    def factory() -> nn.Module:
        with _quiet():
            made: nn.Module = kind(copy.deepcopy(config))
        return made

    with _quiet():
        model = _build(factory, "meta")
    _, kwargs = inputs.for_hf(model, _request(shapes, dtype), "cpu")
    if "use_cache" in inspect.signature(model.forward).parameters:
        kwargs["use_cache"] = False  # a cache object among the outputs is no tensor
    return factory, kwargs


def pretrained(kind: str, folder: Path) -> Any:
    """What a class of transformers reads from a folder; nothing is fetched, no code of the folder runs."""
    reader = getattr(require("transformers", "hf"), kind)
    return reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _kind_of(folder: Path) -> tuple[Any, Any]:
    """The class of a folder's model, and its config."""
    transformers = require("transformers", "hf")
    try:
        config = pretrained("AutoConfig", folder)
    except Exception as error:  # JSON, validation and unknown kinds each raise their own
        raise CheckpointError(
            f"{shown(str(folder / 'config.json'))} cannot be used.", why=str(error)
        ) from error
    # The class that the config names, if transformers has it as a model; else AutoModel's choice.
    named = (config.architectures or [None])[0]
    kind = getattr(transformers, named, None) if isinstance(named, str) else None
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        return kind, config
    try:
        return transformers.AutoModel._model_mapping[type(config)], config
    except KeyError:
        raise ModelNameError(
            f"transformers has no model class {shown(str(named))} for {shown(str(config.model_type))}.",
            fix="build it in a file and name FILE.py:FACTORY",
        ) from None


def _load_file(found: ModelName, device: str, values: bool, request: inputs.InputRequest) -> Loaded:
    path = found.path or Path()
    factory = getattr(execute(path), found.rest, None)
    if not callable(factory):
        raise ModelNameError(f"{shown(found.rest)} in {shown(str(path))} is not callable.")
    try:
        made = factory()
    except GraftError:
        raise
    except Exception as error:
        raise _failed(path, found.rest, error) from error
    model, args, kwargs = _unpack(made, found)
    if request.shapes:
        args, kwargs = inputs.plain(request, (), "cpu"), {}
    if not (args or kwargs):
        raise ModelNameError(
            f"{shown(str(found))} returns a model without inputs.",
            fix="give --input 1x3x32x32, or return (model, args, kwargs)",
        )
    if device == "auto":
        device = next((p.device.type for p in model.parameters()), "cpu")
    elsewhere = device  # the closure below must not see a later value
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to(elsewhere), (args, kwargs))
    return Loaded(found.rest, model.to(device), tuple(args), dict(kwargs), device)


def _unpack(made: Any, found: ModelName) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """A factory's result as (model, args, kwargs)."""
    parts = made if isinstance(made, tuple) else (made,)
    model, args, kwargs = (*parts, (), {})[:3] if len(parts) == 1 else (*parts, {})[:3]
    args = (args,) if isinstance(args, torch.Tensor) else args
    if not (
        isinstance(model, nn.Module)
        and isinstance(args, (tuple, list))
        and isinstance(kwargs, dict)
        and len(parts) <= 3
    ):
        raise ModelNameError(
            f"{shown(str(found))} returns {type(made).__name__}, not a model.",
            fix="return an nn.Module, or (model, args), or (model, args, kwargs)",
        )
    return model, tuple(args), kwargs


def execute(path: Path) -> ModuleType:
    """Run a .py file as a module, with its own folder importable as for ``python FILE.py``."""
    name = f"_graftlib_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelNameError(f"{shown(str(path))} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[name] = module  # dataclasses and pickling look a class up by its module's name
    try:
        spec.loader.exec_module(module)
    except GraftError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(path, "import", error) from error
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
    return module


def _failed(path: Path, step: str, error: BaseException) -> ModelNameError:
    return ModelNameError(
        f"{shown(str(path))} raised an error ({step}).",
        why=f"{type(error).__name__}: {error}",
        fix="run it with python first; --debug shows where it stopped",
    )


def _resolve(device: str, values: bool) -> str:
    if device != "auto":
        return device
    return "cpu" if values else "meta"


_LOADERS: dict[str, Callable[[ModelName, str, bool, inputs.InputRequest], Loaded]] = {
    "torchvision": _load_torchvision,
    "timm": _load_timm,
    "hf": _load_folder,
    "file": _load_file,
}
