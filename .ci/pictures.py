"""Make the pictures of docs/concepts.md by the library itself: `python .ci/pictures.py`; needs chromium on PATH."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from playwright.sync_api import sync_playwright
from torch import nn
from torch.nn.functional import cross_entropy

from graftlib import Mapping, attach, slim, surgery, trace, view
from graftlib.graft import AdapterOptimizer
from graftlib_adapters import MergeNet
from graftlib_adapters.assembly import align, problem
from graftlib_adapters.assembly.union_frame import union

HERE = Path(__file__).parent.parent / "docs" / "pictures"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


class Block(nn.Module):
    """Two convolutions on a residual stream."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, inner, 3, 1, 1), nn.Conv2d(inner, width, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """X + conv2(relu(conv1(x)))."""
        return x + self.conv2(torch.relu(self.conv1(x)))


class Net(nn.Module):
    """A stem, two blocks, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 10)
        self.blocks = nn.Sequential(Block(16, 24), Block(16, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def page(name: str, address: str, hovered: str | None = None, *, pruned: bool = False) -> None:
    """A picture of the page of `Net`, with the axis `hovered` in the panel, or with what half of it would keep."""
    torch.manual_seed(0)
    graph = trace(Net(), torch.zeros(1, 3, 12, 12))
    half = slim(graph, budget={"params": 0.5}) if pruned else None
    plan = {"edit": half.edit, "importance": half.importances} if half else {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        path = Path(folder) / "page.html"
        view(graph, depth=3, **plan).save(path)
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        window = browser.new_page(viewport={"width": 1100, "height": 620})
        window.goto(path.as_uri() + address)
        window.wait_for_timeout(800)
        if hovered:
            window.locator("#panel .axis", has_text=hovered).first.hover()
            window.wait_for_timeout(300)
        window.screenshot(path=HERE / f"{name}.png")
        browser.close()


def alignment(name: str) -> None:
    """A weight; a noisy copy with its neurons in another order; the copy as weight matching carries it back."""
    draw = torch.Generator().manual_seed(0)
    one, other = (nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4)) for _ in range(2))
    with torch.no_grad():
        for mine, copied in zip(one.parameters(), other.parameters(), strict=True):
            mine.copy_(torch.randn(mine.shape, generator=draw))
            copied.copy_(mine + 0.1 * torch.randn(mine.shape, generator=draw))
    x = torch.zeros(1, 12)
    order = torch.randperm(24, generator=draw)
    other = surgery.permute(trace(other, x), permutations={"0": order})
    found = align(problem(trace(one, x), trace(other, x)), one.state_dict(), other.state_dict())
    shown = {
        "base": one[0].weight,
        "source": other[0].weight,
        "source, aligned": found.transported(other.state_dict())["0.weight"],
    }
    figure, axes = plt.subplots(1, 3, figsize=(8, 3.2), layout="constrained", sharey=True)
    for axis, (title, weight) in zip(axes, shown.items(), strict=True):
        axis.imshow(weight.detach(), cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
        axis.set(title=title, xlabel="in", xticks=[], yticks=[])
    axes[0].set_ylabel("24 neurons")
    figure.savefig(HERE / f"{name}.png", dpi=110)


def union_frame(name: str) -> None:
    """A base of 16 neurons and a source of 24 that grew out of it, both in a frame of 24, and half of the way."""
    draw = torch.Generator().manual_seed(0)
    base, source = (nn.Sequential(nn.Linear(12, n), nn.ReLU(), nn.Linear(n, 4)) for n in (16, 24))
    with torch.no_grad():
        for parameter in (*base.parameters(), *source.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
        order = torch.randperm(24, generator=draw)[:16]
        source[0].weight[order] = base[0].weight + 0.1 * torch.randn(16, 12, generator=draw)
        source[2].weight[:, order] = base[2].weight
    x = torch.zeros(1, 12)
    left, right = trace(base.eval(), x), trace(source.eval(), x)
    found = align(problem(left, right), base.state_dict(), source.state_dict())
    frame = union(left, right, found)
    shown = {
        "base (16)": base[0].weight,
        "source (24)": source[0].weight,
        "base, in the frame": frame.base[0].weight,
        "source, in the frame": frame.source[0].weight,
        "half of the way": frame.merged(0.5)["0.weight"],
    }
    figure, axes = plt.subplots(1, 5, figsize=(9, 3.4), layout="constrained", sharey=True)
    for axis, (title, weight) in zip(axes, shown.items(), strict=True):
        axis.imshow(weight.detach(), cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
        axis.set(ylim=(23.5, -0.5), xlabel="in", xticks=[], yticks=[])
        axis.set_title(title, fontsize=9)
    axes[0].set_ylabel("neurons")
    figure.savefig(HERE / f"{name}.png", dpi=110)


def proofs(name: str) -> None:
    """How far the outputs are off after a widening, and after one with a fault in one of the tensors."""
    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.rand(4, 3, 12, 12, dtype=torch.float64)
    graph = trace(model, x)

    def off(edited: nn.Module) -> float:
        with torch.no_grad():
            return float((edited(x) - model(x)).abs().max() / model(x).abs().max())

    figure, axis = plt.subplots(figsize=(8, 2.6), layout="constrained")
    names = ["stem", "blocks.0.conv1", "blocks.1.conv1"]
    for row, layer in enumerate(names):
        wide = surgery.widen(graph, {layer: 32})
        broken = []
        for member in graph.axis_class(layer).members:
            faulty = surgery.widen(graph, {layer: 32})
            tensor = faulty.get_parameter(member.fqn)
            with torch.no_grad():
                tensor.select(member.axis, 0).mul_(
                    1.01
                )  # one unit, in one of the places where it occurs
            broken.append(off(faulty))
        labels = ("right", "one unit off by 1 % in one tensor") if row == 0 else (None, None)
        axis.semilogx([max(off(wide), 1e-17)], [row], "o", color="tab:blue", label=labels[0])
        axis.semilogx(broken, [row] * len(broken), "x", color="tab:red", label=labels[1])
    axis.axvline(1e-9, color="grey", linestyle=":", label="the proof's bound")
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(-0.5, len(names) - 0.5))
    axis.set(xlabel="largest change of the outputs, relative", xlim=(3e-18, 1))
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(HERE / f"{name}.png", dpi=110)


def transfers(name: str) -> None:
    """A layer's distance from its start, with a graft on for the first part of a training."""
    source, target = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (*source.parameters(), *target.parameters()):
            parameter.copy_(0.35 * torch.randn(parameter.shape, generator=draw))
    x, y = torch.randn(64, 8, generator=draw), torch.randint(4, (64,), generator=draw)
    mapping = Mapping(trace(source, x), trace(target, x)).link("weight", "0")
    optimizer = torch.optim.SGD(target.parameters(), lr=0.05)
    adapter, start = MergeNet(heads=2, trust=0.05), target[0].weight.detach().clone()
    graft = attach(adapter, mapping, cycle=6, optimizer=AdapterOptimizer(lr=3e-2)).follow(optimizer)
    places: dict[str, list[float]] = {"what the forward pass reads": [], "the settled weights": []}
    for step in range(60):
        if step == 40:
            graft.detach()
        optimizer.zero_grad()
        cross_entropy(target(x), y).backward()
        places["what the forward pass reads"].append(
            float((target[0].weight.detach() - start).norm())
        )
        with graft.settled() if graft.attached else nullcontext():
            places["the settled weights"].append(float((target[0].weight.detach() - start).norm()))
        optimizer.step()
    figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
    for label, distances in places.items():
        axis.plot(distances, label=label, drawstyle="steps-post")
    axis.axvline(40, color="grey", linestyle=":", label="detach")
    axis.set(xlabel="optimizer step", ylabel="distance from the start")
    axis.legend(frameon=False)
    figure.savefig(HERE / f"{name}.png", dpi=110)


if __name__ == "__main__":
    page("layer-graph", "#source:blocks")
    page("axis-class", "#source:blocks.0.conv1", "out 24")
    page("pruning", "", pruned=True)
    alignment("alignment")
    transfers("graft")
    union_frame("union-frame")
    proofs("proof")
