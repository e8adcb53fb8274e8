"""Train the networks of one arm with one seed: an ordinary loop, with or without a graft.

In: an experiment, an arm, a seed, trained sources. Out: what was measured, as JSON. Always true: with one seed, a
network has the same initial weights, the same batches and the same dropout in every arm, whoever else trains beside it
(digests of weights and batches are kept, and compared by `summary`); accuracy is that of the last step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from graftlib import TransferCycle, attach
from graftlib.graft import AdapterOptimizer
from graftlib_adapters import MergeNet, MLPAdapter, ParameterSharing

from ..common.memory import Meter
from .asked_twice import AskedTwice
from .baselines import Baseline
from .controls import Noise, aligned, link, spoiled
from .experiment import Arm, Experiment, Graft, Network, Start
from .pull import Pull

__all__ = ["SOURCE_SEED", "Learner", "made", "run", "train_source"]

SOURCE_SEED = 1000
"""Of the frozen sources and teachers: one for all seeds of a table, as a downloaded checkpoint would be."""

METHODS: dict[str, Callable[..., Any]] = {
    "mergenet": MergeNet,
    "mergenet, overheard": lambda **options: AskedTwice(MergeNet(**options)),
    "mlp": MLPAdapter,
    "sharing": ParameterSharing,
    "pull": Pull,
}


class Learner:
    """One network in training.

    Args:
        name: of the network; with the seed it decides weights, batches and dropout.
        rounds: of the experiment.
        sources: holds the network that this one begins with, where it begins with one.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        seed: int,
        rounds: int,
        device: torch.device,
        sources: Mapping[str, nn.Module],
    ) -> None:
        self.name, self.network, self.seed, self.device = name, network, seed, device
        self.total = rounds * network.per_round
        self.model = made(name, network, seed, device)
        if network.begins is not None:
            self.model.load_state_dict(sources[network.begins].state_dict())
        self.weights = digest(self.model)
        self.optimizer = _optimizer(network, self.model)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda t: _rate(t, self.total, network.warmup)
        )
        self.batches = _batches(network, number(seed, name, "batches"))
        self.seen = hashlib.sha256()
        self.done = 0
        self.loss = math.nan

    def step(self, baseline: Baseline | None = None) -> None:
        """One optimizer step; a distillation loss takes the place of the task's own."""
        torch.manual_seed(number(self.seed, self.name, self.done))  # dropout and augmentation
        index = next(self.batches)
        self.seen.update(index.numpy().tobytes())
        index = index.to(self.device)
        task = self.network.task
        self.optimizer.zero_grad()
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.network.precision == "bfloat16"
        ):
            if baseline is None:
                loss = task.loss(self.model(*task.inputs(index)), task.labels(index))
            else:
                loss = baseline.loss(task, self.model, index, self.done / self.total)
        loss.backward()
        self.optimizer.step()
        if baseline is not None:
            baseline.stepped()
        self.schedule.step()
        self.done += 1
        if self.done == self.total:
            self.loss = float(loss.detach())

    def evaluate(self) -> dict[str, float]:
        """Metric -> percent on the held-out examples."""
        self.model.eval()
        with torch.inference_mode():
            return self.network.task.evaluate(self.model)


def run(
    experiment: Experiment,
    arm: Arm,
    seed: int,
    sources: dict[str, nn.Module],
    sizes: list[Any] | None,
    device: torch.device,
) -> dict[str, Any]:
    """Train all networks of `arm`.

    Args:
        experiment: whose networks they are.
        arm: of it.
        seed: of all that is random.
        sources: network -> trained model in eval mode; those that the arm reads without training them.
        sizes: of the transfers that a noise arm repeats, as the grafted arm of the same seed left them.
        device: that everything takes place on.

    Returns:
        ``metrics``, ``loss``, digests ``weights`` and ``batches``, ``cost``, and of a graft ``transfers``, ``skipped``
        ``sizes`` (step, target -> size over the norm before) and ``facts`` (link -> what the adapter has learned).
    """
    meter = Meter(device)
    learners = {
        name: Learner(name, experiment.networks[name], seed, experiment.rounds, device, sources)
        for name in arm.trains
    }
    if arm.start is not None:
        _begin(arm.start, experiment, learners, sources)
    baseline = _baseline(arm, learners, sources, seed)
    graft = noise = None
    if arm.graft is not None:
        graft = _grafted(arm.graft, experiment, learners, sources, seed, device)
    if arm.noise_of is not None:
        assert sizes is not None
        noise = _noise(experiment, arm.noise_of, learners, sources, sizes, seed)
        # As a graft writes: when it is attached, and then right behind a step of its target.
        noise.add(0)
    for _ in range(experiment.rounds):
        for name, learner in learners.items():
            for _ in range(learner.network.per_round):
                learner.step(baseline if arm.distil and arm.distil.student == name else None)
                if noise is not None and name == noise.clock:
                    noise.add(learner.done)
    found: dict[str, Any] = {"arm": arm.name, "seed": seed}
    if graft is not None:
        graft.detach()
        found |= _transfers(graft)
    found["cost"] = meter.read()
    found["metrics"] = {
        metric: score for each in learners.values() for metric, score in each.evaluate().items()
    }
    found["loss"] = {name: learner.loss for name, learner in learners.items()}
    found["weights"] = {name: learner.weights for name, learner in learners.items()}
    found["batches"] = {name: learner.seen.hexdigest() for name, learner in learners.items()}
    return found


def train_source(
    name: str,
    network: Network,
    rounds: int,
    device: torch.device,
    sources: Mapping[str, nn.Module],
) -> Learner:
    """Train `network` plainly with `SOURCE_SEED`, to be a frozen source or a teacher."""
    learner = Learner(name, network, SOURCE_SEED, rounds, device, sources)
    for _ in range(learner.total):
        learner.step()
    return learner


def made(name: str, network: Network, seed: int, device: torch.device) -> nn.Module:
    """The network's model with the initial weights of `seed`, in training mode."""
    torch.manual_seed(number(seed, name, "weights"))
    return network.make().to(device).train()


def number(*parts: object) -> int:
    """A seed below 2^62 that depends on every part: no two streams of random numbers are shifted copies."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def digest(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of a model's state."""
    seen = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        seen.update(name.encode())
        seen.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def _begin(
    start: Start,
    experiment: Experiment,
    learners: dict[str, Learner],
    sources: dict[str, nn.Module],
) -> None:
    """Write the weights to begin with; the digest of the weights stays that of the maker's, which all arms share."""
    examples = (experiment.networks[p].task.example() for p in (start.source, start.target))
    target = learners[start.target].model
    begun = aligned(start.links, sources[start.source], target, *examples)
    target.load_state_dict(begun.state_dict())


def _baseline(
    arm: Arm, learners: dict[str, Learner], sources: dict[str, nn.Module], seed: int
) -> Baseline | None:
    if arm.distil is None:
        return None
    student, teacher = learners[arm.distil.student], sources.get(arm.distil.teacher or "")
    torch.manual_seed(number(seed, "rival"))
    return Baseline(arm.distil, student.network.task, student.model, student.optimizer, teacher)


def _noise(
    experiment: Experiment,
    name: str,
    learners: dict[str, Learner],
    sources: dict[str, nn.Module],
    sizes: list[Any],
    seed: int,
) -> Noise:
    """What stands for the graft of the arm `name`, on the same two models."""
    graft = experiment.arm(name).graft
    assert graft is not None
    models = sources | {network: learner.model for network, learner in learners.items()}
    target = models[graft.target]
    given, received = (experiment.networks[p].task.example() for p in (graft.source, graft.target))
    if graft.aligned:  # only the places matter here, and they are the target's own
        mapping = link(graft, deepcopy(target), target, received, received)
    else:
        mapping = link(graft, models[graft.source], target, given, received)
    return Noise(graft.target, mapping, sizes, number(seed, "noise"))


def _transfers(graft: Any) -> dict[str, Any]:
    """How many there were, the step and the sizes of each, and what the adapter says of itself at the last."""
    done = [entry for entry in graft.history if not entry.skipped]
    sizes = [[e.step, {name: row.size for name, row in e.changes.items()}] for e in done]
    said = done[-1].facts if done else {}
    return {"transfers": len(done), "skipped": graft.skipped, "sizes": sizes, "said": said}


def _grafted(
    graft: Graft,
    experiment: Experiment,
    learners: dict[str, Learner],
    sources: dict[str, nn.Module],
    seed: int,
    device: torch.device,
) -> Any:
    """Attach and follow: from here on the loop does not know that there is a graft."""
    source, target = experiment.networks[graft.source], learners[graft.target]
    if graft.spoil is not None:
        fresh = made(graft.source, source, number(seed, "initial"), device).eval()
        model = spoiled(sources[graft.source], fresh, graft, number(seed, graft.spoil))
    elif graft.source in learners:
        model = learners[graft.source].model
    else:
        model = sources[graft.source]
    examples = source.task.example(), target.network.task.example()
    if graft.aligned:
        model = aligned(graft.links, model, target.model, *examples)
        examples = examples[1], examples[1]
    mapping = link(graft, model, target.model, *examples)
    live = attach(
        METHODS[graft.method](**graft.options),
        mapping,
        cycle=TransferCycle(graft.cycle, start=graft.start, stop=graft.stop),
        total_steps=target.total,
        optimizer=AdapterOptimizer(lr=graft.lr),
        seed=seed,
    )
    writers = [target.optimizer]
    if graft.direction == "both" and graft.source != graft.target:
        writers.append(learners[graft.source].optimizer)
    return live.follow(*writers)


def _batches(network: Network, seed: int) -> Iterator[Tensor]:
    """Positions of training examples, batch by batch without an end; the remainder of an epoch is left out."""
    generator = torch.Generator().manual_seed(seed)
    size = min(network.batch, network.task.size)
    while True:
        order = torch.randperm(network.task.size, generator=generator)
        yield from order[: len(order) // size * size].split(size)


def _optimizer(network: Network, model: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if network.optimizer == "adamw":
        return torch.optim.AdamW(parameters, network.lr, weight_decay=network.weight_decay)
    return torch.optim.SGD(
        parameters, network.lr, momentum=0.9, weight_decay=network.weight_decay, nesterov=True
    )


def _rate(t: int, total: int, warmup: float) -> float:
    warm = round(total * warmup)
    if t < warm:
        return (t + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (t - warm) / max(1, total - warm)))
