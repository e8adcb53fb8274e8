"""Does fitting ever harm? Twelve models at half of everything, fitted to little, some and more data.

Each model is pruned to half of every free class, once as it is and once fitted to some inputs (`data=`). Both are
then compared with the model as it was, on inputs that neither saw: squared error relative to the squared results, and
the mean cosine of the results. A run harms where the error grew or the cosine fell.

    python -m examples.benchmarks.restoration --root DIR --out docs/benchmarks/restoration.json

Models: MiniLM with 6 and 3 layers on IMDb reviews of 64 tokens (`DIR/../models`, or `--models`), MobileNetV2 with its
ImageNet weights on CIFAR-10 images at 96 x 96; six small ones trained on scikit-learn's digits; three with random
weights. `data` are drawn anew for each seed. Finished rows stay in the file: a killed benchmark goes on.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlib import surgery, trace

from ..common import command, results
from ..common.datasets import reviews

# A model, held-out inputs, and all inputs that data may be drawn from (each with its samples along the first axis).
Case = tuple[nn.Module, Any, Any]

# --------------------------------------------------------------------------------------------------------- the models


class Branch(nn.Module):
    """A layer-scaled branch beside an identity, depthwise, as in ConvNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.up = nn.GroupNorm(1, width), nn.Conv2d(width, 3 * width, 1)
        self.down, self.scale = (
            nn.Conv2d(3 * width, width, 1),
            nn.Parameter(torch.ones(width, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(F.gelu(self.up(self.norm(self.depthwise(x)))))


class Layer(nn.Module):
    """Attention and a gated MLP, each behind its norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate, self.up, self.down = (
            *(nn.Linear(width, 2 * width) for _ in range(2)),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(*y).transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Patches(nn.Module):
    """A vision transformer on patches of 2 x 2."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch, self.place = (
            nn.Conv2d(1, width, 2, 2),
            nn.Parameter(torch.randn(1, 16, width) * 0.02),
        )
        self.layers = nn.Sequential(Layer(width, 4), Layer(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.layers(x)).mean(1))


def convolutions(width: int = 16) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
        *(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)),
    )


def depthwise(width: int = 24) -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> Iterator[nn.Module]:
        yield from (
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
        )
        yield from (
            nn.ReLU6(),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        )

    return nn.Sequential(
        *(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU6(),
            *block(width, width, 1),
            *block(width, 2 * width, 2),
        ),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)),
    )


def perceptron(width: int = 128) -> nn.Module:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.GELU()),
        nn.Linear(width, 10),
    )


def grouped(width: int = 32) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU()),
        *(nn.Conv2d(width, width, 3, 2, 1, groups=4), nn.GroupNorm(4, width), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)),
    )


def scaled(width: int = 24) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, width, 2, 2), Branch(width), Branch(width)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)),
    )


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    images = (torch.tensor(x).float().view(-1, 1, 8, 8) - 4.9) / 6.0
    return images[order], torch.tensor(y)[order]


def on_digits(build: Callable[[], nn.Module], steps: int) -> Case:
    """Trained for some steps on 1,000 images; 297 are held out; data come from the others."""
    torch.manual_seed(0)
    model, (x, y) = build(), digits()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        rows = torch.randint(0, 1000, (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval(), x[1500:], x[1000:1500]


def residual_network(root: Path, models: Path) -> Case:
    """A ResNet-18 with random weights, whose batch norms have seen random images."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model, x = resnet18(weights=None), torch.randn(400, 3, 32, 32)
    with torch.no_grad():
        for _ in range(8):
            model(torch.randn(64, 3, 32, 32))
    return model.eval(), x[:100], x[100:]


def mobilenet(root: Path, models: Path) -> Case:
    from safetensors.torch import load_file
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2(weights=None)
    (file,) = (models / "mobilenet_v2-imagenet").glob("*.safetensors")
    model.load_state_dict(load_file(file))
    images = np.load(root / "cifar10" / "cifar10_10k.npz")["x"]
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:300].numpy()
    x = torch.tensor(images[rows]).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    x = F.interpolate((x - mean) / deviation, size=96, mode="bilinear", antialias=True)
    return model.eval(), x[:48], x[48:]


def texts(name: str) -> Callable[[Path, Path], Case]:
    def case(root: Path, models: Path) -> Case:
        from transformers import AutoModel, AutoTokenizer

        words = AutoTokenizer.from_pretrained(models / name)
        model = AutoModel.from_pretrained(
            models / name, dtype=torch.float32, add_pooling_layer=False
        )
        batch = words(
            reviews(root, "test")[0][::200],
            padding="max_length",
            truncation=True,
            max_length=64,
            return_tensors="pt",
        )
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        return model.eval(), _rows(inputs, slice(0, 32)), _rows(inputs, slice(32, None))

    return case


def _random(build: Callable[[], nn.Module]) -> Callable[[Path, Path], Case]:
    return lambda root, models: on_digits(build, 0)


def _trained(build: Callable[[], nn.Module], steps: int) -> Callable[[Path, Path], Case]:
    return lambda root, models: on_digits(build, steps)


# name -> (model and its inputs, how many samples)
CASES: dict[str, tuple[Callable[[Path, Path], Case], tuple[int, ...]]] = {
    "MLP": (_trained(perceptron, 300), (4, 32, 256)),
    "CNN": (_trained(convolutions, 300), (4, 32, 256)),
    "depthwise CNN": (_trained(depthwise, 300), (4, 32, 256)),
    "grouped CNN": (_trained(grouped, 300), (4, 32, 256)),
    "layer-scaled CNN": (_trained(scaled, 300), (4, 32, 256)),
    "vision transformer": (_trained(Patches, 300), (4, 32, 256)),
    "MLP, random": (_random(perceptron), (4, 32, 256)),
    "vision transformer, random": (_random(Patches), (4, 32, 256)),
    "ResNet-18, random": (residual_network, (4, 16, 64)),
    "MobileNetV2": (mobilenet, (4, 16, 64)),
    "MiniLM-L3": (texts("minilm-l3"), (4, 16, 64)),
    "MiniLM-L6": (texts("minilm-l6"), (4, 16, 64)),
}

# ------------------------------------------------------------------------------------------------------- the comparison


def _rows(inputs: Any, rows: Any) -> Any:
    return {k: v[rows] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[rows]


def _length(inputs: Any) -> int:
    return len(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any) -> Tensor:
    if not isinstance(inputs, dict):
        return model(inputs)
    hidden = model(**inputs).last_hidden_state
    return hidden[inputs["attention_mask"].bool()]


def fidelity(model: nn.Module, inputs: Any, wanted: Tensor) -> dict[str, float]:
    given = outputs(model, inputs).double()
    wanted = wanted.double()
    error = float((given - wanted).square().sum() / wanted.square().sum())
    cosine = float(F.cosine_similarity(given, wanted, dim=-1).mean())
    return {"error": round(error, 6), "cosine": round(cosine, 6)}


def run(case: Case, samples: int, seed: int) -> dict[str, Any]:
    """One row: before and after the fit, on held-out inputs."""
    model, unseen, pool = case
    example = _rows(pool, slice(0, 2))
    graph = trace(model, (), example) if isinstance(example, dict) else trace(model, example)
    order = torch.randperm(_length(pool), generator=torch.Generator().manual_seed(seed))[:samples]
    data = [_rows(pool, rows) for rows in order.split(16)]
    wanted = outputs(model, unseen)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        start = time.process_time()
        plain = surgery.prune(graph, 0.5)
        between = time.process_time()
        fitted = surgery.prune(graph, 0.5, data=data)
        end = time.process_time()
    told = {
        key: any(text in str(each.message) for each in said)
        for key, text in (("few rows", "rows of `data`"), ("taken back", "taken back"))
    }
    before, after = (fidelity(each, unseen, wanted) for each in (plain, fitted))
    return {
        "samples": samples,
        "seed": seed,
        "before": before,
        "after": after,
        "harm": after["error"] > before["error"] + 1e-6
        or after["cosine"] < before["cosine"] - 1e-6,
        "fit_cpu_seconds": round((end - between) - (between - start), 2),
        **told,
    }


def main() -> None:
    parser = command.parser(__doc__, "docs/benchmarks/restoration.json")
    command.add_root(parser)
    parser.add_argument(
        "--models", type=Path, help="folder of the pretrained models; DIR/../models"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    models = args.models or args.root.parent / "models"
    torch.set_num_threads(1)
    report = results.load(args.out) if args.out.exists() else {"models": {}}
    report |= {"share": 0.5, "torch": torch.__version__}
    for name in args.only:
        build, amounts = CASES[name]
        rows = report["models"].setdefault(name, [])
        done = {(row["samples"], row["seed"]) for row in rows}
        wanted = [(n, seed) for seed in range(args.seeds) for n in amounts if (n, seed) not in done]
        case = build(args.root, models) if wanted else None
        for samples, seed in wanted:
            rows.append(run(case, samples, seed))
            print(name, json.dumps(rows[-1]), flush=True)
            results.save(args.out, report)
    harms = [(name, row) for name, rows in report["models"].items() for row in rows if row["harm"]]
    print(f"{sum(map(len, report['models'].values()))} runs, {len(harms)} with harm")


if __name__ == "__main__":
    main()
