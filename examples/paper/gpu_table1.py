"""Table 1 in the paper's setting, in a given time: the authors' form, a co-trained source, controls, several seeds.

In: images on the device, a deadline. Out: one record a run. Always true: all settings of one seed see the same batches
from the same initial weights; a run has as many steps as fit for all of them, decided before the first; seeds come one
after another, so that a cut-off leaves every setting with as many runs; accuracy is that of the last step.

The source learns by itself, whatever the target does, since the link goes one way. So it is trained once a seed, its
classifier is recorded before every transfer, and each run of that seed reads the record: what a source that trains
beside the target would have held at that step, to the bit, for a fraction of the time.

Several runs share the device, each on its own stream: while one waits for its transfer the others' graphs run.
"""

from __future__ import annotations

import json
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graftlib import Mapping, attach, trace
from graftlib.graft import Adapter, AdapterOptimizer, Link, LinkedMatrix, Transfer
from graftlib_adapters import MergeNet

from .captured import Data, MobileNet, Trainer, large_resnet

__all__ = ["CONTRASTS", "SETTINGS", "Plan", "work"]

CYCLE = 4
MOST_EPOCHS = 200
OVERHEAD = 1.5
"""Seconds of a run beside its steps: new weights, an adapter, an evaluation."""

SETTINGS = (
    "plain",
    "paper",
    "paper, random source",
    "norm reset only",
    "dropout only",
    "target layer frozen",
    "kd",
)
CONTRASTS = (
    *(f"{name} - plain" for name in SETTINGS if name != "plain"),
    "paper - paper, random source",
    "paper - norm reset only",
    "paper - dropout only",
    "paper - target layer frozen",
)


class NormReset(Adapter):
    """What the authors' closing LayerNorm does, without an adapter in front of it: rows of mean 0 and variance 1."""

    def build(self, matrices: list[LinkedMatrix], links: list[Link]) -> nn.Module:  # type: ignore[override]
        """See `Adapter.build`."""
        return _Rows([matrix.written for matrix in matrices])


class _Rows(nn.Module):
    def __init__(self, receives: list[bool]) -> None:
        super().__init__()
        self.receives = receives

    def forward(self, matrices: list[Tensor]) -> list[Tensor]:
        written = [w for w, receives in zip(matrices, self.receives, strict=True) if receives]
        return [nn.functional.layer_norm(w, w.shape[1:], eps=1e-12) for w in written]


@dataclass(frozen=True)
class Plan:
    """What all workers agree on.

    Attributes:
        regime: see `captured.Trainer`.
        seeds: of the runs.
        settings: some of `SETTINGS`.
        batch: images a step.
        streams: runs at a time in one process.
        small: tiny models, for a dry run.
        steps: of a run; None to choose them by what fits.
    """

    regime: str
    seeds: tuple[int, ...]
    settings: tuple[str, ...]
    batch: int
    streams: int
    small: bool
    steps: int | None = None


def work(
    plan: Plan,
    data: Data,
    deadline: float,
    mine: int,
    of: int,
    folder: Path,
    done: set[tuple[str, int]],
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Run every `of`-th seed from the `mine`-th on.

    Args:
        plan: what to run.
        data: on the device.
        deadline: when everything should be done, in seconds since the epoch.
        mine: this worker's number, from 0.
        of: workers.
        folder: where the workers meet.
        done: (setting, seed) that are not run again.
        tell: is given a record after every run.
    """
    seeds = plan.seeds[mine::of]
    maker = _makers(plan, data)
    most = max(CYCLE, MOST_EPOCHS * (len(data.y) // plan.batch))
    began = time.time()
    layout, milliseconds = _fastest_layout(maker, data, plan)
    sources = [Trainer(maker["source"], data, plan.regime, most, plan.batch)]
    if len(seeds) > 1 and data.x.is_cuda:
        sources.append(Trainer(maker["source"], data, plan.regime, most, plan.batch))
    students = [
        Student(maker, data, plan, most, layout, teaches=False)
        for _ in range(min(plan.streams, len(plan.settings)))
    ]
    if "kd" in plan.settings:
        students.append(Student(maker, data, plan, most, layout, teaches=True))
    _wait()
    built = time.time() - began
    captured = [each.captured for each in (*sources, *(student.trainer for student in students))]
    facts = {"seconds": built, "captured": captured, "milliseconds a step alone": milliseconds}
    tell({"kind": "built", "worker": mine, **facts})
    _meet(folder, "built", mine, of, {"seconds": built})
    steps = plan.steps
    if steps is None:
        speeds = _speeds(sources, students, plan)
        met = _meet(folder, "speeds", mine, of, speeds)
        steps, why = _steps(plan, met, deadline, of, len(data.y) // plan.batch)
        steps = min(steps, most)
        if mine == 0:
            tell({"kind": "plan", "steps": steps, **why})
    epochs = steps * plan.batch / len(data.y)
    records: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}
    wanted = [(name, seed) for seed in seeds for name in plan.settings if (name, seed) not in done]

    def record_source(trainer: Trainer, seed: int) -> Iterator[None]:
        record = yield from _recorded(trainer, seed, steps)
        state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        scores = trainer.evaluate()
        records[seed] = record, state
        tell(_facts(plan, "source", seed, steps, epochs) | scores)

    def run(student: Student, name: str, seed: int) -> Iterator[None]:
        record, state = records[seed]
        begun = time.time()
        found = yield from student.run(name, seed, steps, record, state)
        tell(_facts(plan, name, seed, steps, epochs) | found | {"seconds": time.time() - begun})

    _share(
        [(None, seed) for seed in seeds if any(seed == other for _, other in wanted)],
        sources,
        lambda trainer, job: record_source(trainer, job[1]),
        lambda trainer, job: True,
        tell,
    )
    _wait()
    _share(
        [job for job in wanted if job[1] in records],
        students,
        lambda student, job: run(student, *job),
        lambda student, job: student.teaches == (job[0] == "kd"),
        tell,
    )


class Student:
    """A MobileNetV2 in training, and what its grafts need."""

    def __init__(
        self,
        maker: dict[str, Callable[[], nn.Module]],
        data: Data,
        plan: Plan,
        most: int,
        layout: torch.memory_format,
        *,
        teaches: bool,
    ) -> None:
        self.teaches, self.plan = teaches, plan
        self.teacher = None
        if teaches:
            self.teacher = maker["source"]().to(data.x.device, memory_format=layout)
            self.teacher.eval().requires_grad_(requires_grad=False)
        self.trainer = Trainer(
            maker["target"], data, plan.regime, most, plan.batch, self.teacher, layout
        )
        with self.on():
            width = maker["source"]().fc.in_features
            # Of the source only the classifier takes part, so it stands for the whole.
            self.source = nn.Sequential(nn.Linear(width, data.classes)).to(data.x.device)
            self.source.requires_grad_(requires_grad=False)
            example = data.x.new_zeros(2, width)
            target = self.trainer.model
            self.graphs = trace(self.source, (example,)), trace(target, (data.test_x[:2],))
            self.trainer.model.train()
        self.target = self.trainer.model.get_submodule(MobileNet.TARGET).weight

    def on(self) -> Any:
        """See `Trainer.on`."""
        return self.trainer.on()

    def run(
        self, name: str, seed: int, steps: int, record: Tensor, source: dict[str, Tensor]
    ) -> Iterator[None]:
        """Train once; gives way to other runs wherever the host would wait.

        Args:
            name: one of `SETTINGS`.
            seed: of weights, batches and adapter.
            steps: of the run.
            record: (transfers, classes, width), the source's classifier before each.
            source: the trained source, the teacher of ``kd``.
        """
        trainer = self.trainer
        trainer.begin(seed, steps)
        if self.teacher is not None:
            self.teacher.load_state_dict(source)
        if name == "paper, random source":
            record = _noise_like(record, seed)
        frozen = self.target.detach().clone() if name == "target layer frozen" else None
        weight = self.source[0].weight
        assert isinstance(weight, Tensor)
        weight.data.copy_(record[0])
        graft = self._graft(name, seed, steps)
        try:
            for t in range(steps):
                if graft is not None and (t + 1) % CYCLE == 0:
                    weight.data.copy_(record[(t + 1) // CYCLE])
                trainer.optimizer.step()
                if frozen is not None:
                    self.target.data.copy_(frozen)
                if t % CYCLE == 2:  # the next step ends in a transfer, and waits for the device
                    yield
        finally:
            if graft is not None:
                graft.detach()
        found: dict[str, Any] = {} if graft is None else _summary(graft.history)
        rows = self.target.detach().flatten(1).norm(dim=1)
        return found | trainer.evaluate() | {"row norm": float(rows.mean())}

    def _graft(self, name: str, seed: int, steps: int) -> Any:
        if name in ("plain", "target layer frozen", "kd"):
            return None
        adapter: Adapter = NormReset()
        if name != "norm reset only":
            adapter = MergeNet(layers=2, heads=8, rank=None, init="paper")
        mapping = Mapping(*self.graphs)
        mapping.link("0", MobileNet.TARGET)
        graft = attach(
            adapter,
            mapping,
            cycle=CYCLE,
            total_steps=steps,
            optimizer=AdapterOptimizer(lr=0.0 if name == "dropout only" else 1e-3),
            seed=seed,
        )
        return graft.follow(self.trainer.optimizer)


def _makers(plan: Plan, data: Data) -> dict[str, Callable[[], nn.Module]]:
    classes, channels = data.classes, data.x.shape[1]
    return {
        "source": lambda: large_resnet(classes, channels, small=plan.small),
        "target": lambda: MobileNet(classes, channels, 0.25 if plan.small else 1.0),
    }


def _fastest_layout(
    maker: dict[str, Callable[[], nn.Module]], data: Data, plan: Plan
) -> tuple[torch.memory_format, dict[str, float]]:
    """Of the target's images in memory: depthwise convolutions are far from alike in the two; milliseconds a step."""
    layouts = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
    if not data.x.is_cuda:
        return torch.channels_last, {}
    took = {}
    for name, layout in layouts.items():
        trainer = Trainer(maker["target"], data, plan.regime, 64, plan.batch, None, layout)
        with trainer.on():
            trainer.begin(0, 64)
            _wait()
            began = time.perf_counter()
            for _ in range(40):
                trainer.optimizer.step()
            _wait()
        took[name] = 1000 * (time.perf_counter() - began) / 40
    return layouts[min(took, key=lambda name: took[name])], took


def _recorded(trainer: Trainer, seed: int, steps: int) -> Iterator[None]:
    """Train a source; its classifier before every transfer."""
    trainer.begin(seed + 7919, steps)
    weight = trainer.model.fc.weight.detach()
    record = weight.new_empty(steps // CYCLE + 1, *weight.shape)
    record[0].copy_(weight)
    for t in range(steps):
        trainer.optimizer.step()
        if (t + 1) % CYCLE == 0:
            record[(t + 1) // CYCLE].copy_(weight)
            yield
    return record


def _noise_like(record: Tensor, seed: int) -> Tensor:
    """One draw of noise, which follows the mean and the spread of the record from transfer to transfer."""
    generator = torch.Generator().manual_seed(seed + 104729)
    noise = torch.randn(record.shape[1:], generator=generator)
    noise = ((noise - noise.mean()) / noise.std()).to(record)
    spread = record.std((1, 2), keepdim=True)
    return noise * spread + record.mean((1, 2), keepdim=True)


def _share(
    jobs: list[Any],
    places: list[Any],
    start: Callable[[Any, Any], Iterator[None]],
    fits: Callable[[Any, Any], bool],
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Run all jobs, one a place at a time, the places in turn. A job that raises is recorded, and the next begins."""
    waiting, active = list(jobs), {}
    while waiting or active:
        for i, place in enumerate(places):
            if i in active:
                continue
            job = next((job for job in waiting if fits(place, job)), None)
            if job is not None:
                waiting.remove(job)
                active[i] = job, start(place, job)
        if not active:  # what is left fits no place
            return
        for i in list(active):
            job, run = active[i]
            try:
                with places[i].on():
                    next(run)
            except StopIteration:
                del active[i]
            except Exception as error:
                del active[i]
                tell({"kind": "error", "job": job, "error": _said(error)})


def _wait() -> None:
    """For the device, so that what one stream has made can be read on another."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _said(error: Exception) -> str:
    return "".join(traceback.format_exception(error))[-1500:]


def _speeds(sources: list[Trainer], students: list[Student], plan: Plan) -> dict[str, float]:
    """Seconds a step of one run, while all that will run together does."""
    cycles = 2 if plan.small else 30
    steps = (cycles + 4) * CYCLE
    names = [name for name in (*plan.settings[1:], *plan.settings) if name != "kd"]
    found = {}
    runs = [(each, _recorded(each, i, steps)) for i, each in enumerate(sources)]
    found["source"] = _seconds(runs, cycles)
    runs = []
    for each, name in zip(students, names * len(students), strict=False):
        shape = (steps // CYCLE + 1, *each.source[0].weight.shape)
        record = torch.randn(shape).to(each.target.device)
        state = each.teacher.state_dict() if each.teacher is not None else {}
        setting = "kd" if each.teaches else name
        runs.append((each, each.run(setting, 0, steps, record, state)))
    found["student"] = _seconds(runs, cycles)
    return found


def _seconds(runs: list[tuple[Any, Iterator[None]]], cycles: int) -> float:
    """Of a step, once everything has begun."""

    def advance(times: int) -> None:
        _wait()
        for _ in range(times):
            for place, run in runs:
                with place.on():
                    next(run)
        _wait()

    advance(2)
    began = time.perf_counter()
    advance(cycles)
    seconds = time.perf_counter() - began
    for _, run in runs:
        run.close()  # type: ignore[attr-defined]
    return seconds / (cycles * CYCLE * len(runs))


def _steps(
    plan: Plan, met: list[dict[str, float]], deadline: float, of: int, epoch: int
) -> tuple[int, dict[str, Any]]:
    """How many steps fit, in whole epochs where there is one."""
    seeds = math.ceil(len(plan.seeds) / of)
    source, student = (max(each[name] for each in met) for name in ("source", "student"))
    runs = seeds * len(plan.settings)
    left = 0.93 * (deadline - time.time()) - OVERHEAD * (runs + seeds)
    steps = int(left / (seeds * source + runs * student))
    steps = steps // epoch * epoch if steps >= epoch else steps
    steps = max(2 * CYCLE, steps // CYCLE * CYCLE)
    return steps, {"seconds a step": {"source": source, "student": student}, "left": left}


def _meet(folder: Path, name: str, mine: int, of: int, said: dict[str, float]) -> list[Any]:
    """Wait for all workers, half a minute at most; what each of them says."""
    partial = folder / f"{name}{mine}.partial"
    partial.write_text(json.dumps(said))
    partial.rename(folder / f"{name}{mine}.json")
    until = time.time() + 30
    while len(list(folder.glob(f"{name}*.json"))) < of and time.time() < until:
        time.sleep(0.05)
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}*.json"))]


def _facts(plan: Plan, name: str, seed: int, steps: int, epochs: float) -> dict[str, Any]:
    return {
        "kind": "run",
        "regime": plan.regime,
        "setting": name,
        "seed": seed,
        "steps": steps,
        "epochs": round(epochs, 2),
    }


def _summary(history: list[Transfer]) -> dict[str, Any]:
    """Of a graft's transfers: how many, and how much each changed its layer, in the first and the last quarter."""
    taken = [e for e in history if not e.skipped]
    rows = [row for e in taken for row in e.changes.values()]
    angles = [math.degrees(math.acos(max(-1.0, min(1.0, row.cosine)))) for row in rows]
    quarter = max(1, len(rows) // 4)
    return {
        "transfers": len(taken),
        "skipped": len(history) - len(taken),
        "angle of a write": {
            "first": angles[0],
            "first quarter": statistics.mean(angles[1:quarter] or angles[:1]),
            "last quarter": statistics.mean(angles[-quarter:]),
        },
        "size of a write": {"first": rows[0].size, "last": rows[-1].size},
    }
