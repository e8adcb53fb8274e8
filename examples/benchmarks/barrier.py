"""How high the barrier is between two MLPs that were aligned, next to published ways to align them in the same run.

    python -m examples.benchmarks.barrier --root DIR --cache out/barrier --pairs 3 -o docs/benchmarks/barrier.json

Pairs of MLPs (784-512-512-512-10 by default) are trained on all images of MNIST from other initial weights, with other
batches. One network of a pair is aligned to the other, both are interpolated at 21 factors, and the barrier is the
largest height of the test loss above the chord, max [L(l) - (1 - l) L(0) - l L(1)], in nats; for accuracy the largest
depth below the chord, in points. Ways to align:

    as they are        no alignment
    ours               coordinate descent from the grown start
    ours, identity start   the published algorithm's start
    ours, restarts     the best of the grown and five random starts
    ours, Frank-Wolfe  all classes at once (the algorithm of C2M3)
    ours, activations  correlations of units on 2,000 training images
    rebasin            the package, where it can be imported
    git-re-basin       its authors' `weight_matching`, where `--git-re-basin` names a checkout and jax is there

The objective is |B|^2 - |B - T'|^2, larger is better; the function error is the largest relative change of the aligned
network's outputs, which should be none. Networks and rows that are done are kept under `--cache`.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlib import trace
from graftlib_adapters.assembly import Permutation, align, problem
from graftlib_adapters.assembly.activations import costs

from ..common import command, datasets, results
from ..common.training import load_or_train, loss_and_accuracy

POINTS = 21
BATCH = 256
RATE = 1e-3
State = dict[str, Tensor]


def load(name: str, root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images as rows, standardised as one number, with labels."""
    if name == "digits":
        x, y = datasets.read(name)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        x, y = 16 * x[order].flatten(1), y[order]
        parts = [x[:1397], y[:1397], x[1397:], y[1397:]]
    else:
        x, y, test_x, test_y = datasets.halves(name, root)
        parts = [(255 * x).round().flatten(1), y, (255 * test_x).round().flatten(1), test_y]
    mean, std = parts[0].mean(), parts[0].std()
    return (parts[0] - mean) / std, parts[1], (parts[2] - mean) / std, parts[3]


def mlp(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    """Adam, rate falling to nothing along a cosine."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()


# ----------------------------------------------------------------------------------------------------- ways to align


def ours(**options) -> Callable[..., State]:
    def aligned(base: nn.Module, source: nn.Module, x: Tensor) -> State:
        task = problem(trace(base, (x[:2],)), trace(source, (x[:2],)))
        given = dict(options)
        if given.pop("identity_start", False):
            sizes = {i: (c.bases, c.sources) for i, c in enumerate(task.classes)}
            given["start"] = {i: Permutation.identity(*size) for i, size in sizes.items()}
        if given.pop("activations", False):
            given["costs"] = costs(task, base, source, [x[:2000]])
        state = source.state_dict()
        return {**state, **align(task, base.state_dict(), state, **given).transported(state)}

    return aligned


def rebasin(base: nn.Module, source: nn.Module, x: Tensor) -> State:
    from rebasin import PermutationCoordinateDescent

    moved = copy.deepcopy(source)
    PermutationCoordinateDescent(base, moved, input_data_b=x[:2]).rebasin()
    return moved.state_dict()


def git_re_basin(folder: Path) -> Callable[..., State]:
    """The authors' function; of their `utils`, which wants flax and an older jax, it needs one line."""

    def aligned(base: nn.Module, source: nn.Module, x: Tensor) -> State:
        import jax

        utils = types.ModuleType("utils")
        utils.rngmix = lambda rng, number: jax.random.fold_in(rng, hash(number))
        sys.modules["utils"] = utils
        place = importlib.util.spec_from_file_location(
            "git_re_basin", folder / "src" / "weight_matching.py"
        )
        module = importlib.util.module_from_spec(place)
        place.loader.exec_module(module)
        linears = [name for name, each in base.named_modules() if isinstance(each, nn.Linear)]
        ours = [
            {
                f"Dense_{i}/{kind}": jax.numpy.asarray(
                    getattr(m.get_submodule(n), at).detach().numpy().T
                )
                for i, n in enumerate(linears)
                for kind, at in (("kernel", "weight"), ("bias", "bias"))
            }
            for m in (base, source)
        ]
        spec = module.mlp_permutation_spec(len(linears) - 1)
        rng = jax.random.PRNGKey(0)
        found = module.apply_permutation(
            spec, module.weight_matching(rng, spec, *ours, silent=True), ours[1]
        )
        return {
            f"{n}.{at}": torch.tensor(np.asarray(found[f"Dense_{i}/{kind}"]).T.copy())
            for i, n in enumerate(linears)
            for kind, at in (("kernel", "weight"), ("bias", "bias"))
        }

    return aligned


def ways(folder: Path | None) -> dict[str, Callable[..., State]]:
    found = {
        "as they are": lambda base, source, x: source.state_dict(),
        "ours": ours(),
        "ours, identity start": ours(identity_start=True),
        "ours, restarts": ours(restarts=5),
        "ours, Frank-Wolfe": ours(method="frank-wolfe"),
        "ours, activations": ours(activations=True),
    }
    if importlib.util.find_spec("rebasin") is not None:
        found["rebasin"] = rebasin
    if folder is not None:
        found["git-re-basin"] = git_re_basin(folder)
    return found


# --------------------------------------------------------------------------------------------------------- the figures


@torch.no_grad()
def walked(base: nn.Module, moved: State, x: Tensor, y: Tensor) -> dict[str, float]:
    """Losses and accuracies between both, and the largest distance to the chord."""
    model, start = copy.deepcopy(base), base.state_dict()
    rows = []
    for i in range(POINTS):
        model.load_state_dict({k: t.lerp(moved[k], i / (POINTS - 1)) for k, t in start.items()})
        rows.append(loss_and_accuracy(model, x, y))

    def highest(column: list[float], sign: int) -> float:
        last = len(column) - 1
        chord = [column[0] + i / last * (column[-1] - column[0]) for i in range(last + 1)]
        return max(sign * (v - c) for v, c in zip(column, chord, strict=True))

    losses, accuracies = (list(column) for column in zip(*rows, strict=True))
    return {
        "barrier": highest(losses, 1),
        "accuracy_barrier": highest(accuracies, -1),
        "middle_loss": losses[POINTS // 2],
        "middle_accuracy": accuracies[POINTS // 2],
    }


@torch.no_grad()
def judged(base: nn.Module, source: nn.Module, moved: State, x: Tensor) -> dict[str, float]:
    """Objective of an aligned source, and how far its function is from the source's."""
    graph = trace(base, (x[:2],))
    found = align(problem(graph, graph), base.state_dict(), moved, method="identity")
    again = copy.deepcopy(source)
    again.load_state_dict(moved)
    before, after = (m.double()(x[:200].double()) for m in (copy.deepcopy(source), again.double()))
    error = float((before - after).abs().max() / before.abs().max())
    return {"objective": found.objective, "function_error": error}


def row(
    way: Callable[..., State], pair: tuple[nn.Module, nn.Module], data: tuple[Tensor, ...]
) -> dict[str, float]:
    x, _, test_x, test_y = data
    base, source = (copy.deepcopy(each) for each in pair)
    start = time.process_time()
    moved = {name: tensor.detach() for name, tensor in way(base, source, x).items()}
    seconds = time.process_time() - start
    base, source = pair
    return {
        **walked(base, moved, test_x, test_y),
        **judged(base, source, moved, test_x),
        "cpu_s": seconds,
    }


def network(args: argparse.Namespace, data: tuple[Tensor, ...], seed: int) -> nn.Module:
    sizes = [data[0].shape[1], *[args.width] * args.depth, 10]
    path = args.cache / f"{args.data}-{args.width}-{args.depth}-{args.epochs}-{seed}.safetensors"
    torch.manual_seed(seed)
    return load_or_train(mlp(sizes), path, lambda model: train(model, *data[:2], args.epochs))


def summary(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """[mean, standard deviation] of every figure over the pairs."""
    return {
        key: [
            statistics.fmean(each[key] for each in rows),
            statistics.stdev(each[key] for each in rows) if len(rows) > 1 else 0.0,
        ]
        for key in rows[0]
    }


def against_published(rows: dict[str, dict[str, list[float]]]) -> dict[str, float | str | bool]:
    """Ours beside the published method of the lowest barrier in this run."""
    published = {
        name: rows[name]["barrier"][0] for name in ("rebasin", "git-re-basin") if name in rows
    }
    if not published:
        return {}
    best = min(published, key=published.get)
    gap = rows["ours"]["barrier"][0] - published[best]
    return {"best_published": best, "ours_minus_best": gap, "within_0.01": gap <= 0.01}


def main(argv: list[str] | None = None) -> None:
    parser = command.parser(__doc__, "barrier.json")
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--cache", type=Path, default=Path("out/barrier"))
    parser.add_argument("--data", choices=("mnist", "digits"), default="mnist")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--git-re-basin", type=Path, default=None, help="a checkout of the authors' code"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = load(args.data, args.root)
    found: dict[str, list[dict[str, float]]] = {}
    ends = []
    for number in range(args.pairs):
        pair = tuple(network(args, data, 2 * number + i) for i in (0, 1))
        ends += [loss_and_accuracy(each, *data[2:]) for each in pair]
        for name, way in ways(args.git_re_basin).items():
            done = (
                args.cache
                / f"{args.data}-{args.width}-{args.depth}-{args.epochs}-pair{number}-{name}.json"
            )
            found.setdefault(name, []).append(results.cached(done, partial(row, way, pair, data)))
            print(number, name, {k: round(v, 4) for k, v in found[name][-1].items()}, flush=True)
    rows = {name: summary(each) for name, each in found.items()}
    report = {
        "settings": {
            "data": args.data, "width": args.width, "depth": args.depth, "epochs": args.epochs,
            "pairs": args.pairs, "train_images": len(data[1]), "test_images": len(data[3]),
            "points": POINTS, "threads": 1,
        },
        "versions": results.versions(),
        "networks": {
            "test_loss": statistics.fmean(loss for loss, _ in ends),
            "test_accuracy": statistics.fmean(accuracy for _, accuracy in ends),
        },
        "rows": rows,
        "verdict": against_published(rows),
    }  # fmt: skip
    results.save(args.out, report)
    print(json.dumps(report["verdict"]))


if __name__ == "__main__":
    main()
