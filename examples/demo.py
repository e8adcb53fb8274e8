"""Five ways to begin a slim network where a trained one exists, on real digits, each judged by its interval.

    make demo            or, where graftlib is installed: python examples/demo.py --out out

For each of five seeds a source learns from 1,200 digits. A network of half its width learns from 100 of them, five
times: from random weights; from the pruned source; with a MergeNet graft; with the source's aligned weights shared for
the first tenth of training; by distillation. All runs of a seed see the same batches. What a row claims follows from a
paired 95 % interval over the seeds. Then the graft is off, and the network is shipped as ONNX, with its proof.
"""

import argparse
import json
import time
from collections import OrderedDict
from copy import deepcopy
from pathlib import Path

import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from graftlib import Mapping, TransferCycle, attach, export_onnx, surgery, trace, view
from graftlib.graft import settled
from graftlib_adapters import AlignedPull, MergeNet, distillation

PIXELS, LABELS = load_digits(return_X_y=True)
X, Y = torch.tensor(PIXELS).float().view(-1, 1, 8, 8) / 16, torch.tensor(LABELS)
EXAMPLE = (X[:2],)
LAYERS = ("conv1", "conv2", "conv3", "classifier")
POINTS = 12  # of a curve
FILES = {
    "slim.onnx": "the slim network after the pull, proven against PyTorch",
    "mapping.html": "the layers that were linked: open it in a browser",
    "curves.png": "accuracy along the way: means, and bands from the least to the best seed",
    "report.json": "every figure",
}


def network(width):
    layers, channels = OrderedDict(), 1
    for i, last in enumerate((nn.MaxPool2d(2), nn.MaxPool2d(2), nn.Flatten()), 1):
        layers[f"conv{i}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers |= {f"norm{i}": nn.BatchNorm2d(width), f"relu{i}": nn.ReLU(), f"end{i}": last}
        channels = width
    return nn.Sequential(layers | {"classifier": nn.Linear(4 * width, 10)})


def linked(source, target, layers=LAYERS):
    mapping = Mapping(trace(source, EXAMPLE), trace(target, EXAMPLE))
    for layer in layers:
        mapping.link(layer, layer)
    return mapping


def random_start(source, slim, steps, seed):
    """As every start: the source, the slim network with random weights, … -> what `train` takes."""
    return {"model": slim}


def slim_start(source, slim, steps, seed):
    """The stronger half of the source's channels."""
    return {"model": surgery.prune(trace(source, EXAMPLE), 0.5).requires_grad_(True)}


def mergenet(source, slim, steps, seed):
    """A small network reads one layer of the source and rewrites one of the target, every fourth step."""
    when = {"cycle": TransferCycle(every=4, stop=0.8), "total_steps": steps}
    mapping = linked(source, slim, ["conv3"])
    return {"model": slim, "graft": attach(MergeNet(), mapping, seed=seed, **when)}


def pulled(source, slim, steps, seed):
    """At first every step moves each layer half of the way to its counterpart in the source."""
    mapping = linked(source, slim)
    when = {"cycle": TransferCycle(every=1, stop=0.1), "total_steps": steps}
    return {"model": slim, "graft": attach(AlignedPull(mapping), mapping, **when)}


def distilled(source, slim, steps, seed):
    return {"model": slim, "teacher": source}


STARTS = {
    "random start": random_start,
    "slim start: pruned source": slim_start,
    "MergeNet graft": mergenet,
    "AlignedPull graft": pulled,
    "distillation": distilled,
}


def train(images, test, steps, seed, model, graft=None, teacher=None):
    """An ordinary loop; returns `POINTS` held-out accuracies in percent, the last one after the last step."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    marks, curve = {round(steps * (i + 1) / POINTS) for i in range(POINTS)}, []
    if graft is not None:
        graft.follow(optimizer)
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        batch = images[torch.randint(len(images), (50,), generator=generator)]
        logits = model.train()(X[batch])
        loss = cross_entropy(logits, Y[batch])
        if teacher is not None:
            loss = loss + distillation.kd(logits, teacher(X[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step == steps and graft is not None:
            graft.detach()
        if step in marks:
            with settled(model), torch.no_grad():
                right = model.eval()(X[test]).argmax(1) == Y[test]
            curve.append(100 * right.double().mean().item())
    return curve


def run(seed, images, steps):
    """Curves by start, the source, and the trained networks."""
    torch.manual_seed(seed)
    many, test = torch.randperm(len(Y)).split([1200, 597])
    source, slim = network(32), network(16)
    curves = {"source": train(many, test, 4 * steps, seed, source)}
    source.requires_grad_(False)
    models = {}
    for name, start in STARTS.items():
        setup = start(source, deepcopy(slim), steps, seed)
        curves[name] = train(many[:images], test, steps, seed, **setup)
        models[name] = setup["model"]
    return curves, source, models


def sentence(low, high):
    """What a 95 % interval of differences to the random start, in points, allows one to say."""
    if low > 0:
        return f"better than a random start, by {low:.1f} to {high:.1f} points"
    if high < 0:
        return f"worse than a random start, by {-high:.1f} to {-low:.1f} points"
    return f"no difference to a random start is shown ({low:+.1f} to {high:+.1f} points)"


def table(ends):
    """A line for each row of `ends`: name -> last accuracies by seed, in percent."""
    text = {"source": "twice as wide, and taught by 1,200 digits"}
    text["random start"] = f"the slim network alone; mean of {len(ends['source'])} seeds, as below"
    for name in list(STARTS)[1:]:
        gains = [a - b for a, b in zip(ends[name], ends["random start"], strict=True)]
        mean, half = sum(gains) / len(gains), stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
        text[name] = sentence(mean - half, mean + half)
    return [f"{name:26} {sum(ends[name]) / len(ends[name]):5.1f} %  {text[name]}" for name in text]


def draw(curves, steps, path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes, at = figure.subplots(), torch.linspace(steps / POINTS, steps, len(curves[0]["source"]))
    for name in STARTS:
        values = torch.tensor([seed[name] for seed in curves])
        (line,) = axes.plot(at, values.mean(0), label=name)
        axes.fill_between(at, values.amin(0), values.amax(0), alpha=0.12, color=line.get_color())
    axes.set(xlabel="training steps", ylabel="held-out accuracy, percent")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--seeds", type=int, default=5, help="two or more")
    parser.add_argument("--images", type=int, default=100, help="digits that the slim network sees")
    parser.add_argument("--steps", type=int, default=150, help="of a slim training; 12 or more")
    parser.add_argument("--threads", type=int, default=1)
    args, began = parser.parse_args(arguments), time.perf_counter()
    if args.seeds < 2 or args.steps < POINTS:
        parser.error("an interval needs --seeds 2 or more, a curve --steps 12 or more")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    runs = [run(seed, args.images, args.steps) for seed in range(args.seeds)]
    curves, (_, source, models) = [curves for curves, _, _ in runs], runs[0]
    lines = table({name: [seed[name][-1] for seed in curves] for name in curves[0]})
    print(*lines, "", sep="\n")
    slim = models["AlignedPull graft"]  # the graft is detached: an ordinary network
    print(export_onnx(slim, args.out / "slim.onnx", EXAMPLE, card=False), "\n")
    mapping = linked(source, slim)
    view(mapping.source, mapping.target, mapping).save(args.out / "mapping.html")
    draw(curves, args.steps, args.out / "curves.png")
    (args.out / "report.json").write_text(json.dumps({"table": lines, "curves": curves}) + "\n")
    print(*(f"{args.out / name}: {about}" for name, about in FILES.items()), sep="\n")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
