"""What an experiment is: models that learn, and arms that differ from plain training in one thing each.

In: nothing. Out: the records that a table file fills in and the harness runs. Always true: a record is data, so that a
digest of it can name the file that holds its result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = [
    "Arm",
    "Distil",
    "Experiment",
    "Graft",
    "Network",
    "Setup",
    "Start",
    "Task",
    "controls",
    "facts_of",
    "setup_as",
]


class Task(Protocol):
    """What a model learns, and how well it does: training examples are named by their positions.

    Attributes:
        facts: which data this is, as JSON: name, split, sizes. It is part of the key of every result.
        size: training examples.
        augments: whether an example looks different every time it is read.
        metrics: names of what `evaluate` gives; larger is better, in percent.
    """

    facts: dict[str, Any]
    size: int
    augments: bool
    metrics: tuple[str, ...]

    def to(self, device: torch.device) -> Task:
        """The same task with its tensors on `device`."""

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace a model with."""

    def inputs(self, index: Tensor) -> tuple[Tensor, ...]:
        """What a model is called with for the training examples `index`; augmentation draws from torch's generator."""

    def labels(self, index: Tensor) -> Tensor:
        """The truth of the training examples `index`."""

    def loss(self, outputs: Any, labels: Tensor) -> Tensor:
        """A scalar, of what the model returned for `inputs`."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The metrics on held-out examples; `model` is in eval mode."""


@dataclass(frozen=True)
class Network:
    """One model of an experiment, what it learns and how.

    Attributes:
        make: makes the model with fresh weights, drawn from torch's global generator (pretrained ones are read).
        task: what it learns.
        batch: examples a step.
        lr: largest learning rate; it warms up over the share `warmup` of the steps, then follows a cosine to zero.
        weight_decay: of the optimizer.
        optimizer: ``"sgd"`` (Nesterov, momentum 0.9) or ``"adamw"``.
        per_round: optimizer steps in one round of the experiment.
        source_rounds: of training it as a frozen source or teacher; None for as many as in an arm, 0 for none (it came
            pretrained).
        precision: ``"float32"``, or ``"bfloat16"`` for autocast.
        begins: the network of the same form whose trained, frozen weights it begins with; None for fresh ones.
    """

    make: partial[nn.Module]
    task: Task
    batch: int
    lr: float
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    warmup: float = 0.0
    per_round: int = 1
    source_rounds: int | None = None
    precision: str = "float32"
    begins: str | None = None


@dataclass(frozen=True)
class Graft:
    """Which network's layers write to which other's.

    Attributes:
        source: the network that gives. It is co-trained where the arm trains it, else a trained, frozen one.
        target: the network that receives; the same one for self transfer. Its optimizer steps are the clock.
        links: (source pattern, target pattern) pairs, as `graftlib.Mapping.link` takes them.
        direction: ``"forward"`` or ``"both"``.
        method: one of `training.METHODS`.
        options: of that adapter.
        cycle: T_cycle, in steps of the target.
        start, stop: shares of training between which transfers take place.
        lr: of the adapter's optimizer.
        spoil: what becomes of the source's linked weights: ``"random"`` noise of the same moments, ``"shuffled"`` rows;
            ``"initial"`` takes a source that was never trained. A spoiled source is a frozen copy.
        aligned: the layers of the source that each link names first are carried into the target's shapes and order of
            units before the training (`graftlib_adapters.assembly.transplant`); the adapter reads the target's own
            layer, with what was carried in it. A source that learns cannot be.
    """

    source: str
    target: str
    links: tuple[tuple[str, str], ...]
    direction: str = "forward"
    method: str = "mergenet"
    options: Mapping[str, Any] = field(default_factory=dict)
    cycle: int = 4
    start: float = 0.0
    stop: float | None = 0.8
    lr: float = 1e-3
    spoil: str | None = None
    aligned: bool = False


@dataclass(frozen=True)
class Start:
    """A start from the transplanted weights of a trained network (`graftlib_adapters.assembly.transplant`).

    Attributes:
        source: the network that gives.
        target: the network that begins with what it gave.
        links: (source pattern, target pattern) pairs of layers that meet; empty to pair them by kind, order and depth.
    """

    source: str
    target: str
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Distil:
    """A distillation loss beside (or mixed with) the task's own.

    Attributes:
        loss: one of `baselines.LOSSES`.
        student: the network that learns from it.
        teacher: the trained, frozen network; None where the loss is its own teacher.
        options: of the loss.
    """

    loss: str
    student: str
    teacher: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One row of a table.

    Attributes:
        name: as it is printed.
        trains: the networks it trains, in the order of their steps in a round; a graft's target comes last.
        graft: the graft, if there is one.
        distil: the distillation loss, if there is one.
        noise_of: name of a grafted arm: at each of its transfers this one adds noise of the same norm instead.
        start: where the weights of one of its networks come from, if not from its maker.
        versus: names of the arms that it is compared with, seed by seed.
        paper: metric -> the paper's figure for this row.
    """

    name: str
    trains: tuple[str, ...]
    graft: Graft | None = None
    distil: Distil | None = None
    noise_of: str | None = None
    start: Start | None = None
    versus: tuple[str, ...] = ("plain",)
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A table or a figure: run by `harness.main`.

    Attributes:
        name: of the file that declares it.
        networks: name -> network.
        arms: the rows; one is called ``plain`` and trains every network that any other arm trains.
        rounds: of a whole training; a network takes ``per_round`` steps in each.
        of_paper: what the paper's figures were measured on.
        result: False where the data is a stand-in that proves only that the code runs.
    """

    name: str
    networks: Mapping[str, Network]
    arms: tuple[Arm, ...]
    rounds: int
    of_paper: str
    result: bool = True

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True)
class Setup:
    """What the command line says about how an experiment is built.

    Attributes:
        scale: ``"smoke"``, ``"small"`` or ``"paper"``.
        split: ``"test"``, or ``"validation"``: held out of the training examples, to choose settings by.
        data: the data set, where a file offers several; None for the scale's own.
        root: the folder of data sets.
        models: the folder of pretrained models.
        device: torch's name of it.
        rounds: instead of the scale's own.
        overrides: settings that replace those of every graft: fields of `Graft`, or options of MergeNet.
    """

    scale: str = "smoke"
    split: str = "test"
    data: str | None = None
    root: Path | None = None
    models: Path | None = None
    device: str = "cpu"
    rounds: int | None = None
    overrides: tuple[tuple[str, Any], ...] = ()


def controls(arm: Arm, *, frozen: bool = True) -> list[Arm]:
    """`arm`, and with it the arms that carry no knowledge: a gain counts only where it beats these too.

    Args:
        arm: a grafted one.
        frozen: whether spoiled copies of the source make sense: not where the arm also writes to the source.
    """
    assert arm.graft is not None
    spoilt = [
        Arm(
            f"{arm.name}, {text}",
            trains=(arm.graft.target,),
            graft=replace(arm.graft, spoil=how, direction="forward"),
            distil=arm.distil,
            start=arm.start,
        )
        for how, text in (
            ("random", "random source"),
            ("shuffled", "shuffled source"),
            ("initial", "source at initialisation"),
        )
    ]
    noise = Arm(
        f"{arm.name}, equal-norm noise",
        arm.trains,
        distil=arm.distil,
        noise_of=arm.name,
        start=arm.start,
    )
    baselines = (*(spoilt[:1] if frozen else []), noise)
    seen = replace(arm, versus=(*arm.versus, *(baseline.name for baseline in baselines)))
    return [seen, *(spoilt if frozen else []), noise]


def setup_as(experiment: Experiment, setup: Setup) -> Experiment:
    """The experiment with the rounds and the graft settings that `setup` puts in the place of its own."""
    graft_fields = {f.name for f in fields(Graft)} - {"source", "target", "links", "options"}
    own = {name: value for name, value in setup.overrides if name in graft_fields}
    options = {name: value for name, value in setup.overrides if name not in graft_fields}

    def changed(arm: Arm) -> Arm:
        if arm.graft is None:
            return arm
        merged = {**arm.graft.options, **(options if arm.graft.method == "mergenet" else {})}
        return replace(arm, graft=replace(arm.graft, options=merged, **own))

    return replace(
        experiment,
        arms=tuple(changed(arm) for arm in experiment.arms),
        rounds=setup.rounds or experiment.rounds,
    )


def facts_of(thing: Any) -> Any:
    """Any record above as plain JSON data.

    A task is its facts; a maker is its name and its keywords, but for `models`, a folder of this machine.

    Raises:
        TypeError: a maker has positional arguments, which would not be in its facts.
    """
    if isinstance(thing, partial) and thing.args:
        raise TypeError(f"a maker takes keywords only, and {thing} has others")
    if isinstance(thing, partial):
        keywords = {name: value for name, value in thing.keywords.items() if name != "models"}
        return {"make": thing.func.__qualname__, **facts_of(keywords)}
    if is_dataclass(thing) and not isinstance(thing, type):
        if hasattr(thing, "facts"):
            return facts_of(thing.facts)
        return {f.name: facts_of(getattr(thing, f.name)) for f in fields(thing)}
    if isinstance(thing, Mapping):
        return {str(key): facts_of(value) for key, value in thing.items()}
    if isinstance(thing, Sequence) and not isinstance(thing, str):
        return [facts_of(item) for item in thing]
    return thing if isinstance(thing, bool | int | float | str | None) else str(thing)
