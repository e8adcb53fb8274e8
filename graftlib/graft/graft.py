"""A live graft: it counts the host's optimizer steps, writes before some of them, learns after those.

In: a `Plan`, a `Transferor`, and a training loop that stays the user's. Out: rewritten weights, a history, and after
`detach` nothing. Always true: nothing is inserted into a forward pass; parameter objects and state_dict keys never
change; a write that no optimizer step has consumed can be taken back to the bit.

The life of a transfer:

    write        the adapter reads all linked weights and rewrites those of the receivers     -> pending
    before step  a probe is taken back; the gradient is kept where it is the signal
    after step   what the step made of each write is its signal                                -> consumed
    learn        all signals are in: one update of the adapter                                 -> done
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from ..disk import write_whole
from ..errors import AttachError, GraftError, TransferError
from . import live
from .cycle import TransferCycle
from .joined import JoinedGraph, joined, spliced
from .linked import LinkedTensor, TransferWarning, Write, owns
from .plan import Plan
from .ranks import Ranks
from .rounds import Rounds
from .saving import load, save
from .silence import LeftPending, Silence
from .transfer import Flight, Transferor

__all__ = ["Graft", "TransferWarning", "check_optimizers"]


class Graft:
    """An adapter attached to two models. Made by `attach`; see there for the arguments.

    Attributes:
        history: one entry a transfer, oldest first. Keys: ``transfer`` and ``step`` (counts from 0), ``links`` (names),
            ``receivers`` (slot name -> ``size``, the Frobenius norm of the change over that of the weights before, and
            ``cosine`` between the two), ``facts`` (what the adapter reports of itself, such as omega), ``signal``
            (slot's tensor name -> norm of what it learned from; absent until learned), and ``skipped`` with the reason
            where it did not take place. With ``record`` a receiver also has ``spectrum``: ``before`` and ``after``, its
            largest singular values, at most 64.
        skipped: how many transfers were skipped because something was not finite.
    """

    def __init__(
        self,
        plan: Plan,
        transferor: Transferor,
        cycle: TransferCycle,
        *,
        total_steps: int | None,
        nan_limit: int,
        ranks: Ranks,
        record: int,
    ) -> None:
        self.plan = plan
        self.cycle = cycle
        self.total_steps = total_steps
        self.nan_limit = nan_limit
        self.ranks = ranks
        self.record = int(record)
        self.history: list[dict[str, Any]] = []
        self.skipped = 0
        self._rounds = Rounds(plan.clock)
        self._verified = 0  # the step at which the ranks were compared last
        self._closures = False
        self._once: _Once | None = None
        self._fact_names = transferor.fact_names()
        self._transferor: Transferor | None = transferor
        self._flight: Flight | None = None
        self._decided = -1  # the step before which it was last decided whether to transfer
        self._learned = 0
        self._skipped_in_a_row = 0
        self._followed: dict[Optimizer, list[tuple[LinkedTensor, nn.Parameter]]] = {}
        self._handles: list[RemovableHandle] = []
        self._resume: dict[str, Any] | None = None
        self._inside = False  # of `with graft.step():`
        self._stepping: Optimizer | None = (
            None  # between its two hooks; what it steps inside is its own affair
        )
        self._silence = Silence(plan)
        self._left = LeftPending()
        weakref.finalize(self, self._left.settle).atexit = False
        live.enter(self)

    # ------------------------------------------------------------------------------------------ the two ways to train

    @contextmanager
    def step(self, *, closure: bool = False) -> Iterator[Graft]:
        """Enclose forward, backward and optimizer step: entering writes where a transfer is due, leaving learns.

        It may also enclose less than one optimizer step, as gradient accumulation does: the write then stays until an
        optimizer has consumed it. The steps of whatever optimizer are heard inside the ``with`` block only, through a
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
        self._silence.watch()
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
            optimizers: those that step the receiving parameters; the target's steps are the ones counted. A round is
                complete when every optimizer that owns a linked target parameter has stepped at least once.
            closure: accept that ``optimizer.step`` is handed a closure that evaluates the loss, once and before the
                update, as some trainers do. LBFGS stays refused.

        Returns:
            The graft itself.

        Raises:
            AttachError: an optimizer owns no receiving parameter, a receiving parameter has no optimizer, an optimizer
                needs a closure, the graft follows optimizers already or is inside ``step()``, or
                `torch.inference_mode` is on.
        """
        self._running()
        if self._inside:
            raise AttachError(
                "this graft is inside `with graft.step():`, which hears the optimizer already.",
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
        self._silence.watch()
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
        flight = self._flight
        put_back = [w for w in flight.pending if w.settle()] if flight is not None else []
        try:
            yield self
        finally:
            if self._flight is flight:
                for write in put_back:
                    write.restore()

    def detach(self) -> None:
        """Take the graft off: settled weights, no hooks, no adapter, no optimizer. The history stays readable.

        Calling it again does nothing. It always comes off: where a linked parameter is gone, or has no values any more,
        a `TransferWarning` says so. Not inside an optimizer's hook, where torch does not let hooks be removed.
        """
        flight, self._flight = self._flight, None
        handles, self._handles = self._handles, []
        self._followed.clear()
        self._transferor = None
        self._silence.rest()
        self._left.forget()
        live.leave(self)
        for handle in handles:
            handle.remove()
        for write in flight.pending if flight is not None else []:
            try:
                settled = write.settle()
            except TransferError as error:
                _warn(f"the graft is off, but a write could not be taken back: {error}")
            else:
                if not settled:
                    self._silence.explain(write.tensor)

    @property
    def step_count(self) -> int:
        """Optimizer steps of the target so far, those that GradScaler skipped left out.

        With GradScaler and a fused optimizer on an accelerator reading it may make the host wait for the device.
        """
        return self._rounds.read()

    @property
    def attached(self) -> bool:
        """Whether the graft is still on."""
        return self._transferor is not None

    @property
    def pending(self) -> bool:
        """Whether there is a write that no optimizer step has consumed."""
        return self._flight is not None and bool(self._flight.pending)

    # -------------------------------------------------------------------------------------------- looking and resuming

    @property
    def graph(self) -> JoinedGraph:
        """The two layer graphs joined by one adapter node per link: what attaching made of them."""
        self._running()
        return joined(self.plan)

    def to_fx(self) -> torch.fx.GraphModule:
        """The target at its captured shapes, with every read of a receiving parameter passing through the adapter.

        Returns:
            A new `GraphModule` that shares the target's parameters, but for the receiving ones and the givers, which it
            holds as copies of their settled values. It takes the target's inputs, flattened, and gives the outputs that
            the written weights would give; it is differentiable end to end, the adapter included.
        """
        with self.settled():
            return spliced(self.plan, self._running(), self._flight)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write what the adapter learned, from `history`, as one HTML page that works offline.

        Singular values are on it where `attach` was given ``record``.

        Returns:
            The path. The graft may be attached or detached.

        Raises:
            GraftError: the file cannot be written.
        """
        from .report import page  # brings jinja2, which only this needs

        write_whole(path, page(self))
        return Path(path)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs beside the models' and optimizers' own state: plain data and tensors.

        Take it together with the models' under `settled`, so that no unlearned write is saved:

            with graft.settled():
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                            "graft": graft.state_dict()}, path)
        """
        return save(self, self._running())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; load the models and optimizers first, and `follow` afterwards.

        Raises:
            CheckpointError: the state is foreign, incomplete, damaged (types, shapes, dtypes, ranges, what is not
                finite), or of a graft with other links; nothing was changed.
        """
        load(self, self._running(), state)
        if self._followed:
            self._write_if_due()

    def __repr__(self) -> str:
        state = "detached" if not self.attached else "pending" if self.pending else "idle"
        return (
            f"<Graft of {len(self.plan.links)} links, {state}, {self.step_count} steps, "
            f"{len(self.history)} transfers>"
        )

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
        live.listen()

    def _running(self) -> Transferor:
        if self._transferor is None:
            raise AttachError(
                "this graft was detached.", fix="attach(adapter, mapping) makes a new one"
            )
        return self._transferor

    def _write_if_due(self) -> None:
        """Perform the transfer before the coming step, unless that was decided already."""
        if self._resume is not None:
            self._take_up(self._resume)
        if not (self._rounds.exact or self._may_be_due()):
            return
        step = self._rounds.read()
        if self._decided == step:
            return
        self._decided = step
        if self.ranks.due(step, self._verified):
            self._verified = step
            self.ranks.verify(self._replicated(), step)
        if self.cycle.transfers(step, self.total_steps):
            self._finish()
            self._transfer()

    def _may_be_due(self) -> bool:
        """Whether a transfer could be due if no unread step was skipped; until then the device is not asked."""
        end = self._rounds.at_most + 1
        return self.cycle.between(self._decided + 1, end, self.total_steps) > 0

    def _replicated(self) -> dict[str, Tensor]:
        """What must be the same on every rank: the linked tensors, unless sharded, and the adapter."""
        linked = {t.name: t.local() for t in dict.fromkeys(self.plan.tensors) if not t.sharded}
        module = self._running().module.state_dict()
        return {**linked, **{f"adapter:{name}": value for name, value in module.items()}}

    def _transfer(self) -> None:
        transferor = self._running()
        flight = transferor.fly(transferor.read())
        flight.entry = self._entry(flight)
        if self._refused(flight):
            return
        self._skipped_in_a_row = 0
        self._put(flight)

    def _refused(self, flight: Flight) -> bool:
        """Whether `flight` must not be written; then it is as if it had never been, but for the history."""
        if flight.finite:
            return False
        self._running().put_back(flight)
        self._skip(flight.entry, "the rewritten weights are not finite")
        return True

    def _put(self, flight: Flight) -> None:
        """Write what no optimizer step has consumed; from now on the flight is on its way."""
        self.history.append(flight.entry)
        self._flight = flight
        self._left.remember(flight.pending)
        for write in flight.pending:
            write.write()

    def _take_up(self, resume: dict[str, Any]) -> None:
        """Redo the pending transfer of a saved state from the inputs it had."""
        self._resume = None
        transferor = self._running()
        flight = transferor.fly(transferor.read(), resume["inputs"])
        flight.entry = resume["entry"]
        if self._refused(flight):
            return
        for tensor, write in flight.writes.items():
            if tensor.name in resume["signals"]:
                signal = resume["signals"][tensor.name].to(write.settled.device)
                write.signal = tensor.part(signal)
        self._put(flight)

    def _any_step_begins(
        self, optimizer: Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, dict[str, Any]] | None:
        """Any optimizer of the process is about to step."""
        if not self._inside or self._is_inner(optimizer):
            return None
        return self._before_step(optimizer, args, kwargs)

    def _is_strange(self, optimizer: Optimizer) -> bool:
        """Whether a step of this optimizer should have been heard, if it steps what is written.

        Before `follow`, and between two `step` blocks with nothing pending, anybody may train the target.
        """
        if self._stepping is not None or optimizer in self._followed:
            return False
        return bool(self._followed) or self.pending

    def _is_inner(self, optimizer: Optimizer) -> bool:
        """Whether this is the optimizer inside another one that is stepping now, for the same parameters."""
        outer = self._stepping
        if outer is None or outer is optimizer:
            return False
        return not set(self._owned(outer)).isdisjoint(self._owned(optimizer))

    def _any_step_ended(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Any optimizer of the process has stepped."""
        if self._inside:
            if self._stepping is optimizer:
                self._after_step(optimizer, args, kwargs)
        elif self._is_strange(optimizer):
            self._silence.overhear(optimizer, list(self._followed))

    def _before_step(
        self, optimizer: Optimizer, args: Any, kwargs: Any
    ) -> tuple[Any, dict[str, Any]] | None:
        owned = self._owned(optimizer)
        if not owned:
            return None
        self._check_identity(optimizer)
        self._stepping = optimizer
        self._silence.hear()
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
        self._once = once = _Once(lambda: self._before_update(optimizer))
        return tuple(map(once.around, args)), {k: once.around(v) for k, v in kwargs.items()}

    def _before_update(self, optimizer: Optimizer) -> None:
        if not self._silence.complete:
            self._silence.update(self._owned(optimizer))
        for write in self._writes_of(optimizer):
            write.before_step(optimizer)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
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
        self._rounds.hear(owned, found_inf)
        writes = self._writes_of(optimizer)
        if writes:
            # Only a write in flight must know at once, and have the host wait for the device.
            skipped = found_inf is not None and bool(found_inf.item())
            for write in writes:
                write.after_step(skipped=skipped)
            if not skipped:
                self._left.remember(self._flight.pending if self._flight is not None else [])

    def _follow_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._after_step(optimizer, args, kwargs)
        self._advance()
        self._write_if_due()

    def _advance(self) -> None:
        """Learn if every write is consumed."""
        if self._flight is not None and not self._flight.pending:
            self._finish()

    def _finish(self) -> None:
        """Learn from the flight that is on its way, if there is one; writes that were never consumed are settled."""
        flight = self._drop_pending()
        if flight is None:
            return
        signals = {t: t.whole(w.signal) for t, w in flight.writes.items() if w.signal is not None}
        if not signals:
            return
        flight.entry["signal"] = {t.name: _norm(signal) for t, signal in signals.items()}
        if self._running().learn(flight, signals, self._learned):
            self._learned += 1
        else:
            self._skip(flight.entry, "what the step made of the weights is not finite")

    def _drop_pending(self) -> Flight | None:
        """Settle what is pending; the transfer, if there is one, is no longer on its way."""
        flight = self._flight
        for write in flight.pending if flight is not None else []:
            write.settle()
        self._flight = None
        self._left.forget()
        return flight

    def _entry(self, flight: Flight) -> dict[str, Any]:
        receivers: dict[str, dict[str, Any]] = {}
        spectra = self.record > 0 and len(self.history) % self.record == 0 and flight.finite
        for i, output in zip(self.plan.receivers, flight.outputs, strict=True):
            before, after = flight.inputs[i], output.detach()
            receivers[self.plan.slots[i].name] = entry = _change(before, after)
            if spectra:
                entry["spectrum"] = {"before": _spectrum(before), "after": _spectrum(after)}
        return {
            "transfer": len(self.history),
            "step": self._rounds.known,
            "links": [link.name for link in self.plan.links],
            "receivers": receivers,
            "facts": self._running().facts(),
        }

    def _skip(self, entry: dict[str, Any], reason: str) -> None:
        entry["skipped"] = reason
        if not self.history or self.history[-1] is not entry:
            self.history.append(entry)
        self.skipped += 1
        self._skipped_in_a_row += 1
        names = ", ".join(entry["receivers"])
        if self._skipped_in_a_row >= self.nan_limit:
            raise TransferError(
                f"{self._skipped_in_a_row} transfers in a row were skipped: {reason}.",
                where={"receivers": names, "step": entry["step"]},
                fix="look for inf or nan in the loss and the weights; lower the learning rate, or raise nan_limit",
            )
        _warn(f"transfer before step {entry['step']} skipped: {reason} ({names})")

    def _owned(self, optimizer: Optimizer) -> list[LinkedTensor]:
        if optimizer in self._followed:
            return [tensor for tensor, _ in self._followed[optimizer]]
        return [tensor for tensor in self.plan.written if owns(optimizer, tensor)]

    def _writes_of(self, optimizer: Optimizer) -> list[Write]:
        if self._flight is None:
            return []
        owned = self._owned(optimizer)
        return [write for write in self._flight.pending if write.tensor in owned]

    def _check_identity(self, optimizer: Optimizer) -> None:
        """A followed optimizer steps the parameters it had at `follow`; the model must still hold those."""
        for tensor, parameter in self._followed.get(optimizer, []):
            if tensor.live() is not parameter:
                raise TransferError(
                    f"'{tensor.name}' is no longer the parameter that the followed optimizer steps.",
                    why="the model's parameters were replaced after follow()",
                    fix="graft.detach(), make a new optimizer over model.parameters(), attach and follow that",
                )


def check_optimizers(optimizers: Iterable[Optimizer], plan: Plan) -> None:
    """Refuse optimizers that a graft cannot live with, or that leave a written parameter unstepped.

    Raises:
        AttachError: see `Graft.follow`.
    """
    optimizers = list(optimizers)
    if len({id(optimizer) for optimizer in optimizers}) < len(optimizers):
        raise AttachError(
            "follow() was passed one optimizer twice.",
            why="each of its steps would be counted twice",
            fix="graft.follow(optimizer)",
        )
    if not optimizers:
        raise AttachError(
            "follow() needs the optimizer that steps the target.", fix="graft.follow(optimizer)"
        )
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise AttachError(
                f"follow() takes torch optimizers, not {type(optimizer).__name__}.",
                fix="pass the torch.optim.Optimizer inside it, often `.optimizer`",
            )
        if isinstance(optimizer, LBFGS):
            raise AttachError(
                "LBFGS evaluates the loss inside its step, so a write cannot last one step.",
                fix="use an optimizer without a closure, such as SGD or AdamW",
            )
        if not any(owns(optimizer, tensor) for tensor in plan.written):
            raise AttachError(
                f"this {type(optimizer).__name__} steps none of the parameters that the graft writes.",
                where={"written": ", ".join(tensor.name for tensor in plan.written)},
                fix="pass the optimizer made from the target's parameters, after any .to() that replaced them",
            )
    for tensor in plan.written:
        if not any(owns(optimizer, tensor) for optimizer in optimizers):
            raise AttachError(
                f"no optimizer passed to follow() steps '{tensor.name}'.",
                why="what the graft writes must be trained, or it would never learn from it",
                fix="pass its optimizer too, unfreeze it, or link only in the other direction",
            )


class _Once:
    """Does `then` after a closure, and lets it be evaluated once only."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then, self.calls = then, 0

    def around(self, value: Any) -> Any:
        """`value`, wrapped where it is a closure."""
        if not callable(value):
            return value

        def evaluated(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls > 1:
                raise TransferError(
                    "the optimizer evaluated its closure twice in one step.",
                    why="a write must last from one forward pass to one update",
                    fix="use an optimizer that evaluates the loss once, such as SGD or AdamW",
                )
            answer = value(*args, **kwargs)
            self.then()
            return answer

        return evaluated


def _warn(text: str) -> None:
    warnings.warn(text, TransferWarning, stacklevel=4)


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.float()))


def _change(before: Tensor, after: Tensor) -> dict[str, Any]:
    size = torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(before).clamp_min(
        1e-30
    )
    cosine = torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)
    return {"size": float(size), "cosine": float(cosine)}


def _spectrum(matrix: Tensor) -> list[float]:
    """The largest singular values, at most 64."""
    values: list[float] = torch.linalg.svdvals(matrix.float())[:64].tolist()
    return values
