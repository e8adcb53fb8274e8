"""Does the training loss lead to a source? The angle between a target's gradient and the way to other weights.

    python examples/paper/downhill.py                                              # smoke: digits, seconds
    python examples/paper/downhill.py --scale small --root DIR --rounds 124 --seeds 4 --out downhill.json

A graft's adapter learns from the target's own steps alone. It can find a source only if a step towards the source
lowers the loss, that is, if the cosine of minus the gradient with the way to the source is above zero. M is trained
plainly, twice in the same way; in the second training that cosine is taken in every step and layer, to

its own end           the weights that this very training arrived at: the check of the measure
its own future        the same initial weights, trained longer and on other batches (F of `own_future.py`)
an aligned source     a strong ResNet, unit for unit in M's shapes, where it has a layer for it
noise                 of the same norms

The length of a weight before a normalisation does not matter to the loss, so a way is taken at the weight's own length,
and without its part along the weight.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import own_future
import search
import torch
from controls import aligned
from experiment import Experiment, Setup, setup_as
from images import layers_of
from ledger import Ledger
from summary import interval
from torch import Tensor, nn
from training import GIVER_SEED, Learner, made

from graftlib.disk import write_whole

__all__ = ["PHASES", "angles", "main"]

PHASES = 4
"""Quarters of a training, each with a mean of its own."""
FIRST_SEED = 100
Weights = dict[str, Tensor]


def angles(setup: Setup, cache: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Kind of weights -> mean cosine in each phase of the training, over steps and layers; one value a seed.

    Args:
        setup: at which size, on which data.
        cache: the folder of trained givers.
        seeds: of the target's batches; its initial weights are F's.
    """
    device = torch.device(setup.device)
    futures, strong = own_future.experiment(setup), search.experiment(setup)
    futures = setup_as(futures, setup)
    future = Ledger(futures, setup, cache).giver("F")
    source = Ledger(strong, setup, cache).giver("S")
    names = layers_of(future, (nn.Conv2d, nn.Linear))
    begun = made("F", futures.players["F"], GIVER_SEED, device)
    examples = (e.players[p].task.example() for e, p in ((strong, "S"), (futures, "M")))
    carried = _weights(aligned((), source, begun, *examples), names)
    first = _weights(begun, names)
    ways = {
        "its own future": _weights(future, names),
        "an aligned source": {n: w for n, w in carried.items() if not torch.equal(w, first[n])},
    }
    found: dict[str, list[list[float]]] = {}
    for seed in seeds:
        end = _weights(_trained(futures, begun, seed, {})[0], names)
        noise = {n: torch.randn_like(w) for n, w in end.items()}
        cosines = _trained(futures, begun, seed, {"its own end": end, **ways, "noise": noise})[1]
        for kind, phases in cosines.items():
            found.setdefault(kind, []).append(phases)
    layers = {kind: len(way) for kind, way in ways.items()}
    return {"layers": {"of M": len(names), **layers}, "rounds": futures.rounds, "cosines": found}


def _trained(
    experiment: Experiment, begun: nn.Module, seed: int, ways: dict[str, Weights]
) -> tuple[nn.Module, dict[str, list[float]]]:
    """A plain training from `begun`, and the mean cosine to each of `ways` in each of its phases."""
    device = next(begun.parameters()).device
    learner = Learner("M", experiment.players["M"], seed, experiment.rounds, device)
    learner.model.load_state_dict(begun.state_dict())
    seen: dict[str, list[list[float]]] = {kind: [[] for _ in range(PHASES)] for kind in ways}
    for step in range(learner.total):
        before = {kind: _weights(learner.model, list(way)) for kind, way in ways.items()}
        learner.step()
        for kind, way in ways.items():
            for name, there in way.items():
                down = -learner.model.get_submodule(name).weight.grad
                cosine = _cosine(down, _way(before[kind][name], there))
                seen[kind][step * PHASES // learner.total].append(cosine)
    means = {
        kind: [statistics.fmean(phase) if phase else math.nan for phase in phases]
        for kind, phases in seen.items()
    }
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=["smoke", "small"], default="smoke")
    parser.add_argument("--data", help="cifar10 or fashion-mnist, at small")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--rounds", type=int, help="steps, instead of the scale's")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path("out/paper"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    if args.seeds < 2:
        raise SystemExit("--seeds 2 or more: one seed has no spread")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    setup = Setup(args.scale, "validation", args.data, args.root, rounds=args.rounds)
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    found = angles(setup, args.cache, seeds)
    found = {"experiment": "downhill", "scale": args.scale, "seeds": list(seeds), **found}
    found["means"] = {
        kind: [interval(list(values)) for values in zip(*rows, strict=True)]
        for kind, rows in found["cosines"].items()
    }
    print(f"{found['rounds']} steps, seeds {found['seeds']}, layers {found['layers']}")
    for kind, row in found["means"].items():
        print(f"  {kind}: " + ", ".join(f"{m:+.4f} [{a:+.4f}, {b:+.4f}]" for m, a, b in row))
    if args.out:
        write_whole(args.out, json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
