"""Attach an adapter to a mapping: check everything, then make a `Graft`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from ..arguments import Positive, Seed, check
from ..documents import Count, Record, convert
from ..errors import AttachError
from ..match import Mapping
from ..match.pairing import overlap
from . import registry
from .adapter import Adapter
from .cycle import TransferCycle
from .graft import Graft
from .history import Transfer
from .missed_steps import warn_of_untrained
from .optimizer import AdapterOptimizer
from .plan import Plan, plan
from .ranks import Ranks
from .transfer import AdapterRunner

__all__ = ["attach"]


def attach(
    adapter: Adapter,
    mapping: Mapping,
    *,
    cycle: int | TransferCycle = 4,
    total_steps: int | None = None,
    optimizer: AdapterOptimizer | None = None,
    seed: int = 0,
    nan_limit: int = 10,
    record: int = False,
    sync: Literal["verify", "broadcast"] = "verify",
    verify_every: int = 1000,
    deterministic: bool | None = None,
    group: Any = None,
    on_transfer: Callable[[Transfer], object] | None = None,
) -> Graft:
    """Graft the linked parameters of two models onto each other for the time of a training.

    Nothing changes yet: the first write happens in `Graft.follow` or in the first `Graft.step`.

    Args:
        adapter: the method, for example ``graftlib_adapters.MergeNet()``.
        mapping: which parameters take part; ranks are resolved from their values now.
        cycle: transfer before every `cycle`-th optimizer step of the target, or a `TransferCycle`.
        total_steps: optimizer steps of the whole training; needed where the cycle has shares of training. With it the
            adapter's learning rate follows a cosine over the transfers, without it stays constant.
        optimizer: how the adapter itself is trained; None for ``AdapterOptimizer()``.
        seed: of the adapter's initial parameters; torch's random state is left alone, on every device.
        nan_limit: so many skipped transfers in a row (values that are not finite) raise instead of warning.
        record: keep in `Graft.history` the singular values of each written matrix before and after every `record`-th
            transfer (True: every one), for `Graft.report`. Two SVDs of each, so nothing for large layers.
        sync: with several processes (torch.distributed): ``"verify"`` sends nothing and compares fingerprints of the
            linked tensors, unless sharded, and of the adapter; ``"broadcast"`` also sends every transfer's weights
            from the group's first rank.
        verify_every: steps of the target between two comparisons, one collective call each; 0 for never, as where the
            processes train different models.
        deterministic: attention by plain products, whose sums have one order; None: where there are several processes.
        group: their process group; None for the default one.
        on_transfer: is called with the record of each transfer once it is over: the adapter was updated, or it was
            skipped. ``lambda t: wandb.log(t.scalars(), step=t.step)`` logs it.

    Warns:
        TransferWarning: a target is frozen, or the traced forward pass never reads it.

    Returns:
        A `Graft`: train inside ``with graft.step():`` or call ``graft.follow(optimizer)`` once.

    Raises:
        AttachError: an argument is of another type or out of its range, and the message names it; the mapping is
            empty; a linked tensor has no values; two links write the same elements, another attached graft writes them
            already; or shares of training are given without `total_steps`.
    """
    _check_types(adapter, mapping, optimizer)
    options = convert(
        {
            "total_steps": total_steps,
            "seed": seed,
            "nan_limit": nan_limit,
            "record": record,
            "sync": sync,
            "verify_every": verify_every,
            "deterministic": deterministic,
            "write": adapter.write,
            "signal": adapter.signal,
        },
        _Options,
        what="a call of attach",
        error=AttachError,
        fix="see help(graftlib.attach) for what each may be",
    )
    if on_transfer is not None:
        check(AttachError, on_transfer=(on_transfer, (Callable,)))
    schedule = cycle if isinstance(cycle, TransferCycle) else TransferCycle(cycle)
    if schedule.needs_total and total_steps is None:
        raise AttachError(
            f"{schedule} has shares of training, but the number of steps is not known.",
            fix="attach(..., total_steps=epochs * len(loader)), or give start and stop in steps",
        )
    ranks = Ranks(options.sync, options.verify_every, group)
    linked = plan(mapping, adapter)
    _refuse_second(linked)
    warn_of_untrained(linked)
    runner = AdapterRunner(
        adapter,
        linked,
        optimizer or AdapterOptimizer(),
        seed=seed,
        transfers=schedule.count(total_steps) if total_steps else None,
        ranks=ranks,
        deterministic=ranks.count > 1 if deterministic is None else deterministic,
    )
    return Graft(
        linked,
        runner,
        schedule,
        total_steps=total_steps,
        nan_limit=nan_limit,
        ranks=ranks,
        record=record,
        on_transfer=on_transfer,
    )


class _Options(Record):
    """What some arguments must be, and the two attributes of an adapter."""

    total_steps: Positive | None
    seed: Seed
    nan_limit: Positive
    record: Count | bool
    sync: Literal["verify", "broadcast"]
    verify_every: Count
    deterministic: bool | None
    write: Literal["replace", "probe"]
    signal: Literal["trajectory", "gradient"]


def _check_types(adapter: object, mapping: object, optimizer: object) -> None:
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
    if optimizer is not None and not isinstance(optimizer, AdapterOptimizer):
        raise AttachError(
            f"optimizer= takes an AdapterOptimizer, not {type(optimizer).__name__}.",
            why="it is how the adapter is trained; the optimizer of the model goes to graft.follow",
            fix="attach(..., optimizer=AdapterOptimizer(lr=1e-3)).follow(model_optimizer)",
        )


def _refuse_second(linked: Plan) -> None:
    for i in linked.targets:
        tensor, selection = linked.tensors[i], linked.parameters[i].selection
        for other in registry.grafts_of(tensor.model):
            for j in other.plan.targets:
                same = other.plan.tensors[j].live() is tensor.live()
                if same and overlap(selection, other.plan.parameters[j].selection):
                    raise AttachError(
                        f"'{tensor.fqn}' is written by another graft already.",
                        where={"other graft": repr(other)},
                        why="two adapters would undo each other's writes",
                        fix="detach the other graft first, or put all links into one mapping",
                    )
