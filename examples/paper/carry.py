"""Which grafts carry knowledge? All of them against plain training and against what else could explain a gain.

In: images on the device, a deadline. Out: one record a run. Always true: all settings of one seed see the same batches
from the same initial weights, but where a setting says otherwise; each seed has sources of its own, frozen; a run has
as many steps as fit for all of them, decided before the first; settings come in order of their weight, so that a
cut-off costs the last; accuracy is that of the last step.

The target is a ResNet of one basic block a stage, the sources have twice its width or its own, and twice its training.
`AlignedPull` and `MergeNet` are attached as anybody attaches them. Slow weights and NetAug are written down here as
their papers have them; as grafts they need no adapter of their own (`docs/recipes.md`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlib import Mapping, attach, surgery, trace
from graftlib.graft import Adapter, Link, LinkedMatrix, TransferCycle
from graftlib_adapters import AlignedPull, MergeNet, transplant

from .captured import Data, Trainer
from .gpu_table1 import _meet, _seconds, _share, _wait
from .images import resnet

__all__ = ["CONTRASTS", "SETTINGS", "work"]

WIDTH = 8
"""Of the target's first stage."""
CYCLE, SLOW = 4, 5
MERGED = "layer4.0.conv2"
LONGEST = 3
"""The longest run, in runs."""
OVERHEAD = 1.0
"""Seconds of a run beside its steps: new weights, tracing, an alignment, an evaluation."""

SETTINGS = (
    "plain",
    "pull",
    "pull, untrained source",
    "pull, each layer in an order of its own",
    "noise of the pull's angle",
    "plain, three times the steps",
    "pull, matched units",
    "pull, source of equal width",
    "pull, until 30 %",
    "start from the source",
    "kd",
    "slow weights",
    "half of the learning rate",
    "noise of the slow weights' angle",
    "netaug",
    "plain, twice the steps",
    "mergenet",
    "mergenet, by gradient",
    "mergenet, old default",
    "mergenet, untrained source",
)
CONTRASTS = (
    *(f"{name} - plain" for name in SETTINGS if name != "plain"),
    "pull - pull, untrained source",
    "pull - pull, each layer in an order of its own",
    "pull - noise of the pull's angle",
    "pull - plain, three times the steps",
    "pull - pull, matched units",
    "pull - start from the source",
    "pull - kd",
    "slow weights - half of the learning rate",
    "slow weights - noise of the slow weights' angle",
    "netaug - plain, twice the steps",
    "mergenet - mergenet, untrained source",
    "mergenet - mergenet, by gradient",
    "mergenet - mergenet, old default",
)
LENGTH = {"plain, twice the steps": 2, "plain, three times the steps": 3}
AFTER = {
    "noise of the pull's angle": "pull",
    "noise of the slow weights' angle": "slow weights",
}
"""A setting -> the one whose angles it repeats."""

Unit = tuple[str, int]  # a setting and a seed


def stop(name: str) -> float:
    """When a pull ends, as a share of training."""
    return 0.3 if "30 %" in name else 0.1


def links_of(model: nn.Module) -> list[str]:
    """The layers that take part: all convolutions and the classifier."""
    return [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


# ------------------------------------------------------------------------------------------------------- the controls


class Scrambled(AlignedPull):
    """A pull to a source whose tensors were read with units chosen at random, for each layer anew."""

    def build(self, matrices: Sequence[LinkedMatrix], links: Sequence[Link]) -> nn.Module:
        """See `Adapter.build`; drawn from the adapter's seed."""
        module = super().build(matrices, links)
        for i, link in enumerate(links):
            rows, columns = matrices[link.source].shape
            m, n = matrices[link.target].shape
            kernel = next(k for k in (9, 1) if n % k == 0 and columns % k == 0)
            numbers = torch.arange(rows * columns, dtype=torch.int32)
            numbers = numbers.view(rows, columns // kernel, kernel)
            # The classes and the colours of an image keep their order.
            out = torch.arange(m) if m == rows else torch.randperm(rows)[:m]
            kept = n == columns
            into = torch.arange(n // kernel) if kept else torch.randperm(columns // kernel)
            chosen = numbers[out][:, into[: n // kernel]]
            getattr(module, f"reads{i}").copy_(chosen.flatten())
            getattr(module, f"has{i}").fill_(True)
        return module


class TurnedByNoise(Adapter):
    """Turns each matrix at each transfer by a given angle, in a direction drawn anew.

    Args:
        cosines: of the angle, for each transfer one per written matrix.
        seed: of the directions.
    """

    def __init__(self, cosines: Sequence[Sequence[float]], seed: int) -> None:
        self.cosines, self.seed = cosines, seed

    def build(self, matrices: Sequence[LinkedMatrix], links: Sequence[Link]) -> nn.Module:
        """See `Adapter.build`."""
        return _Turned([matrix.written for matrix in matrices], self.cosines, self.seed)


class _Turned(nn.Module):
    def __init__(
        self, written: Sequence[bool], cosines: Sequence[Sequence[float]], seed: int
    ) -> None:
        super().__init__()
        self.written, self.cosines = written, cosines
        self.generator, self.transfer = torch.Generator().manual_seed(seed), 0

    def forward(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        own = [w for w, written in zip(matrices, self.written, strict=True) if written]
        cosines = self.cosines[self.transfer]
        self.transfer += 1
        return [
            turned(w, torch.tensor(cosine), self.generator)
            for w, cosine in zip(own, cosines, strict=True)
        ]


def turned(w: Tensor, cosine: Tensor, generator: torch.Generator) -> Tensor:
    """`w` turned by an angle in a random direction, its norm kept.

    >>> w = torch.tensor([3.0, 4.0])
    >>> v = turned(w, torch.tensor(0.6), torch.Generator().manual_seed(0))
    >>> round(float(w @ v), 4), round(float(v.norm()), 4)
    (15.0, 5.0)
    """
    noise = torch.randn(w.shape, generator=generator).to(w)
    cosine = cosine.to(w).clamp(-1, 1)
    size = torch.linalg.vector_norm(w)
    noise = noise - w * ((noise * w).sum() / size.square().clamp(min=1e-30))
    noise = noise * (size / torch.linalg.vector_norm(noise).clamp(min=1e-30))
    return w * cosine + noise * (1 - cosine.square()).sqrt()


# ------------------------------------------------------------------------------------------------------- the trainers


class NetAug(Trainer):
    """Cai et al. 2021: the target is also a part of a wider network, and learns from that one's loss as well.

    The wider network shares the leading block of each of the target's weights; norms and biases are its own.

    Args:
        wide: the wider network, on the device.
        share: weight of its loss.
    """

    def __init__(
        self, make: Callable[[], nn.Module], *args: Any, wide: nn.Module, **options: Any
    ) -> None:
        self.wide = wide.train()
        self.wide_parameters = list(wide.parameters())
        self.wide_moments = [torch.zeros_like(p) for p in self.wide_parameters]
        super().__init__(make, *args, **options)

    def _blocks(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        inner = dict(self.model.named_parameters())
        for name, outer in self.wide.named_parameters():
            if outer.ndim > 1:
                yield inner[name], outer

    def widen(self, state: dict[str, Tensor]) -> None:
        """Begin a run: the wider network's weights, whose leading blocks are the target's."""
        self.wide.load_state_dict(state)
        for moment in self.wide_moments:
            moment.zero_()

    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for parameter in self.wide_parameters:
            parameter.grad = None
        loss, total = super()._loss(x, y)
        with self._autocast():
            wide = self.wide(x)
        return loss, total + F.cross_entropy(wide.float(), y)

    def _update(self) -> None:
        for inner, outer in self._blocks():
            assert inner.grad is not None
            assert outer.grad is not None
            inner.grad.add_(outer.grad[block(inner)])
        super()._update()
        self._descend(self.wide_parameters, self.wide_moments)
        for inner, outer in self._blocks():
            outer[block(inner)].copy_(inner)


def block(inner: Tensor) -> tuple[slice, ...]:
    """Where a tensor lies in one that is wider."""
    return tuple(slice(size) for size in inner.shape)


class Student:
    """A target in training, and what its grafts need: sources of either width, in place."""

    def __init__(self, data: Data, most: int, batch: int, width: int, kind: str) -> None:
        self.kind, self.data = kind, data
        make, wider = _maker(data, width), _maker(data, 2 * width)
        device, example = data.x.device, data.test_x[:2]
        shared: tuple[Any, ...] = (data, "sgd", most, batch)
        self.sources = {n: m().to(device).eval() for n, m in (("wide", wider), ("equal", make))}
        for source in self.sources.values():
            source.requires_grad_(requires_grad=False)
        self.trainer: Trainer
        if kind == "netaug":
            wide = wider().to(device, memory_format=torch.channels_last)
            self.trainer = NetAug(make, *shared, wide=wide, stepwise=True)
        else:
            teacher = self.sources["wide"] if kind == "kd" else None
            self.trainer = Trainer(make, *shared, teacher=teacher, stepwise=True)
        self.model = self.trainer.model
        with self.on():
            self.graphs = {n: trace(m, (example,)) for n, m in self.sources.items()}
            self.graph = trace(self.model, (example,))
            self.model.train()
        self.fresh = trace(make(), (example.cpu(),)) if kind == "netaug" else self.graph
        self.weights = [p for p in self.model.parameters() if p.ndim > 1]

    def on(self) -> Any:
        """See `Trainer.on`."""
        return self.trainer.on()

    def does(self, name: str) -> bool:
        """Whether a setting can run here."""
        return name == self.kind if self.kind or name in ("kd", "netaug") else True

    def run(
        self,
        name: str,
        seed: int,
        steps: int,
        states: dict[str, dict[str, Tensor]],
        angles: dict[str, Any],
        *,
        always: bool = False,
    ) -> Iterator[None]:
        """Train once; gives way to other runs where the host would wait, and at last has what it found in `found`.

        Args:
            name: one of `SETTINGS`.
            seed: of weights, batches and adapter.
            steps: of a run; a long one has more.
            states: of the sources, ``"wide"`` and ``"equal"``, trained, and ``"untrained"``, a wide one.
            angles: setting -> the cosines of its writes; read and added to.
            always: a pull does not end, to measure what it costs.
        """
        steps, trainer = steps * LENGTH.get(name, 1), self.trainer
        trainer.begin(seed, steps)
        kind = "equal" if name == "pull, source of equal width" else "wide"
        state = states["untrained" if "untrained" in name else kind]
        self.sources[kind].load_state_dict(state)
        if name == "half of the learning rate":
            trainer.rates.mul_(0.5)
        if name == "start from the source":
            transplant(Mapping(self.graphs[kind], self.graph), inplace=True)
        if isinstance(trainer, NetAug):
            self.fresh.model.load_state_dict(self.model.state_dict())
            trainer.widen(_widened(self.fresh))
        graft = self._graft(name, seed, steps, kind, angles, always=always)
        slow = [w.detach().clone() for w in self.weights] if "slow" in name else []
        cosines: list[Tensor] = []
        generator = torch.Generator().manual_seed(seed + 104729)
        try:
            for t in range(steps):
                _step(trainer)
                if slow and (t + 1) % SLOW == 0:
                    if name == "slow weights":
                        cosines.append(_slow_step(self.weights, slow))
                    else:
                        turns = angles["slow weights"][(t + 1) // SLOW - 1]
                        for w, turn in zip(self.weights, turns, strict=True):
                            w.data.copy_(turned(w.data, turn, generator))
                if t % CYCLE == 2:
                    yield
        finally:
            if graft is not None:
                graft.detach()
        self.found: dict[str, Any] = {}
        if graft is not None:
            taken = [[change.cosine for change in e.changes.values()] for e in graft.history]
            angles[name] = taken
            degrees = [math.degrees(math.acos(max(-1.0, min(1.0, c)))) for e in taken for c in e]
            self.found = {"transfers": len(taken), "skipped": graft.skipped}
            self.found["mean angle of a write"] = sum(degrees) / max(1, len(degrees))
        if cosines:
            angles[name] = torch.stack(cosines)
        self.found |= trainer.evaluate()

    def _graft(
        self,
        name: str,
        seed: int,
        steps: int,
        kind: str,
        angles: dict[str, Any],
        *,
        always: bool,
    ) -> Any:
        mapping = Mapping(self.graphs[kind], self.graph)
        adapter: Adapter | None = None
        cycle = TransferCycle(every=1, stop=None if always else stop(name))
        if name.startswith("mergenet"):
            old: dict[str, Any] = {"trust": 0.005, "norm": "free"} if "old" in name else {}
            adapter = MergeNet(signal="gradient" if "gradient" in name else "trajectory", **old)
            mapping.link(MERGED, MERGED)
            cycle = TransferCycle(CYCLE)
        elif "pull" in name:
            for layer in links_of(self.model):
                mapping.link(layer, layer)
            if name.startswith("noise"):
                adapter = TurnedByNoise(angles["pull"], seed)
            elif "order of its own" in name:
                adapter = Scrambled(mapping)
            else:
                adapter = AlignedPull(mapping, units="matched" if "matched" in name else "largest")
        if adapter is None:
            return None
        graft = attach(adapter, mapping, cycle=cycle, total_steps=steps, seed=seed)
        return graft.follow(self.trainer.optimizer)


@torch.no_grad()
def _slow_step(weights: list[nn.Parameter], slow: list[Tensor]) -> Tensor:
    """Zhang et al. 2019, algorithm 1: slow weights go half of the way to the fast ones, which begin there again."""
    cosines = []
    for w, behind in zip(weights, slow, strict=True):
        behind.lerp_(w, 0.5)
        cosines.append(F.cosine_similarity(w.flatten(), behind.flatten(), dim=0))
        w.copy_(behind)
    return torch.stack(cosines)


def _widened(graph: Any) -> dict[str, Tensor]:
    """The state of the traced model at twice its width: the function stays."""
    wide = surgery.widen(graph, {c: 2 * c.size for c in graph.axis_classes if c.free})
    return wide.state_dict()


def _maker(data: Data, width: int) -> Callable[[], nn.Module]:
    classes, channels = data.classes, data.x.shape[1]
    return lambda: resnet("small", classes, channels, 1, width=width)


# ---------------------------------------------------------------------------------------------------------- all of them


def work(
    data: Data,
    seeds: Sequence[int],
    settings: Sequence[str],
    deadline: float,
    mine: int,
    of: int,
    folder: Path,
    done: set[Unit],
    tell: Callable[[dict[str, Any]], None],
    *,
    batch: int = 128,
    streams: int = 3,
    width: int = WIDTH,
    steps: int | None = None,
    most: int = 2000,
) -> None:
    """Run all settings of some seeds.

    Args:
        data: on the device.
        seeds: this worker's.
        settings: some of `SETTINGS`.
        deadline: when everything should be done, in seconds since the epoch.
        mine: this worker's number, from 0.
        of: workers, which decide together how many steps fit.
        folder: where they meet.
        done: what is not run again.
        tell: is given a record after every run.
        batch: images a step.
        streams: runs at a time, beside those of kinds of their own.
        width: of the target's first stage.
        steps: of a run; None to choose them by what fits.
        most: at most so many.
    """
    began = time.time()
    room = LONGEST * (steps or most)
    wanted = [(name, seed) for seed in seeds for name in settings if (name, seed) not in done]
    again = {(AFTER[name], seed) for name, seed in wanted if name in AFTER} - {*wanted}
    wanted = [*again, *wanted]  # whose angles are repeated
    source = Trainer(_maker(data, 2 * width), data, "sgd", room, batch, stepwise=True)
    kinds = ["", *[kind for kind in ("kd", "netaug") if kind in settings], *[""] * (streams - 1)]
    students = [Student(data, room, batch, width, kind) for kind in kinds]
    _wait()
    facts = {"captured": [source.captured, *(each.trainer.captured for each in students)]}
    tell({"kind": "built", "worker": mine, "seconds": time.time() - began, **facts})
    _meet(folder, "built", mine, of, {})
    if steps is None:
        mine_took = _speeds(source, students)
        mine_took |= {"left": deadline - time.time(), "seeds": len(seeds)}
        steps, why = _steps(_meet(folder, "speeds", mine, of, mine_took), settings)
        steps = min(steps, most)
        if mine < 2:  # one of each data set
            tell({"kind": "plan", "steps": steps, **why})
    epochs = round(steps * batch / len(data.y), 2)
    states: dict[int, dict[str, dict[str, Tensor]]] = {seed: {} for seed in seeds}
    angles: dict[int, dict[str, Any]] = {seed: {} for seed in seeds}

    def fact(name: str, seed: int) -> dict[str, Any]:
        return {"kind": "run", "setting": name, "seed": seed, "steps": steps, "epochs": epochs}

    def learn(trainer: Trainer, kind: str, seed: int) -> Iterator[None]:
        yield from _trained(trainer, seed + 7919, 2 * steps)
        states[seed][kind] = _state(trainer.model)
        tell(fact(f"{kind} source", seed) | trainer.evaluate())

    def run(student: Student, name: str, seed: int) -> Iterator[None]:
        begun = time.time()
        yield from student.run(name, seed, steps, states[seed], angles[seed])
        tell(fact(name, seed) | student.found | {"seconds": time.time() - begun})

    needed = {seed for _, seed in wanted}
    for seed in needed:
        source.begin(seed + 7919, 1)
        states[seed]["untrained"] = _state(source.model)
    # What must come first: sources, then what others repeat.
    places = [source, *students]
    jobs: list[tuple[str, int]] = [(kind, seed) for seed in needed for kind in ("wide", "equal")]

    def start(place: Any, job: tuple[str, int]) -> Iterator[None]:
        if job[0] in ("wide", "equal"):
            return learn(place if place is source else place.trainer, *job)
        return run(place, *job)

    def fits(place: Any, job: tuple[str, int]) -> bool:
        name, seed = job
        if name in ("wide", "equal"):
            return (place is source) if name == "wide" else place is students[0]
        if place is source or time.time() > deadline:
            return False
        ready = AFTER.get(name) is None or AFTER[name] in angles[seed]
        return place.does(name) and ready and {"wide", "equal"} <= states[seed].keys()

    _share([*jobs, *wanted], places, start, fits, tell)


def _state(model: nn.Module) -> dict[str, Tensor]:
    _wait()
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    _wait()
    return state


def _step(trainer: Trainer) -> None:
    assert trainer.compute is not None
    trainer.compute()
    trainer.optimizer.step()


def _trained(trainer: Trainer, seed: int, steps: int) -> Iterator[None]:
    trainer.begin(seed, steps)
    for t in range(steps):
        _step(trainer)
        if t % CYCLE == 2:
            yield


def _speeds(source: Trainer, students: list[Student]) -> dict[str, float]:
    """Seconds a step of one run, while all that will run together does."""
    cycles = 15 if source.cuda else 2
    steps = (cycles + 4) * CYCLE
    state = {"wide": _state(source.model), "untrained": _state(source.model)}
    found = {"source": _seconds([(source, _trained(source, 0, steps))], cycles)}
    for name in ("plain", "pull", "mergenet"):
        runs: list[tuple[Any, Iterator[None]]] = []
        for each in students:
            own = each.kind or name
            runs.append((each, each.run(own, 0, steps, state, {}, always=True)))
        found[name] = _seconds(runs, cycles)
    return found


def _steps(met: list[dict[str, float]], settings: Sequence[str]) -> tuple[int, dict[str, Any]]:
    """How many steps fit; the same answer for all that have met."""
    took = {name: max(each[name] for each in met) for name in met[0]}
    # Both sources have twice the steps of a run.
    one = 2 * took["source"] + 2 * took["plain"]
    for name in settings:
        if name.startswith("mergenet"):
            one += took["mergenet"]
            continue
        pulled = stop(name) if "pull" in name else 0.0
        one += LENGTH.get(name, 1) * ((1 - pulled) * took["plain"] + pulled * took["pull"])
    left = 0.8 * min(each["left"] for each in met) - OVERHEAD * took["seeds"] * len(settings)
    whole = 4 * SLOW
    steps = max(whole, int(left / (took["seeds"] * one)) // whole * whole)
    return steps, {"took": took, "left": left}
