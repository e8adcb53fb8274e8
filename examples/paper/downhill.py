"""Does the training loss lead to a source? The angle between a target's gradient and the way to other weights.

    python -m examples.paper.downhill                                              # smoke: digits, seconds
    python -m examples.paper.downhill --scale small --root DIR --rounds 124 --seeds 4 --out downhill.json

A graft's adapter learns from the target's own steps alone. It can find a source only if a step towards the source
lowers the loss, that is, if the cosine of minus the gradient with the way to the source is above zero. M is trained
plainly, twice in the same way; in the second training that cosine is taken in every step and layer, to

its own end         the weights that this very training arrived at: the check of the measure
a sibling           the same training on other batches, from the same start
an aligned ResNet   a strong one, unit for unit in M's shapes, where it has a layer for it
noise               of the same norms

once from fresh weights, and once from an ancestor that was trained for longer, on crops and flips.
The length of a weight before a normalisation does not matter to the loss, so a way is taken at the weight's own length,
and without its part along the weight.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common import command, results
from ..common.intervals import interval
from .controls import aligned
from .experiment import Experiment, Network, Setup, setup_as
from .harness import shared_arguments
from .images import layers_of, mobilenet_network, rounds_of, strong_network, stronger
from .run_files import RunFiles
from .training import Learner

__all__ = ["PHASES", "angles", "main"]

PHASES = 4
"""Quarters of a training, each with a mean of its own."""
FIRST_SEED = 100
STARTS = {"fresh weights": ("A0", "B0"), "a trained ancestor": ("A", "B")}
"""Where M begins: the network whose weights it takes, and M's sibling from there."""
Weights = dict[str, Tensor]


def experiment(setup: Setup) -> Experiment:
    """The networks alone: A0 is fresh, A trained, and B0 and B go on from them as M does, on batches of their own."""
    M = mobilenet_network(setup)
    networks = {
        "A0": replace(M, source_rounds=0),
        "A": stronger(setup, M),
        "B0": replace(M, begins="A0"),
        "B": replace(M, begins="A"),
        "S": strong_network(setup),
    }
    return Experiment("downhill", networks, (), rounds_of(setup), of_paper="none")


def angles(setup: Setup, cache: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Start -> kind of weights -> mean cosine in each phase, over steps and layers; a row for each seed.

    Args:
        setup: at which size, on which data.
        cache: the folder of trained sources.
        seeds: of the target's batches.
    """
    used = setup_as(experiment(setup), setup)
    run_files = RunFiles(used, setup, cache)
    source = run_files.source("S")
    layers: dict[str, int] = {}
    found: dict[str, dict[str, list[list[float]]]] = {}
    for start, (ancestor, twin) in STARTS.items():
        begun, sibling = run_files.source(ancestor), run_files.source(twin)
        names = layers_of(begun, (nn.Conv2d, nn.Linear))
        examples = (used.networks[p].task.example() for p in ("S", ancestor))
        carried = _weights(aligned((), source, begun, *examples), names)
        first = _weights(begun, names)
        reached = {n: w for n, w in carried.items() if not torch.equal(w, first[n])}
        ways = {"a sibling": _weights(sibling, names), "an aligned ResNet": reached}
        layers |= {"of M": len(names), f"of the ResNet, {start}": len(reached)}
        network = used.networks[twin]
        rows: dict[str, list[list[float]]] = {}
        for seed in seeds:
            end = _weights(_trained(network, used.rounds, begun, seed, {})[0], names)
            noise = {n: torch.randn_like(w) for n, w in end.items()}
            asked = {"its own end": end, **ways, "noise": noise}
            for kind, phases in _trained(network, used.rounds, begun, seed, asked)[1].items():
                rows.setdefault(kind, []).append(phases)
        found[start] = rows
    return {"layers": layers, "rounds": used.rounds, "cosines": found}


def _trained(
    network: Network, rounds: int, begun: nn.Module, seed: int, ways: dict[str, Weights]
) -> tuple[nn.Module, dict[str, list[float]]]:
    """A plain training from `begun`, and the mean cosine to each of `ways` in each of its phases."""
    device = next(begun.parameters()).device
    learner = Learner("M", network, seed, rounds, device, {str(network.begins): begun})
    seen: dict[str, list[list[float]]] = {kind: [[] for _ in range(PHASES)] for kind in ways}
    for step in range(learner.total):
        before = {kind: _weights(learner.model, list(way)) for kind, way in ways.items()}
        learner.step()
        for kind, way in ways.items():
            for name, there in way.items():
                down = -learner.model.get_submodule(name).weight.grad
                cosine = _cosine(down, _way(before[kind][name], there))
                seen[kind][step * PHASES // learner.total].append(cosine)
    means = {kind: [statistics.fmean(phase) for phase in phases] for kind, phases in seen.items()}
    return learner.model, means


def _way(here: Tensor, there: Tensor) -> Tensor:
    """From `here` to `there`, at the length of `here` and across it."""
    step = there * (here.norm() / there.norm()) - here
    return step - here * ((step * here).sum() / here.square().sum())


def _cosine(one: Tensor, other: Tensor) -> float:
    length = one.norm() * other.norm()
    return float((one * other).sum() / length) if length > 0 else 0.0


def _weights(model: nn.Module, names: list[str]) -> Weights:
    return {name: model.get_submodule(name).weight.detach().clone() for name in names}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--scale", choices=["smoke", "small"], default="smoke")
    shared_arguments(parser)
    parser.add_argument("--rounds", type=int, help="steps, instead of the scale's")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args(arguments)
    if args.seeds < 2:
        raise SystemExit("--seeds 2 or more: one seed has no spread")
    if args.rounds is not None and args.rounds < PHASES:
        raise SystemExit(f"--rounds {PHASES} or more: each quarter of a training has a mean")
    torch.set_num_threads(1)
    setup = Setup(args.scale, "validation", args.data, args.root, rounds=args.rounds)
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    found = angles(setup, args.cache, seeds)
    found = {"experiment": "downhill", "scale": args.scale, "seeds": list(seeds), **found}
    found["means"] = {
        start: {
            kind: [interval(list(values)) for values in zip(*rows, strict=True)]
            for kind, rows in kinds.items()
        }
        for start, kinds in found["cosines"].items()
    }
    print(f"{found['rounds']} steps, seeds {found['seeds']}, layers {found['layers']}")
    for start, kinds in found["means"].items():
        print(f"from {start}")
        for kind, row in kinds.items():
            print(f"  {kind}: " + ", ".join(f"{m:+.4f} [{a:+.4f}, {b:+.4f}]" for m, a, b in row))
    if args.out:
        results.save(args.out, found)
    return found


if __name__ == "__main__":
    main()
