"""A graft: it counts the host's optimizer steps, writes before some of them, updates the adapter after those.

In: a `Plan`, an `AdapterRunner`, and a training loop that stays the user's. Out: rewritten weights, a history, and
after `detach` nothing. Always true: nothing is inserted into a forward pass; parameter objects and state_dict keys
never change; a write that no optimizer step has consumed can be taken back to the bit.

The life of a transfer:

    write        the adapter reads all linked weights and rewrites the targets                -> pending
    before step  a probe is taken back; the gradient is kept where it is the signal
    after step   what the step made of each write is its signal                                -> consumed
    update       all signals are in: one update of the adapter                                 -> done
"""

from __future__ import annotations

import math
import os
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from ..arguments import check
from ..disk import write_whole
from ..errors import AttachError, CheckpointError, GraftError, TransferError, optional
from . import files, registry
from .cycle import TransferCycle
from .followed import Once, check_optimizers
from .history import Transfer
from .joined import JoinedGraph, joined, spliced
from .linked import AbandonedWrites, LinkedTensor, TransferWarning, Write, in_place, owns
from .missed_steps import MissedSteps
from .plan import Plan
from .ranks import Ranks
from .report import Reported, page
from .state import Counts, Resume, restored, state_of
from .step_counter import StepCounter
from .transfer import AdapterRunner, PendingTransfer

__all__ = ["Graft", "TransferWarning"]


class Graft:
    """An adapter attached to two models. Made by `attach`; see there for the arguments.

    Attributes:
        history: one `Transfer` for each, oldest first; the record of one that is pending is replaced once the adapter
            was updated from it.
        skipped: how many transfers were skipped because something was not finite.
        fact_names: what the numbers are called that the adapter reports of a link, in order, such as omega.
    """

    def __init__(
        self,
        plan: Plan,
        runner: AdapterRunner,
        cycle: TransferCycle,
        *,
        total_steps: int | None,
        nan_limit: int,
        ranks: Ranks,
        record: int,
        on_transfer: Callable[[Transfer], object] | None = None,
    ) -> None:
        self.plan = plan
        self.cycle = cycle
        self.total_steps = total_steps
        self.nan_limit = nan_limit
        self.ranks = ranks
        self.record = int(record)
        self.on_transfer = on_transfer
        self.history: list[Transfer] = []
        self.skipped = 0
        self._steps = StepCounter(plan.counted)
        self._verified = 0  # the step at which the ranks were compared last
        self._closures = False
        self._once: Once | None = None
        self.fact_names = runner.fact_names()
        self._runner: AdapterRunner | None = runner
        self._pending: PendingTransfer | None = None
        self._decided = -1  # the step before which it was last decided whether to transfer
        self._updates = 0
        self._skipped_in_a_row = 0
        self._followed: dict[Optimizer, list[tuple[LinkedTensor, nn.Parameter]]] = {}
        self._handles: list[RemovableHandle] = []
        self._resume: Resume | None = None
        self._inside = False  # of `with graft.step():`
        # Between its two hooks; what it steps inside is its own affair.
        self._stepping: Optimizer | None = None
        self._missed = MissedSteps(plan)
        self._abandoned = AbandonedWrites()
        weakref.finalize(self, self._abandoned.settle).atexit = False
        registry.register(self)

    # ------------------------------------------------------------------------------------------ the two ways to train

    @contextmanager
    def step(self, *, closure: bool = False) -> Iterator[Graft]:
        """Enclose forward, backward and optimizer step: entering writes where a transfer is due, leaving updates.

        It may also enclose less than one optimizer step, as gradient accumulation does: the write then stays until an
        optimizer has consumed it. The steps of whatever optimizer are counted inside the ``with`` block only, through a
        pair of torch's global optimizer hooks that stays for the rest of the process and holds no graft.

        Args:
            closure: accept that the loss is evaluated inside ``optimizer.step``, see `follow`.

        Raises:
            AttachError: the graft follows an optimizer already, was detached, or is inside another ``step()``; or
                `torch.inference_mode` is on.
            TransferError: too many transfers in a row were not finite, or a closure was passed to an optimizer.
        """
        self._running()
        if self._followed:
            raise AttachError(
                "this graft follows an optimizer, so step() would count every step twice.",
                fix="use either graft.follow(optimizer) or `with graft.step():`",
            )
        if self._inside:
            raise AttachError(
                "this graft is inside `with graft.step():` already.",
                why="every optimizer step would be counted twice",
                fix="open it once around forward, backward and optimizer.step()",
            )
        self._ready_to_train("step", closure)
        self._write_if_due()
        self._missed.watch()
        self._inside, self._stepping = True, None
        try:
            yield self
        finally:
            self._inside = False
        self._advance()

    def follow(self, *optimizers: Optimizer, closure: bool = False) -> Graft:
        """Let optimizer hooks do everything: after this call the training loop does not change at all.

        The write for the next step takes place at the end of the step before it, and the first one here. The hooks keep
        the graft alive until `detach`.

        Args:
            optimizers: those that step the written parameters; the target's steps are the ones counted. A step is
                complete when every optimizer that owns a linked target parameter has stepped at least once.
            closure: accept that ``optimizer.step`` is handed a closure that evaluates the loss, once and before the
                update, as some trainers do. LBFGS stays refused.

        Returns:
            The graft itself.

        Raises:
            AttachError: an optimizer owns no written parameter, a written parameter has no optimizer, an optimizer
                needs a closure, the graft follows optimizers already or is inside ``step()``, or
                `torch.inference_mode` is on.
        """
        self._running()
        if self._inside:
            raise AttachError(
                "this graft is inside `with graft.step():`, which counts the optimizer's steps already.",
                fix="use either graft.follow(optimizer) or `with graft.step():`",
            )
        if self._followed:
            raise AttachError(
                "this graft follows its optimizers already.",
                fix="call follow once, with all of them",
            )
        check_optimizers(optimizers, self.plan)
        self._ready_to_train("follow", closure)
        for optimizer in optimizers:
            self._followed[optimizer] = [
                (t, t.live()) for t in self.plan.written if owns(optimizer, t)
            ]
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._follow_step))
        self._write_if_due()
        self._missed.watch()
        return self

    # -------------------------------------------------------------------------------------------------------- undoing

    @contextmanager
    def settled(self) -> Iterator[Graft]:
        """Inside, the models hold their settled weights: evaluate, save, export and update averages (EMA) here.

        On leaving, the pending transfer is put in place again, unless it is no longer this graft's: `detach` and
        `load_state_dict` inside are final.

        Raises:
            TransferError: a linked parameter is gone, or on the meta device.
        """
        pending = self._pending
        put_back = [w for w in pending.pending if w.settle()] if pending is not None else []
        try:
            yield self
        finally:
            if self._pending is pending:
                for write in put_back:
                    write.restore()

    def detach(self) -> None:
        """Take the graft off: settled weights, no hooks, no adapter, no optimizer. The history stays readable.

        Calling it again does nothing. It always comes off: where a linked parameter is gone, or has no values any more,
        a `TransferWarning` says so. Not inside an optimizer's hook, where torch does not let hooks be removed.
        """
        pending, self._pending = self._pending, None
        handles, self._handles = self._handles, []
        self._followed.clear()
        self._runner = None
        self._missed.rest()
        self._abandoned.remember(())
        registry.unregister(self)
        for handle in handles:
            handle.remove()
        for write in pending.pending if pending is not None else []:
            try:
                settled = write.settle()
            except TransferError as error:
                _warn(f"the graft is off, but a write could not be taken back: {error}")
            else:
                if not settled:
                    self._missed.explain(write.tensor)

    @property
    def step_count(self) -> int:
        """Optimizer steps of the target so far, those that GradScaler skipped left out.

        With GradScaler and a fused optimizer on an accelerator reading it may make the host wait for the device.
        """
        return self._steps.read()

    @property
    def attached(self) -> bool:
        """Whether the graft is still on."""
        return self._runner is not None

    @property
    def pending(self) -> bool:
        """Whether there is a write that no optimizer step has consumed."""
        return self._pending is not None and bool(self._pending.pending)

    # -------------------------------------------------------------------------------------------- looking and resuming

    @property
    def graph(self) -> JoinedGraph:
        """The two layer graphs joined by one adapter node per link: what attaching made of them."""
        self._running()
        return joined(self.plan)

    def to_fx(self) -> torch.fx.GraphModule:
        """The target at its captured shapes, with every read of a written parameter passing through the adapter.

        Returns:
            A new `GraphModule` that shares the target's parameters, but for the linked ones, which it
            holds as copies of their settled values. It takes the target's inputs, flattened, and gives the outputs that
            the written weights would give; it is differentiable end to end, the adapter included.
        """
        with self.settled():
            return spliced(self.plan, self._running(), self._pending)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write what the adapter learned, from `history`, as one HTML page that works offline.

        Singular values are on it where `attach` was given ``record``.

        Returns:
            The path. The graft may be attached or detached.

        Raises:
            GraftError: the file cannot be written.
        """
        write_whole(path, page(self._reported()))
        return Path(path)

    def _reported(self) -> Reported:
        return Reported(
            self.plan, self.cycle, self.history, self.step_count, self.skipped, self.fact_names
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs beside the models' and optimizers' own state: plain data and tensors.

        Take it together with the models' under `settled`, so that no pending write is saved:

            with graft.settled():
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                            "graft": graft.state_dict()}, path)
        """
        runner = self._running()
        counts = Counts(
            step=self.step_count,
            decided=self._decided,
            updates=self._updates,
            skipped=self.skipped,
            skipped_in_a_row=self._skipped_in_a_row,
        )
        pending = self._pending if self.pending else None
        stepped = self._steps.stepped
        state = state_of(self.plan, runner, counts, stepped, self.history, pending, self._resume)
        return state.to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; load the models and optimizers first, and `follow` afterwards.

        Raises:
            CheckpointError: the state is foreign, incomplete, damaged (types, shapes, dtypes, ranges, what is not
                finite), or of a graft with other links; nothing was changed.
        """
        runner = self._running()
        with torch.inference_mode(False):
            saved = restored(state, self.plan, runner)
        self._drop_pending()
        self.plan = saved.plan
        runner.install(saved.plan, saved.module, saved.optimizer)
        counts = saved.state.counts
        self._steps.start(counts.step, saved.stepped)
        self._decided, self._verified = counts.decided, counts.step
        self._updates, self.skipped = counts.updates, counts.skipped
        self._skipped_in_a_row = counts.skipped_in_a_row
        self.history, self._resume = saved.state.history, saved.state.resume
        if self._followed:
            self._write_if_due()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``graft.safetensors``, the state bound to the settled weights, and ``graft.md``; both or none.

        The models and optimizers are saved by whoever trains them, inside `settled`.

        Args:
            folder: made where it is missing; files of these names are replaced.

        Returns:
            The folder.

        Raises:
            CheckpointError: it cannot be written.
        """
        return files.save_folder(self, folder)

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Go on where `save` was called; load the models and optimizers first, and `follow` afterwards.

        Raises:
            CheckpointError: the file is missing, damaged, of other links, or was saved beside other weights than those
                that the models hold now; nothing was changed.
        """
        check(CheckpointError, folder=(folder, (str, os.PathLike)))
        files.take_up(self, files.load(Path(folder) / files.NAME), where=str(folder))

    def to_dataframe(self) -> Any:
        """The history as a `pandas.DataFrame`: one row for each matrix that a transfer wrote.

        Returns:
            Columns ``transfer``, ``step``, ``matrix``, ``size``, ``cosine``, ``signal`` (NaN until the adapter was
            updated) and ``skipped`` (None where it was not); see `Transfer`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pd = optional("pandas", "to_dataframe needs pandas.", "dataframe")
        columns = ("transfer", "step", "matrix", "size", "cosine", "signal", "skipped")
        rows = [
            (t.number, t.step, name, one.size, one.cosine, t.signal.get(name, math.nan), t.skipped)
            for t in self.history
            for name, one in t.changes.items()
        ]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        state = "detached" if not self.attached else "pending" if self.pending else "idle"
        return (
            f"<Graft of {len(self.plan.links)} links, {state}, {self.step_count} steps, "
            f"{len(self.history)} transfers>"
        )

    def _repr_html_(self) -> str:
        from ..view import view

        return view(self)._repr_html_()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise GraftError(
            "a graft can be neither copied nor pickled: it belongs to one training, its models and its optimizers.",
            fix="save graft.state_dict(), and load it into a graft that is attached to the copy",
        )

    # ---------------------------------------------------------------------------------------------------- the machine

    def _ready_to_train(self, verb: str, closure: object) -> None:
        """What `step` and `follow` need alike."""
        if not isinstance(closure, bool):
            raise AttachError(
                f"closure={closure!r} is neither True nor False.",
                fix=f"graft.{verb}(..., closure=True)",
            )
        if torch.is_inference_mode_enabled():
            raise AttachError(
                f"{verb}() was called inside torch.inference_mode, where nothing can be trained.",
                fix=f"call graft.{verb}() outside of it; settled() works inside",
            )
        self._closures = closure
        registry.hook_optimizers()

    def _running(self) -> AdapterRunner:
        if self._runner is None:
            raise AttachError(
                "this graft was detached.", fix="attach(adapter, mapping) makes a new one"
            )
        return self._runner

    def _write_if_due(self) -> None:
        """Perform the transfer before the coming step, unless that was decided already."""
        if self._resume is not None:
            self._redo(self._resume)
        if not self._steps.exact:
            # Could a transfer be due if no unread step was skipped? Until then the device is not asked.
            end = self._steps.at_most + 1
            if not self.cycle.between(self._decided + 1, end, self.total_steps):
                return
        step = self._steps.read()
        if self._decided == step:
            return
        self._decided = step
        if self.ranks.due(step, self._verified):
            self._verified = step
            self.ranks.verify(self._replicated(), step)
        if self.cycle.transfers(step, self.total_steps):
            self._finish()
            self._transfer()

    def _replicated(self) -> dict[str, Tensor]:
        """What must be the same on every rank: the linked tensors, unless sharded, and the adapter."""
        linked = {t.name: t.local() for t in dict.fromkeys(self.plan.tensors) if not t.sharded}
        module = self._running().module.state_dict()
        return {**linked, **{f"adapter:{name}": value for name, value in module.items()}}

    def _transfer(self) -> None:
        runner, number = self._running(), len(self.history)
        spectra = self.record > 0 and number % self.record == 0
        pending = runner.run(runner.read(), spectra=spectra)
        record = Transfer(
            number=number,
            step=self._steps.known,
            links=tuple(link.name for link in self.plan.links),
            changes=pending.changes,
            facts=pending.facts,
        )
        if self._write(pending, record):
            self._skipped_in_a_row = 0

    def _write(self, pending: PendingTransfer, record: Transfer) -> bool:
        """Write what no optimizer step has consumed; False where it is not finite, and nothing is written."""
        self.history.append(record)
        if not pending.finite:
            self._running().undo(pending)
            self._skip("the rewritten weights are not finite")
            return False
        self._pending = pending
        self._abandoned.remember(pending.pending)
        for write in pending.pending:
            write.write()
        return True

    def _redo(self, resume: Resume) -> None:
        """Redo the pending transfer of a saved state from the inputs it had."""
        self._resume = None
        runner = self._running()
        pending = runner.run(runner.read(), resume.inputs)
        for tensor, write in pending.writes.items():
            if pending.finite and tensor.name in resume.signals:
                write.signal = tensor.part(resume.signals[tensor.name].to(write.settled.device))
        self._write(pending, resume.transfer)

    def before_any_step(
        self, optimizer: Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, dict[str, Any]] | None:
        """Any optimizer of the process is about to step."""
        if not self._inside or self._is_inner(optimizer):
            return None
        return self._before_step(optimizer, args, kwargs)

    def _is_inner(self, optimizer: Optimizer) -> bool:
        """Whether this is the optimizer inside another one that is stepping now, for the same parameters."""
        outer = self._stepping
        if outer is None or outer is optimizer:
            return False
        return not set(self._owned(outer)).isdisjoint(self._owned(optimizer))

    def after_any_step(self, optimizer: Optimizer) -> None:
        """Any optimizer of the process has stepped."""
        if self._inside:
            if self._stepping is optimizer:
                self._after_step(optimizer)
            return
        # Before `follow`, and between two `step` blocks with nothing pending, anybody may train the target.
        watching = self._stepping is None and (bool(self._followed) or self.pending)
        if watching and optimizer not in self._followed:
            self._missed.foreign_step(optimizer, list(self._followed))

    def _before_step(
        self, optimizer: Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, dict[str, Any]] | None:
        owned = self._owned(optimizer)
        if not owned:
            return None
        self._check_identity(optimizer)
        self._stepping = optimizer
        self._missed.count()
        if not any(callable(value) for value in (*args, *kwargs.values())):
            self._before_update(optimizer)
            return None
        if not self._closures or isinstance(optimizer, LBFGS):
            raise TransferError(
                f"{type(optimizer).__name__}.step was given a closure, which evaluates the loss inside the step.",
                why="a write must last from one forward pass to one optimizer step",
                fix="compute loss.backward() before optimizer.step(), or pass closure=True to follow() or step() where "
                "the closure is evaluated once and before the update",
            )
        self._once = once = Once(lambda: self._before_update(optimizer))
        return tuple(map(once.around, args)), {k: once.around(v) for k, v in kwargs.items()}

    def _before_update(self, optimizer: Optimizer) -> None:
        if not self._missed.complete:
            self._missed.update(self._owned(optimizer))
        writes = self._writes_of(optimizer)
        for write, there in zip(writes, in_place(writes), strict=True):
            write.before_step(optimizer, in_place=there)

    def _after_step(self, optimizer: Optimizer) -> None:
        self._stepping = None
        owned = self._owned(optimizer)
        if not owned:
            return
        once, self._once = self._once, None
        if once is not None and not once.calls:
            raise TransferError(
                f"{type(optimizer).__name__}.step was given a closure and did not evaluate it.",
                fix="use an optimizer that evaluates the loss once, such as SGD or AdamW",
            )
        # GradScaler steps a fused optimizer even when it must not move: the kernel reads this flag, and so do we.
        found_inf = getattr(optimizer, "found_inf", None)
        self._steps.record(owned, found_inf)
        writes = self._writes_of(optimizer)
        if writes:
            # Only a pending write must know at once, and have the host wait for the device.
            skipped = found_inf is not None and bool(found_inf.item())
            for write in writes:
                write.after_step(skipped=skipped)
            if not skipped:
                self._abandoned.remember(self._pending.pending if self._pending is not None else [])

    def _follow_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._after_step(optimizer)
        self._advance()
        self._write_if_due()

    def _advance(self) -> None:
        """Update the adapter if every write is consumed."""
        if self._pending is not None and not self._pending.pending:
            self._finish()

    def _finish(self) -> None:
        """Update the adapter from the pending transfer, if there is one; what no step has consumed is settled."""
        pending = self._drop_pending()
        if pending is None:
            return
        signals = {t: t.whole(w.signal) for t, w in pending.writes.items() if w.signal is not None}
        if not signals:
            return
        finite, norms = self._running().update(pending, signals, self._updates)
        self.history[-1] = replace(self.history[-1], signal=norms)
        if finite:
            self._updates += 1
            self._tell()
        else:
            self._skip("what the step made of the weights is not finite")

    def _tell(self) -> None:
        """The last transfer is over."""
        if self.on_transfer is not None:
            self.on_transfer(self.history[-1])

    def _drop_pending(self) -> PendingTransfer | None:
        """Settle what no step has consumed; the transfer, if there is one, is pending no longer."""
        pending = self._pending
        for write in pending.pending if pending is not None else []:
            write.settle()
        self._pending = None
        self._abandoned.remember(())
        return pending

    def _skip(self, reason: str) -> None:
        """The last transfer did not take place, or did not update the adapter."""
        self.history[-1] = record = replace(self.history[-1], skipped=reason)
        self.skipped += 1
        self._skipped_in_a_row += 1
        self._tell()
        names = ", ".join(record.changes)
        if self._skipped_in_a_row >= self.nan_limit:
            raise TransferError(
                f"{self._skipped_in_a_row} transfers in a row were skipped: {reason}.",
                where={"written": names, "step": record.step},
                fix="look for inf or nan in the loss and the weights; lower the learning rate, or raise nan_limit",
            )
        _warn(f"transfer before step {record.step} skipped: {reason} ({names})")

    def _owned(self, optimizer: Optimizer) -> list[LinkedTensor]:
        if optimizer in self._followed:
            return [tensor for tensor, _ in self._followed[optimizer]]
        return [tensor for tensor in self.plan.written if owns(optimizer, tensor)]

    def _writes_of(self, optimizer: Optimizer) -> list[Write]:
        if self._pending is None:
            return []
        owned = self._owned(optimizer)
        return [write for write in self._pending.pending if write.tensor in owned]

    def _check_identity(self, optimizer: Optimizer) -> None:
        """A followed optimizer steps the parameters it had at `follow`; the model must still hold those."""
        for tensor, parameter in self._followed.get(optimizer, []):
            if tensor.live() is not parameter:
                raise TransferError(
                    f"'{tensor.name}' is no longer the parameter that the followed optimizer steps.",
                    why="the model's parameters were replaced after follow()",
                    fix="graft.detach(), make a new optimizer over model.parameters(), attach and follow that",
                )


def _warn(text: str) -> None:
    warnings.warn(text, TransferWarning, stacklevel=4)
