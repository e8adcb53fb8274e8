"""Attach an adapter to a mapping: check everything, then make a `Graft`."""

from __future__ import annotations

import math
from typing import Any, Literal

from ..errors import AttachError, nearest
from ..match import Mapping
from . import live
from .adapter import Adapter
from .cycle import TransferCycle
from .fields import shown
from .graft import Graft
from .plan import Plan, overlap, plan
from .ranks import Ranks
from .silence import warn_of_unlearnable
from .transfer import Transferor

__all__ = ["attach"]

LARGEST = 1e30  # of learning rates and the like


def attach(
    adapter: Adapter,
    mapping: Mapping,
    *,
    cycle: int | TransferCycle = 4,
    total_steps: int | None = None,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    clip: float = 50.0,
    seed: int = 0,
    nan_limit: int = 10,
    record: int = False,
    sync: Literal["verify", "broadcast"] = "verify",
    verify_every: int = 1000,
    deterministic: bool | None = None,
    group: Any = None,
) -> Graft:
    """Graft the linked parameters of two models onto each other for the time of a training.

    Nothing changes yet: the first write happens in `Graft.follow` or in the first `Graft.step`.

    Args:
        adapter: the method, for example ``graftlib_adapters.MergeNet()``.
        mapping: which parameters take part; ranks are resolved from their values now.
        cycle: transfer before every `cycle`-th optimizer step of the target, or a `TransferCycle`.
        total_steps: optimizer steps of the whole training; needed where the cycle has shares of training. With it the
            adapter's learning rate follows a cosine over the transfers, without it stays constant.
        lr: learning rate of the adapter's own AdamW.
        weight_decay: of the same, on its matrices; norms, biases and scalars do not decay.
        clip: largest norm of the adapter's gradient at one update.
        seed: of the adapter's initial parameters; torch's random state is left alone, on every device.
        nan_limit: so many skipped transfers in a row (values that are not finite) raise instead of warning.
        record: keep in `Graft.history` the singular values of each receiver before and after every `record`-th
            transfer (True: every one), for `Graft.report`. An SVD of each receiver, so nothing for large layers.
        sync: with several processes (torch.distributed): ``"verify"`` sends nothing and compares fingerprints of the
            linked tensors, unless sharded, and of the adapter; ``"broadcast"`` also sends every transfer's weights
            from the group's first rank.
        verify_every: steps of the target between two comparisons, one collective call each; 0 for never, as where the
            processes train different models.
        deterministic: attention by plain products, whose sums have one order; None: where there are several processes.
        group: their process group; None for the default one.

    Warns:
        TransferWarning: a target is frozen, or the traced forward pass never reads it.

    Returns:
        A `Graft`: train inside ``with graft.step():`` or call ``graft.follow(optimizer)`` once.

    Raises:
        AttachError: an argument is of another type or out of its range, and the message names it; the mapping is
            empty; a linked tensor has no values; two links write the same elements, another live graft writes them
            already; or shares of training are given without `total_steps`.
    """
    if not isinstance(adapter, Adapter):
        raise AttachError(
            f"attach takes an Adapter first, not {type(adapter).__name__}.",
            fix="attach(MergeNet(), mapping), with MergeNet from graftlib_adapters",
        )
    if not isinstance(mapping, Mapping):
        raise AttachError(
            f"attach takes a Mapping second, not {type(mapping).__name__}.",
            fix="mapping = Mapping(trace(source, args), trace(target, args)).link('layer', 'layer')",
        )
    for name, value, choices in (
        ("write", adapter.write, ("replace", "probe")),
        ("signal", adapter.signal, ("trajectory", "gradient")),
    ):
        if value not in choices:
            raise AttachError(
                f"the adapter's {name}={value!r} is not a choice.",
                near=nearest(str(value), choices),
                fix=f"{name} is one of " + ", ".join(map(repr, choices)),
            )
    for name, number, low in (
        ("lr", lr, 0.0),
        ("weight_decay", weight_decay, 0.0),
        ("clip", clip, None),
    ):
        _check_number(name, number, low)
    _check_int("seed", seed, -(2**63), 2**64 - 1)
    _check_int("nan_limit", nan_limit, 1)
    if total_steps is not None:
        _check_int("total_steps", total_steps, 1)
    if deterministic is not None and not isinstance(deterministic, bool):
        raise AttachError(
            f"deterministic={deterministic!r} is none of True, False and None.",
            fix="deterministic=None: where there are several processes",
        )
    schedule = cycle if isinstance(cycle, TransferCycle) else TransferCycle(cycle)
    if schedule.needs_total and total_steps is None:
        raise AttachError(
            f"{schedule} has shares of training, but the number of steps is not known.",
            fix="attach(..., total_steps=epochs * len(loader)), or give start and stop in steps",
        )
    ranks = Ranks(sync, verify_every, group)
    _check(ranks, record)
    made = plan(mapping, adapter)
    _refuse_second(made)
    warn_of_unlearnable(made)
    transferor = Transferor(
        adapter,
        made,
        lr=lr,
        weight_decay=weight_decay,
        clip=clip,
        seed=seed,
        transfers=schedule.count(total_steps) if total_steps else None,
        ranks=ranks,
        deterministic=ranks.count > 1 if deterministic is None else deterministic,
    )
    return Graft(
        made,
        transferor,
        schedule,
        total_steps=total_steps,
        nan_limit=nan_limit,
        ranks=ranks,
        record=record,
    )


def _check_number(name: str, value: object, low: float | None) -> None:
    """A finite number of at least `low`; None: above zero, and infinity is one."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST:
        if low is not None and value >= low:
            return
        if low is None and value > 0:
            return
    if low is None and value == math.inf:
        return
    wanted = "above 0" if low is None else f"of at least {low:g}"
    raise AttachError(
        f"{name}={shown(value)} is not a finite number {wanted}.", fix=f"attach(..., {name}=...)"
    )


def _check_int(name: str, value: object, low: int, high: int = 2**53) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise AttachError(
            f"{name}={shown(value)} is not an int from {low} to {high}.",
            fix=f"attach(..., {name}=...)",
        )


def _check(ranks: Ranks, record: int) -> None:
    if ranks.sync not in ("verify", "broadcast"):
        raise AttachError(
            f"sync={ranks.sync!r} is no way to keep processes alike.",
            near=nearest(str(ranks.sync), ["verify", "broadcast"]),
            fix="sync='verify' or sync='broadcast'",
        )
    for name, value in (("verify_every", ranks.verify_every), ("record", record)):
        if not isinstance(value, int) or value < 0:
            raise AttachError(
                f"{name}={value!r} must be an int of at least 0.",
                fix=f"{name}=0 for never, or every how many",
            )


def _refuse_second(made: Plan) -> None:
    for i in made.receivers:
        parameter, tensor = made.parameters[i], made.tensors[i]
        for other in live.grafts_of(tensor.model):
            for j in other.plan.receivers:
                same = other.plan.tensors[j].live() is tensor.live()
                if same and overlap(parameter, other.plan.parameters[j]):
                    raise AttachError(
                        f"'{tensor.fqn}' is written by another graft already.",
                        where={"other graft": repr(other)},
                        why="two adapters would undo each other's writes",
                        fix="detach the other graft first, or put all links into one mapping",
                    )
