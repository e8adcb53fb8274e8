"""Images to classify, and the two families of models that do it: ResNets and MobileNetV2s.

In: a `Setup`. Out: networks. Always true: all data is real; the validation split is the last fifth of the training
images, and no test image is read for it.

smoke   scikit-learn's 8x8 digits, 200 to learn from
small   10,000 images of CIFAR-10 (8,000 / 2,000), or Fashion-MNIST's first 10,000 (``--data fashion-mnist``)
paper   CIFAR-100 through torchvision, crops and flips, ResNet-50 and MobileNetV2, AdamW, 200 epochs
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torchvision.models import MobileNetV2
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import Conv2dNormActivation

from ..common.datasets import split
from .experiment import Network, Setup

__all__ = [
    "BLOCKS",
    "DEPTHS",
    "Images",
    "image_task",
    "last_convolutions",
    "layers_of",
    "mobilenet_network",
    "project",
    "residual_links",
    "resnet_network",
    "rounds_of",
    "strong_network",
    "stronger",
]

STAGES = {  # expansion, channels, blocks, stride of the first block
    "smoke": [[1, 8, 1, 1], [2, 12, 2, 2], [2, 16, 1, 2]],
    "small": [[1, 8, 1, 1], [4, 16, 2, 2], [4, 24, 3, 2], [4, 32, 2, 2]],
    "paper": [  # MobileNetV2's own
        [1, 16, 1, 1],
        [6, 24, 2, 2],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ],
}
"""Of the MobileNetV2 of each scale."""
BLOCKS = {"smoke": 4, "small": 8, "paper": 16}
"""The inverted residual block that receives: the last that has a shortcut around it, where a wrong write only perturbs
(at smoke scale the last)."""
DEPTHS = {"smoke": (1, 2, 3, 4), "small": (2, 4, 6, 8), "paper": (4, 8, 12, 16)}
"""The four blocks of table 5."""
STRONG = {"smoke": (16, 4), "small": (32, 12), "paper": (128, 300)}
"""Width and epochs of the strong source; the plain one has half of the width."""
EPOCHS = {"smoke": 2, "small": 8, "paper": 200}
BATCH = {"smoke": 32, "small": 128, "paper": 128}


def project(block: int) -> str:
    """The 1x1 convolution that ends the inverted residual block `block`; the first has no expansion before it."""
    return f"features.{block}.conv.{1 if block == 1 else 2}"


def last_convolutions(scale: str) -> tuple[str, str]:
    """Of a ResNet, and the one in front of M's classifier."""
    last = "layer4.2.conv3" if scale == "paper" else "layer4.0.conv2"
    return last, f"features.{1 + sum(blocks for _, _, blocks, _ in STAGES[scale])}.0"


def residual_links(scale: str) -> tuple[tuple[str, str], ...]:
    """The end of a ResNet's stage -> the end of each of M's blocks that has a shortcut around it, at equal depth."""
    stages = STAGES[scale]
    last = "conv3" if scale == "paper" else "conv2"
    links, block = [], 0
    for i, (_, _, blocks, _) in enumerate(stages):
        stage = 1 + round(3 * i / (len(stages) - 1))
        links += [(f"layer{stage}.0.{last}", project(block + n)) for n in range(2, blocks + 1)]
        block += blocks
    return tuple(links)


def mobilenet_network(setup: Setup) -> Network:
    """The slim one, called M."""
    task = image_task(setup, "M")
    make = partial(mobilenet, scale=setup.scale, **_form(task))
    return _network(setup, make, task)


def resnet_network(setup: Setup) -> Network:
    """The large one, called R."""
    task = image_task(setup, "R")
    make = partial(resnet, scale=setup.scale, **_form(task))
    return _network(setup, make, task)


def strong_network(setup: Setup) -> Network:
    """A far stronger source, called S: a ResNet twice as wide, trained longer on crops and flips."""
    task = image_task(setup, "S")
    make = partial(resnet, scale=setup.scale, width=STRONG[setup.scale][0], **_form(task))
    return stronger(setup, _network(setup, make, task))


def stronger(setup: Setup, network: Network) -> Network:
    """`network`, trained for longer as a source, on crops and flips.

    Where the data set has training images that the others do not get, it learns from these as well; a held-out image
    is never among them.
    """
    task = image_task(setup, network.task.prefix, everything=True)
    epochs = STRONG[setup.scale][1]
    if task.facts["train"] > 20_000:
        epochs = max(1, epochs // 8)
    seen = replace(task, augments=True, facts={**task.facts, "augments": True})
    rounds = epochs * max(1, task.size // network.batch)
    return replace(network, task=seen, source_rounds=rounds)


def layers_of(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[str]:
    """Names of the layers of some kinds, in order."""
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def rounds_of(setup: Setup) -> int:
    """Steps of the scale's number of epochs."""
    return EPOCHS[setup.scale] * (image_task(setup, "M").size // BATCH[setup.scale])


@dataclass(frozen=True)
class Images:
    """Classification: positions of training images, logits, labels.

    Attributes:
        facts: see `experiment.Task`.
        prefix: of the metrics' names: the network's.
        x, y: training images, (n, channels, h, w) float32 normalised, and labels (n,) int64.
        test_x, test_y: the same, held out.
        augments: crops of the image padded by 4, and flips.
    """

    facts: dict[str, Any]
    prefix: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    augments: bool = False

    @property
    def size(self) -> int:
        """Training images."""
        return len(self.y)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Top-1, and top-5 where there are 20 classes or more."""
        names = ("top-1", "top-5") if self.facts["classes"] >= 20 else ("top-1",)
        return tuple(f"{self.prefix} {name}" for name in names)

    def to(self, device: torch.device) -> Images:
        """See `experiment.Task`."""
        tensors = {name: getattr(self, name).to(device) for name in ("x", "y", "test_x", "test_y")}
        return replace(self, **tensors)

    def example(self) -> tuple[Tensor, ...]:
        """See `experiment.Task`."""
        return (self.test_x[:2],)

    def inputs(self, index: Tensor) -> tuple[Tensor, ...]:
        """See `experiment.Task`."""
        x = self.x[index]
        return (_augmented(x),) if self.augments else (x,)

    def labels(self, index: Tensor) -> Tensor:
        """See `experiment.Task`."""
        return self.y[index]

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy."""
        return cross_entropy(outputs, labels)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Percent of held-out images whose label is first, or among the first five."""
        ranked = torch.cat([model(part).topk(5, dim=1).indices for part in self.test_x.split(500)])
        hits = (ranked == self.test_y[:, None]).cumsum(1).double().mean(0) * 100
        found = {"top-1": float(hits[0]), "top-5": float(hits[4])}
        return {name: found[name.rpartition(" ")[2]] for name in self.metrics}


def image_task(setup: Setup, prefix: str, *, everything: bool = False) -> Images:
    """The images of a scale, split as asked for.

    Args:
        setup: scale, split and data set.
        prefix: of the metrics' names.
        everything: also learn from the training images beyond those of the scale, where there are some.
    """
    about, x, y, test_x, test_y, more_x, more_y = _read(setup)
    if setup.split == "validation":
        cut = len(y) * 4 // 5
        x, y, test_x, test_y = x[:cut], y[:cut], x[cut:], y[cut:]
        about += "; the last fifth of the training images held out as validation"
    if everything and len(more_y):
        x, y = torch.cat([x, more_x]), torch.cat([y, more_y])
        about += f"; {len(more_y):,} further training images"
    facts = {
        "about": about,
        "split": setup.split,
        "train": len(y),
        "held out": len(test_y),
        "classes": int(y.max()) + 1,
        "shape": list(x.shape[1:]),
        "augments": setup.scale == "paper",
    }
    return Images(facts, prefix, x, y, test_x, test_y, augments=setup.scale == "paper")


@lru_cache(maxsize=1)
def _read(setup: Setup) -> tuple[str, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What it is; images and labels to learn from, held out, and left over."""
    name = setup.data or {"smoke": "digits", "small": "cifar10", "paper": "cifar100"}[setup.scale]
    if name == "cifar100":
        found = _cifar100(setup.root or Path("data"))
        return (*found, found[1][:0], found[2][:0])
    about, (train_x, train_y, test_x, test_y) = split(name, setup.root)
    few = {"smoke": 200, "small": 10_000, "paper": None}[setup.scale]
    x, y = train_x[:few], train_y[:few]
    test = slice(None) if setup.scale != "smoke" else slice(200)
    about = f"{about}; {len(y):,} to learn from"
    more = train_x[len(y) :], train_y[len(y) :]
    return about, x, y, test_x[test], test_y[test], *more


def _cifar100(root: Path) -> tuple[str, Tensor, Tensor, Tensor, Tensor]:
    from torchvision.datasets import CIFAR100

    halves = [CIFAR100(root, train=train, download=True) for train in (True, False)]
    images = [torch.from_numpy(half.data).permute(0, 3, 1, 2).float() / 255 for half in halves]
    labels = [torch.tensor(half.targets) for half in halves]
    mean, sd = (f(images[0], dim=(0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    # Shuffled once: the validation split is cut off the end.
    order = torch.randperm(len(labels[0]), generator=torch.Generator().manual_seed(0))
    train, test = ((x - mean) / sd for x in images)
    about = "CIFAR-100 through torchvision, 32x32 colour, 50,000 / 10,000"
    return about, train[order], labels[0][order], test, labels[1]


def _augmented(x: Tensor) -> Tensor:
    """One random crop of each image padded by 4, and a flip of every second, by torch's CPU generator."""
    n, _, height, width = x.shape
    top, left = torch.randint(9, (2, n, 1)).to(x.device)
    rows = (top + torch.arange(height, device=x.device))[:, None, :, None]
    columns = left + torch.arange(width, device=x.device)
    flips = torch.rand(n, 1).to(x.device) < 0.5
    columns = torch.where(flips, columns.flip(1), columns)[:, None, None, :]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    which = torch.arange(n, device=x.device)[:, None, None, None]
    return pad(x, (4, 4, 4, 4))[which, channels, rows, columns]


def mobilenet(scale: str, classes: int, channels: int, stride: int) -> nn.Module:
    """A MobileNetV2 for small images.

    Args:
        scale: decides stages and width.
        classes: outputs.
        channels: of an image.
        stride: of the first convolution, 2 in MobileNetV2.
    """
    if scale == "paper":
        model = MobileNetV2(num_classes=classes)
    else:
        model = MobileNetV2(classes, inverted_residual_setting=STAGES[scale], dropout=0.0)
        head = {"smoke": 32, "small": 128}[scale]
        last = model.features[-1][0].in_channels
        model.features[-1] = Conv2dNormActivation(last, head, 1, activation_layer=nn.ReLU6)
        model.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(head, classes))
        nn.init.kaiming_normal_(model.features[-1][0].weight, mode="fan_out")
    first = model.features[0][0]
    model.features[0][0] = _stem(channels, first.out_channels, stride)
    return _quick(model) if scale == "smoke" else model


def resnet(
    scale: str, classes: int, channels: int, stride: int, width: int | None = None
) -> nn.Module:
    """A ResNet for small images; the arguments are `mobilenet`'s, and the width of its first stage."""
    if scale == "paper":
        per_group = width or 64  # of the bottlenecks; the stages keep their own
        model = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=classes, width_per_group=per_group)
        model.conv1, model.maxpool = _stem(channels, 64, stride), nn.Identity()
        return model
    with torch.device("meta"):  # every part with weights is replaced below
        model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes)
    width = width or {"smoke": 8, "small": 16}[scale]
    model.inplanes = width
    model.conv1, model.bn1 = _stem(channels, width, stride), nn.BatchNorm2d(width)
    model.maxpool = nn.Identity()
    for i in range(4):
        stage = model._make_layer(BasicBlock, width << i, 1, stride=1 if i == 0 else 2)
        for conv in stage.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        setattr(model, f"layer{i + 1}", stage)
    model.fc = nn.Linear(8 * width, classes)
    return _quick(model) if scale == "smoke" else model


def _quick(model: nn.Module) -> nn.Module:
    """Running statistics that keep up with a training of a dozen steps; else every image gets one answer."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    return model


def _stem(channels: int, width: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv


def _form(task: Images) -> dict[str, int]:
    channels, side, _ = task.facts["shape"]
    # On a CPU the first convolution keeps its stride; with 8x8 digits, or on a GPU, it must not or need not.
    whole = side < 14 or task.facts["classes"] == 100
    return {"classes": task.facts["classes"], "channels": channels, "stride": 1 if whole else 2}


def _network(setup: Setup, make: partial[nn.Module], task: Images) -> Network:
    if setup.scale == "paper":
        optimizer: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-2, "weight_decay": 1e-4}
        optimizer["precision"] = "bfloat16"
    else:
        optimizer = {"optimizer": "sgd", "lr": 0.1 if setup.scale == "small" else 0.05}
    return Network(make, task, batch=BATCH[setup.scale], **optimizer)
