"""The state of a graft: a record of plain data and tensors, and what must be true of one from outside.

In: a dictionary that `torch.load(..., weights_only=True)` may have read. Out: a `Restored`, from which a run goes on to
the bit. Always true: a state is checked whole, types and bounds by its record and the rest against the graft, and the
module and optimizer that it makes are built aside; one that does not fit is refused before anything changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from msgspec import Meta
from msgspec.structs import replace as replace_fields
from torch import Tensor, bfloat16, dtype, float16, float32, float64, nn, strided
from torch.optim import AdamW

from ..documents import Count, FrozenRecord, convert, to_plain
from ..errors import CheckpointError, nearest, shown
from .history import Transfer
from .linked import LinkedTensor
from .optimizer import NotNegative
from .plan import Plan
from .transfer import AdapterRunner, PendingTransfer

__all__ = ["FORMAT", "Counts", "Matrix", "Restored", "Resume", "State", "restored", "state_of"]

FORMAT: Literal[3] = 3
_FLOATS = (float16, bfloat16, float32, float64)
FIX = "resume from the checkpoint before it"
Beta = Annotated[float, Meta(ge=0, lt=1)]


class Matrix(FrozenRecord, frozen=True):
    """One linked matrix: its shape, and the rank that it was given when the graft was attached."""

    rows: Count
    columns: Count
    rank: Annotated[int, Meta(ge=1)] | None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank > min(self.rows, self.columns):
            raise ValueError("the rank is above that of the whole matrix")


class Counts(FrozenRecord, frozen=True):
    """Where a graft stands.

    Attributes:
        step: optimizer steps of the target.
        decided: the step before which it was last decided whether to transfer; -1 for none.
        updates: of the adapter.
        skipped: transfers.
        skipped_in_a_row: the last of these.
    """

    step: Count
    decided: Annotated[int, Meta(ge=-1)]
    updates: Count
    skipped: Count
    skipped_in_a_row: Count

    def __post_init__(self) -> None:
        if self.decided > self.step or self.updates > self.step + 1:
            raise ValueError("there are more decisions or updates than steps")
        if self.skipped_in_a_row > self.skipped:
            raise ValueError("more are skipped in a row than in all")


class Moments(FrozenRecord, frozen=True):
    """Of one parameter, as AdamW keeps them."""

    step: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Group(FrozenRecord, frozen=True):
    """One group of parameters of AdamW, by their numbers."""

    params: list[Count]
    lr: NotNegative
    betas: tuple[Beta, Beta]
    eps: NotNegative
    weight_decay: NotNegative


class Optimizer(FrozenRecord, frozen=True):
    """The adapter's AdamW."""

    state: dict[int, Moments]
    param_groups: list[Group]


class Resume(FrozenRecord, frozen=True):
    """A pending transfer: what the adapter read, and what is known already of what training made of it.

    Attributes:
        inputs: one per linked matrix.
        signals: name of a written tensor -> its signal.
        transfer: the record of the history.
    """

    inputs: list[Tensor]
    signals: dict[str, Tensor]
    transfer: Transfer


class State(FrozenRecord, frozen=True):
    """Everything that a resumed run needs beside the models' and optimizers' own state."""

    format: Literal[3]
    matrices: dict[str, Matrix]
    links: list[str]
    counts: Counts
    stepped: list[str]
    module: dict[str, Tensor]
    optimizer: Optimizer | None
    history: list[Transfer]
    resume: Resume | None

    def to_dict(self) -> dict[str, Any]:
        """Dicts, lists, plain values, and copies of the tensors, so that training on does not change them."""
        plain: dict[str, Any] = deepcopy(to_plain(self))
        return plain


def state_of(
    plan: Plan,
    runner: AdapterRunner,
    counts: Counts,
    stepped: Iterable[LinkedTensor],
    history: list[Transfer],
    pending: PendingTransfer | None,
    resume: Resume | None,
) -> State:
    """The state of a graft.

    Args:
        plan: of the graft.
        runner: likewise.
        counts: likewise.
        stepped: those of the counted tensors that were stepped since the last complete step.
        history: the last record is that of the pending transfer, where there is one.
        pending: the transfer that will be redone from its inputs.
        resume: one from a loaded state, not redone yet.
    """
    module = {name: value.detach() for name, value in runner.module.state_dict().items()}
    if pending is not None:
        module |= {name: value for name, value in pending.buffers.items() if name in module}
        signals = {
            t.name: t.whole(w.signal) for t, w in pending.writes.items() if w.signal is not None
        }
        *history, transfer = history
        resume = Resume(inputs=pending.inputs, signals=signals, transfer=transfer)
    return State(
        format=FORMAT,
        matrices={
            one.name: Matrix(rows=one.shape[0], columns=one.shape[1], rank=one.rank)
            for one in plan.matrices
        },
        links=[link.name for link in plan.links],
        counts=counts,
        stepped=sorted(tensor.name for tensor in stepped),
        module=module,
        optimizer=None if runner.optimizer is None else _state_of_optimizer(runner.optimizer),
        history=list(history),
        resume=resume,
    )


def _state_of_optimizer(optimizer: AdamW) -> Optimizer:
    state = optimizer.state_dict()
    return Optimizer(
        state={i: Moments(**moments) for i, moments in state["state"].items()},
        param_groups=[
            Group(**{name: group[name] for name in Group.__struct_fields__})
            for group in state["param_groups"]
        ],
    )


@dataclass(frozen=True)
class Restored:
    """A state that fits a graft, with the plan, the module and the optimizer that it makes."""

    state: State
    plan: Plan
    module: nn.Module
    optimizer: AdamW | None
    stepped: list[LinkedTensor]


def restored(values: object, plan: Plan, runner: AdapterRunner) -> Restored:
    """Everything that `values` hold, checked and copied; nothing is changed.

    Raises:
        CheckpointError: see `Graft.load_state_dict`.
    """
    written_as = values.get("format") if isinstance(values, dict) else type(values).__name__
    if type(written_as) is not int or written_as != FORMAT:
        older = type(written_as) is int and 0 < written_as < FORMAT
        raise CheckpointError(
            f"this is not a graft's state of format {FORMAT} (but {shown(written_as)}).",
            why="an earlier graftlib wrote it, whose transfers were other ones" if older else None,
            fix="resume with the version that wrote it, or load models and optimizers alone and attach a new graft"
            if older
            else "pass what graft.state_dict() returned",
        )
    what = "the graft's state is damaged: it"
    state = convert(values, State, what=what, error=CheckpointError, fix=FIX)
    plan = _plan(plan, state)
    stepped = _named("stepped", state.stepped, plan)
    try:
        module, optimizer = runner.prepare(plan)
    except Exception as error:
        raise CheckpointError(
            "the ranks in the state's 'matrices' are none that the adapter can be built with.",
            where={"matrices": shown(state.matrices)},
            why=f"{type(error).__name__}: {error}",
            fix="construct the adapter with the arguments it was saved with",
        ) from error
    module.load_state_dict(_module(module.state_dict(), state.module))
    if (optimizer is None) != (state.optimizer is None):
        raise _refusal("optimizer", state.optimizer, "what this adapter's optimizer keeps")
    if optimizer is not None and state.optimizer is not None:
        optimizer.load_state_dict(_optimizer(optimizer, state.optimizer))
    resume = _resume(plan, state.resume, runner.dtype_of_weights())
    return Restored(replace_fields(state, resume=resume), plan, module, optimizer, stepped)


def _plan(plan: Plan, state: State) -> Plan:
    """The graft's plan with the saved ranks."""
    mine = {matrix.name: matrix.shape for matrix in plan.matrices}
    saved = {name: (matrix.rows, matrix.columns) for name, matrix in state.matrices.items()}
    if mine != saved or state.links != [link.name for link in plan.links]:
        odd = [name for name in {**mine, **saved} if mine.get(name) != saved.get(name)]
        rows: dict[str, object] = {
            shown(n): f"here {mine.get(n, 'absent')}, saved {saved.get(n, 'absent')}"
            for n in odd[:8]
        }
        raise CheckpointError(
            "the state belongs to a graft with other links or shapes (its 'matrices' and 'links').",
            where=rows or {"links": f"saved {shown(state.links)}"},
            near=[name for n in odd[:3] for name in nearest(n, list(mine), n=1)],
            fix="attach to the mapping that the state was saved with, then load",
        )
    # Ranks that came from a share of the energy stay what they were when the saved graft was attached.
    matrices = [replace(each, rank=state.matrices[each.name].rank) for each in plan.matrices]
    return replace(plan, matrices=tuple(matrices))


def _named(place: str, names: Iterable[str], plan: Plan) -> list[LinkedTensor]:
    """The written tensors of these names."""
    by_name = {linked.name: linked for linked in plan.written}
    for name in names:
        if name not in by_name:
            raise _refusal(place, name, "a name of this graft")
    return [by_name[name] for name in names]


def _module(expected: dict[str, Tensor], saved: dict[str, Tensor]) -> dict[str, Tensor]:
    odd = sorted(expected.keys() ^ saved.keys())
    if odd:
        raise CheckpointError(
            "the state's 'module' belongs to an adapter with other parameters.",
            where={"differing": ", ".join(map(shown, odd[:8]))},
            fix="construct the adapter with the arguments it was saved with",
        )
    return {
        name: _tensor(f"module[{name!r}]", saved[name], one.shape, one.dtype)
        for name, one in expected.items()
    }


def _optimizer(optimizer: AdamW, saved: Optimizer) -> dict[str, Any]:
    """The optimizer's own state_dict, with the moments and the numbers of the saved one."""
    fresh = optimizer.state_dict()
    groups = fresh["param_groups"]
    if [group["params"] for group in groups] != [group.params for group in saved.param_groups]:
        raise _refusal(
            "optimizer.param_groups", saved.param_groups, "the groups of this adapter's parameters"
        )
    for group, values in zip(groups, saved.param_groups, strict=True):
        group.update(to_plain(values), betas=values.betas)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    for i, moments in saved.state.items():
        if not 0 <= i < len(parameters):
            raise _refusal("optimizer.state", i, "the number of a parameter")
        fresh["state"][i] = _moments(f"optimizer.state[{i}]", moments, parameters[i])
    return fresh


def _moments(place: str, saved: Moments, parameter: Tensor) -> dict[str, Tensor]:
    moments = {"step": _tensor(f"{place}.step", saved.step, (), None)}
    for name in ("exp_avg", "exp_avg_sq"):
        value = getattr(saved, name)
        moments[name] = _tensor(f"{place}.{name}", value, parameter.shape, parameter.dtype)
    for name in ("step", "exp_avg_sq"):
        if bool((moments[name] < 0).any()):
            raise _refusal(f"{place}.{name}", moments[name], "free of negative values")
    return moments


def _resume(plan: Plan, saved: Resume | None, kind: dtype) -> Resume | None:
    if saved is None:
        return None
    if len(saved.inputs) != len(plan.matrices):
        raise _refusal("resume.inputs", saved.inputs, f"a list of {len(plan.matrices)} tensors")
    shapes = [linked.live().shape for linked in _named("resume.signals", saved.signals, plan)]
    return replace_fields(
        saved,
        inputs=[
            _tensor(f"resume.inputs[{i}]", value, matrix.shape, kind)
            for i, (value, matrix) in enumerate(zip(saved.inputs, plan.matrices, strict=True))
        ],
        # A signal may be anything: the update from one that is not finite is skipped, as it would have been.
        signals={
            name: _tensor(f"resume.signals[{name!r}]", value, shape, None, finite=False)
            for (name, value), shape in zip(saved.signals.items(), shapes, strict=True)
        },
    )


def _tensor(
    place: str, value: Tensor, shape: Iterable[int], kind: dtype | None, *, finite: bool = True
) -> Tensor:
    """A copy of a dense tensor of this shape and dtype (None: any that computes), every value of it finite."""
    shape = tuple(shape)
    if (
        value.layout is not strided
        or value.device.type == "meta"
        or tuple(value.shape) != shape
        or (value.dtype != kind if kind is not None else value.dtype not in _FLOATS)
    ):
        raise _refusal(place, value, f"a tensor of shape {shape} and dtype {kind or 'of floats'}")
    if finite and not bool(value.isfinite().all()):
        raise _refusal(place, value, "finite: some values are inf or nan")
    copy: Tensor = value.detach().clone()
    return copy


def _refusal(place: str, value: object, wanted: str) -> CheckpointError:
    there = (
        f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
        if isinstance(value, Tensor)
        else shown(value)
    )
    return CheckpointError(
        f"the graft's state is damaged: {place} is not {wanted}.",
        where={"there is": there},
        fix=FIX,
        place=place,
    )
