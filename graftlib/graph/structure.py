"""The one way to copy a model: its structure again, with other tensors.

Every tensor of the second model is what a function makes of the first one's: a meta tensor (no memory), an alias, a
tensor of its own. The user's model, its training flags and its tensors are not touched; tensors that were one object
stay one object. What refuses to be copied (a lock, an open file, a generator) is shared, and only that.
"""

from __future__ import annotations

import copy
import copyreg
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import GraftError, TraceError
from .normal import PLAIN_TENSORS, named_tensors
from .skeleton import modules_of
from .tensors import replaced, tensor_leaves

__all__ = [
    "Call",
    "Intercepted",
    "alias",
    "copy_value",
    "duplicate",
    "like_meta",
    "of_size",
    "own",
    "rebuild",
    "refuse_quantised",
    "shell",
    "unwrap",
]

T = TypeVar("T")
Change = Callable[[Tensor], Tensor]
Call = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
# What `deepcopy` gives back as it is.
_ATOMS = frozenset(
    {
        *(str, bytes, int, float, bool, complex, type(None)),
        *(type, FunctionType, BuiltinFunctionType, torch.dtype, torch.device),
    }
)
_META = torch.device("meta")  # as an object: a name would be read each time
_CONTAINERS = frozenset((dict, OrderedDict, set, tuple))


def unwrap(model: nn.Module, error: type[GraftError] = TraceError) -> nn.Module:
    """The user's own module inside DataParallel, DistributedDataParallel and `torch.compile`, however nested.

    Args:
        model: any module.
        error: what is raised: the family's error of the verb that was given the model.

    Raises:
        GraftError: (as `error`) the module, or one inside of it, is a ScriptModule.
    """
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            break
    scripted = [fqn for fqn, m in modules_of(model) if isinstance(m, torch.jit.ScriptModule)]
    if scripted:
        name = f"'{scripted[0]}'" if scripted[0] else "the model"
        raise error(
            f"{name} is a ScriptModule, whose code cannot be seen: pass the eager module that it was made from."
        )
    return model


def refuse_quantised(model: nn.Module) -> None:
    """A model with quantised weights cannot be run in double precision.

    Raises:
        GraftError: modules are quantised; the message names them.
    """
    names: list[str] = []
    for fqn, module in model.named_modules():
        if _is_quantised(module) and not any(fqn.startswith(f"{name}.") for name in names):
            names.append(fqn)
    if names:
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        raise GraftError(
            f"{type(model).__name__} cannot be checked: {len(names)} of its modules are quantised.",
            where={"modules": ", ".join(f"'{name}'" for name in names[:6]) + more},
            why="a check runs the model in double precision, which quantised weights do not know",
            fix="check and edit the model before it is quantised",
        )


def _is_quantised(module: nn.Module) -> bool:
    home = type(module).__module__
    # `FloatFunctional` lives among the quantised modules and computes with floats.
    if home.startswith("torch.") and "quantized" in home and "Float" not in type(module).__name__:
        return True
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(
        t.is_quantized or type(t).__module__.startswith(("torchao.", "bitsandbytes."))
        for t in tensors
    )


def rebuild(model: nn.Module, change: Change) -> nn.Module:
    """`model` again, in eval mode; otherwise as `duplicate`."""
    twin = duplicate(model, change)
    if not all(_is_in_eval(module) for _, module in modules_of(twin)):
        twin.eval()  # its result is the module by convention, which not all modules keep
    return twin


def _is_in_eval(module: nn.Module) -> bool:
    """Whether `eval` would change nothing: the flag is set, and setting flags is all that it does."""
    fields = module.__dict__
    kind = type(module)
    own = "eval" in fields or "train" in fields
    plain = kind.eval is nn.Module.eval and kind.train is nn.Module.train
    return plain and not own and fields.get("training") is False


def shell(model: nn.Module) -> nn.Module:
    """`model` again, in eval mode, over the very same tensors: what a run leaves in a module is left there."""
    return rebuild(model, lambda tensor: tensor)


def duplicate(model: nn.Module, change: Change) -> nn.Module:
    """`model` again, training flags too, with `change` applied once to every tensor that it holds.

    Raises:
        TraceError: a parameter is not initialised yet (a lazy module that has never run).
    """
    memo: dict[int, Any] = {}
    modules = list(modules_of(model))
    for fqn, tensor in named_tensors(model, modules).items():
        if nn.parameter.is_lazy(tensor):
            raise TraceError(
                f"'{fqn}' is not initialised yet.",
                why="a lazy module learns its shapes from its first forward pass",
                fix="run the model once first",
            )
        memo[id(tensor)] = change(tensor)
    _copy_plain_modules((module for _, module in reversed(modules)), memo)
    copied: nn.Module | None = memo.get(id(model))
    return copied if copied is not None else _copy_module(model, change, memo)


def _copy_plain_modules(modules: Iterable[nn.Module], memo: dict[int, Any]) -> None:
    """Note in `memo` the copy of each module that holds tensors, modules and plain values alone.

    `deepcopy` comes to the same, at ten times the cost, and copies all others. Children come before their parents.
    """
    for module in modules:
        kind: Any = type(module)
        if not _copied_by_fields(kind):
            continue
        fields = _fields_of(module)
        try:
            for name, value in fields.items():
                held = type(value)
                if held in _ATOMS:
                    continue
                empty = held in _CONTAINERS and not value  # as most of a module's are
                fields[name] = held() if empty else _plain_copy(value, memo)
        except LookupError:
            continue
        memo[id(module)] = twin = kind.__new__(kind)
        twin.__dict__.update(fields)


@functools.cache
def _copied_by_fields(kind: type) -> bool:
    """Whether `deepcopy` of a module of this class makes another one with copies of all its attributes."""
    hooks = ("__reduce__", "__reduce_ex__", "__getstate__", "__new__")
    if hasattr(kind, "__deepcopy__") or any(
        getattr(kind, hook, None) is not getattr(nn.Module, hook, None) for hook in hooks
    ):
        return False
    # Those of torch's own modules fill in what older versions did not have.
    return str(getattr(getattr(kind, "__setstate__", None), "__module__", "")).startswith(
        "torch.nn.modules."
    )


def _plain_copy(value: Any, memo: Mapping[int, Any]) -> Any:
    """A copy of a dict, set or tuple of plain values, modules and tensors that `memo` knows.

    Raises:
        LookupError: it holds something else.
    """
    kind = type(value)
    if kind in (dict, OrderedDict) and all(type(key) is str for key in value):
        return kind((k, v if type(v) in _ATOMS else memo[id(v)]) for k, v in value.items())
    if kind in (set, tuple) and _ATOMS.issuperset(map(type, value)):
        return kind(value)
    raise LookupError


def copy_value(value: T, change: Change) -> T:
    """A copy of any object (an argument of the forward pass) with `change` applied to its tensors.

    Raises:
        TraceError: something in it refuses to be copied.
    """
    tensors = [change(tensor) for tensor in tensor_leaves(value)]
    with _on_copy(change):  # for those of a cache, which are no inputs
        copied: T = replaced(value, tensors)
    return copied


def like_meta(tensor: Tensor) -> Tensor:
    """A meta tensor of the same shape, strides, dtype, gradient flag; a Parameter stays one."""
    if type(tensor) in PLAIN_TENSORS and tensor.layout is torch.strided:
        size, stride = tensor.shape, tensor.stride()
        meta = torch.empty_strided(size, stride, dtype=tensor.dtype, device=_META)
    else:
        meta = torch.empty_like(tensor.detach(), device="meta")
    return _keep_kind(tensor, meta)


def alias(tensor: Tensor) -> Tensor:
    """Another tensor object over the same memory, for a parameter; a clone for anything else.

    Buffers are written by many forward passes. A parameter is not, and may be large; its alias is a new object
    so that a forward pass that assigns to ``.data`` does not reach the user's.
    """
    if isinstance(tensor, nn.Parameter):
        return _keep_kind(tensor, tensor.detach())
    return _keep_kind(tensor, tensor.detach().clone())


def own(tensor: Tensor) -> Tensor:
    """A tensor of its own with the same values, without history; a Parameter stays one."""
    if type(tensor) in PLAIN_TENSORS or not tensor.is_leaf:
        return _keep_kind(tensor, tensor.detach().clone())
    copied: Tensor = copy.deepcopy(tensor)  # a subclass knows best what it is made of
    return copied


def of_size(tensor: Tensor, shape: Sequence[int], *, meta: bool) -> Tensor:
    """A tensor of another shape, of the same kind and dtype: its first units, every unit as often as it goes.

    With `meta` it has no values.
    """
    if meta:
        return _keep_kind(tensor, torch.empty(tuple(shape), dtype=tensor.dtype, device=_META))
    values = tensor.detach()
    for axis, size in enumerate(shape):
        if size != values.shape[axis]:
            places = torch.arange(size, device=values.device) % values.shape[axis]
            values = values.index_select(axis, places)
    return _keep_kind(tensor, values)


def _keep_kind(like: Tensor, tensor: Tensor) -> Tensor:
    kind = type(like)  # `isinstance` of a parameter runs as Python code of torch
    if kind is nn.Parameter or (kind is not Tensor and isinstance(like, nn.Parameter)):
        # A view of what was made in inference mode can have no gradient.
        tensor = nn.Parameter(tensor, like.requires_grad and not tensor.is_inference())
    tensor.__dict__.update(like.__dict__)
    return tensor


class Intercepted(TorchFunctionMode):
    """While entered, what is called of torch is given to a function, whose result takes its place.

    Args:
        call: (function, args, kwargs) -> its result.
    """

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._call = call

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self._call(func, args, kwargs or {})


def _on_copy(change: Change) -> Intercepted:
    """Answers `copy.deepcopy` of a tensor that the memo does not know, wherever it hides."""

    def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **kwargs)
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = change(tensor)
        return memo[id(tensor)]

    return Intercepted(call)


def _copy_module(model: nn.Module, change: Change, memo: dict[int, Any]) -> nn.Module:
    known = dict(memo)
    try:
        with _on_copy(change):
            copied: nn.Module = copy.deepcopy(model, memo)
        own = {id(module) for _, module in modules_of(copied)}
        if own.isdisjoint(id(module) for _, module in modules_of(model)):
            return copied
    except Exception:
        pass
    # Something in it refuses to be copied: a lock, a file, a generator. Share only that, and no module.
    return _copy_attributes(model, change, known)


def _copy_attributes(model: nn.Module, change: Change, memo: dict[int, Any]) -> nn.Module:
    modules = list(model.modules())
    for module in modules:
        memo[id(module)] = module.__class__.__new__(module.__class__)
    for module in modules:
        twin = memo[id(module)].__dict__
        twin.update((k, _copy_or_share(v, change, memo)) for k, v in _fields_of(module).items())
    copied: nn.Module = memo[id(model)]
    return copied


def _fields_of(module: nn.Module) -> dict[str, Any]:
    """The attributes that its copy has, too: not that of `module.compile()`, which would run the original."""
    fields = module.__dict__.copy()
    fields.pop("_compiled_call_impl", None)
    return fields


def _copy_or_share(value: Any, change: Change, memo: dict[int, Any]) -> Any:
    """A deep copy of `value` in which no more is shared than what refuses to be copied."""
    if id(value) in memo:
        return memo[id(value)]
    known = dict(memo)
    try:
        with _on_copy(change):
            return copy.deepcopy(value, memo)
    except Exception:
        memo.clear()
        memo.update(known)
    if type(value) in (dict, OrderedDict):
        twin = memo[id(value)] = type(value)()
        twin.update((key, _copy_or_share(item, change, memo)) for key, item in value.items())
        return twin
    if type(value) is list:
        twin = memo[id(value)] = []
        twin.extend(_copy_or_share(item, change, memo) for item in value)
        return twin
    if type(value) in (tuple, set):
        return type(value)(_copy_or_share(item, change, memo) for item in value)
    return _copy_fields(value, change, memo)


def _copy_fields(value: Any, change: Change, memo: dict[int, Any]) -> Any:
    """A plain object with its fields copied or shared one by one; anything else is shared itself."""
    try:
        make, arguments, *rest = value.__reduce_ex__(4)
    except Exception:
        return value
    state: Any = rest[0] if rest else None
    plain = make is copyreg.__newobj__ and isinstance(state, dict)  # type: ignore[attr-defined]
    if not plain or not hasattr(value, "__dict__") or any(rest[1:]):
        return value
    twin = memo[id(value)] = make(*arguments)
    twin.__dict__.update({name: _copy_or_share(item, change, memo) for name, item in state.items()})
    return twin
