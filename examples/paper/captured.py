"""A training step of the paper's setting as one CUDA graph, that a graft follows like any other optimizer step.

In: a model, images that already are on the device, how many steps. Out: a `Trainer`, captured once and used for one run
after another: `begin` writes new weights, batches and rates to the addresses that the graph reads. Always true: nothing
in the graph is random, for crops, flips, rotations and the order of the images are drawn beforehand, from the seed
alone, so that all settings of one seed see the same batches; on a CPU the same step runs without a graph.

How a graft and a graph meet: a graft writes in place and listens to an optimizer's hooks. `Captured` is an optimizer
whose step is the whole training step, so `graft.follow(captured)` is all there is to do. The adapter's signal must be
the trajectory: the gradients of a replay are not there before its optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlib_adapters import distillation

from .images import resnet

__all__ = ["Captured", "Data", "MobileNet", "Trainer", "large_resnet"]

MOMENTUM, DECAY = 0.9, {"adamw": 1e-4, "sgd": 5e-4}
RATE = {"adamw": 1e-2, "sgd": 0.1}


class _InvertedResidual(nn.Module):
    def __init__(self, width: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.residual = nn.Sequential(
            nn.Conv2d(width, inner, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner),
            nn.BatchNorm2d(inner),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inner, out, 1),
            nn.BatchNorm2d(out),
        )
        self.shortcut = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.residual(x)
        return x + y if self.shortcut else y


class MobileNet(nn.Module):
    """MobileNetV2 as the paper's authors have it: biases, default initialisation, no dropout, maps that end 5x5.

    2,369,380 parameters with 100 classes.

    Args:
        classes: outputs.
        channels: of an image.
        width: multiplies every width.
    """

    STAGES = (  # expansion, width, blocks, stride of the first
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 1),
        (6, 320, 1, 1),
    )
    TARGET = "blocks.15.residual.6"  # the convolution that ends the last block with a shortcut

    def __init__(self, classes: int, channels: int, width: float = 1.0) -> None:
        super().__init__()
        now, last = round(32 * width), round(1280 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, now, 1, padding=1), nn.BatchNorm2d(now), nn.ReLU6(inplace=True)
        )
        blocks = []
        for expansion, out, count, stride in self.STAGES:
            for i in range(count):
                after = round(out * width)
                blocks.append(_InvertedResidual(now, after, stride if i == 0 else 1, expansion))
                now = after
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Conv2d(now, last, 1), nn.BatchNorm2d(last), nn.ReLU6(inplace=True)
        )
        self.classifier = nn.Conv2d(last, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, classes)."""
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1)).flatten(1)


def large_resnet(classes: int, channels: int, *, small: bool = False) -> nn.Module:
    """ResNet-50 for small images with torch's default initialisation; `small`: one basic block a stage, narrow."""
    if small:
        return resnet("small", classes, channels, 2, width=8)
    model = resnet("paper", classes, channels, 1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    return model


@dataclass(frozen=True)
class Data:
    """Images (n, c, h, w) float32 from 0 to 1 and labels (n,) on the device, with what normalises them."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    mean: Tensor
    sd: Tensor
    classes: int

    @classmethod
    def of(cls, x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, device: str) -> Data:
        """From bytes (n, c, h, w) and labels."""
        train, test = (images.to(device).float() / 255 for images in (x, test_x))
        mean, sd = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True)
        labels = y.to(device), test_y.to(device)
        return cls(train, labels[0], test, labels[1], mean, sd, int(y.max()) + 1)


class Captured(torch.optim.Optimizer):
    """An optimizer whose step is a whole training step, forward, backward and update, as a CUDA graph if there is one.

    Args:
        parameters: of the model that it trains.
        run: the step, without arguments.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], run: Callable[[], None]) -> None:
        super().__init__(parameters, {})
        self.run = run

    def capture(self, stream: torch.cuda.Stream, warmup: int = 3) -> None:
        """Record the step; it has run `warmup` times before, and moved the weights."""
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(warmup):
                self.run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self.run()
        torch.cuda.synchronize()
        self.run = graph.replay

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One training step."""
        self.run()


class Trainer:
    """One model in training, with everything that its step reads at fixed addresses.

    Args:
        make: the model's maker.
        data: on the device.
        regime: ``"adamw"``: AdamW 1e-2 on a cosine; ``"sgd"``: SGD 0.1, momentum 0.9, a fifth at 30, 60 and 80 %.
        most: steps that a run may have.
        batch: images a step.
        teacher: a model whose softened answers are half of the loss.
        memory_format: of the images and the weights.
        stepwise: the optimizer's step is the update alone, so that hooks around it see the gradients: call `compute`
            before it, which is a graph of its own.

    Attributes:
        captured: whether a step is a CUDA graph; if not on a GPU, what prevented it.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        data: Data,
        regime: str,
        most: int,
        batch: int = 128,
        teacher: nn.Module | None = None,
        memory_format: torch.memory_format = torch.channels_last,
        *,
        stepwise: bool = False,
    ) -> None:
        self.memory_format = memory_format
        self.make, self.data, self.regime, self.batch, self.teacher = (
            make,
            data,
            regime,
            batch,
            teacher,
        )
        self.device = data.x.device
        self.cuda = self.device.type == "cuda"
        self.stream = torch.cuda.Stream() if self.cuda else None
        with self.on():
            self.model = make().to(self.device, memory_format=memory_format).train()
            options = {"device": self.device}
            self.t = torch.zeros(1, dtype=torch.int64, **options)
            self.order = torch.zeros(most, batch, dtype=torch.int64, **options)
            self.motion = torch.zeros(most, batch, 2, 3, **options)
            self.rates, self.losses = torch.zeros(most, **options), torch.zeros(most, **options)
            self.lr = torch.zeros((), **options)
            self.parameters = [p for p in self.model.parameters() if p.requires_grad]
            if regime == "adamw":
                self.adamw = torch.optim.AdamW(
                    self.parameters,
                    self.lr,
                    weight_decay=DECAY["adamw"],
                    fused=True,
                    capturable=self.cuda,
                )
            else:
                self.moments = [torch.zeros_like(p) for p in self.parameters]
            runs = (self._compute, self._finish) if stepwise else (None, self._step)
            self._set_runs(runs)
            self.captured: bool | str = False
            if self.stream is not None:
                try:
                    self._capture(self.stream, stepwise=stepwise)
                    self.captured = True
                except RuntimeError as error:  # then step by step: slower, and as right
                    self._set_runs(runs)
                    self.captured = f"{type(error).__name__}: {error}"[:500]
                    torch.cuda.synchronize()

    def _set_runs(self, runs: tuple[Callable[[], None] | None, Callable[[], None]]) -> None:
        self.compute, self.optimizer = runs[0], Captured(self.parameters, runs[1])

    def _capture(self, stream: torch.cuda.Stream, *, stepwise: bool) -> None:
        if not stepwise:
            self.optimizer.capture(stream)
            return
        torch.cuda.synchronize()  # what others have made is read on this stream
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        # The second graph reads the gradients where the first one leaves them.
        first = Captured(self.parameters, self._compute)
        first.capture(stream, warmup=0)
        self.optimizer.capture(stream, warmup=0)
        self.compute = first.run

    def on(self) -> AbstractContextManager[object]:
        """The stream that everything of this model is put into."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def begin(self, seed: int, steps: int) -> None:
        """Weights, batches and rates of a new run, in place."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            fresh = self.make()
        self.model.load_state_dict(fresh.state_dict())
        if self.regime == "adamw":
            for state in self.adamw.state.values():
                for value in state.values():
                    value.zero_()
        else:
            for moment in self.moments:
                moment.zero_()
        self.t.zero_()
        generator = torch.Generator().manual_seed(seed + 1)
        order = torch.cat(
            [
                torch.randperm(len(self.data.y), generator=generator)
                for _ in range(math.ceil(steps * self.batch / len(self.data.y)))
            ]
        )
        self.order[:steps] = order[: steps * self.batch].view(steps, self.batch).to(self.device)
        motion = _motions((steps, self.batch), self.data.x.shape[-1], generator)
        self.motion[:steps] = motion.to(self.device)
        rates = torch.tensor([rate(self.regime, t, steps) for t in range(steps)])
        self.rates[:steps] = rates.to(self.device)

    def _step(self) -> None:
        self._compute()
        self._finish()

    def _compute(self) -> None:
        """The loss and its gradients."""
        index = self.order.index_select(0, self.t)[0]
        motion = self.motion.index_select(0, self.t)[0]
        images = self.data.x.index_select(0, index)
        grid = F.affine_grid(motion, list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, mode="nearest", align_corners=False)
        x = ((images - self.data.mean) / self.data.sd).contiguous(memory_format=self.memory_format)
        y = self.data.y.index_select(0, index)
        for parameter in self.parameters:
            parameter.grad = None
        loss, total = self._loss(x, y)
        total.backward()
        self.losses.index_copy_(0, self.t, loss.detach()[None])

    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """What is recorded, and what is descended."""
        with self._autocast():
            logits = self.model(x)
            if self.teacher is not None:
                with torch.no_grad():
                    taught = self.teacher(x).float()
        loss = total = F.cross_entropy(logits.float(), y)
        if self.teacher is not None:
            total = 0.5 * loss + 0.5 * distillation.kd(logits.float(), taught, temperature=4.0)
        return loss, total

    @torch.no_grad()
    def _finish(self) -> None:
        """The update."""
        self.lr.copy_(self.rates.index_select(0, self.t)[0])
        self._update()
        self.t.add_(1)

    def _update(self) -> None:
        if self.regime == "adamw":
            self.adamw.step()
        else:
            self._descend(self.parameters, self.moments)

    def _descend(self, parameters: list[nn.Parameter], moments: list[Tensor]) -> None:
        """SGD with momentum."""
        grads = [p.grad for p in parameters]
        torch._foreach_add_(grads, parameters, alpha=DECAY["sgd"])
        torch._foreach_mul_(moments, MOMENTUM)
        torch._foreach_add_(moments, grads)
        torch._foreach_sub_(parameters, torch._foreach_mul(moments, self.lr))

    def _autocast(self) -> AbstractContextManager[object]:
        # Without its cache: a cached copy of a weight would be an address of the capture's own.
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.cuda, cache_enabled=False
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Percent of right answers on the held-out images, their loss in nats, the training loss of the last steps."""
        self.model.eval()
        with self._autocast():
            logits = torch.cat(
                [
                    self.model((x - self.data.mean) / self.data.sd).float()
                    for x in self.data.test_x.split(500)
                ]
            )
        self.model.train()
        steps = int(self.t)
        return {
            "top-1": 100 * float((logits.argmax(1) == self.data.test_y).double().mean()),
            "loss": float(F.cross_entropy(logits, self.data.test_y)),
            "training loss": float(self.losses[max(0, steps - 50) : steps].mean()),
        }


def rate(regime: str, t: int, steps: int) -> float:
    """The learning rate of step `t`."""
    if regime == "adamw":
        return RATE["adamw"] * (1 + math.cos(math.pi * t / steps)) / 2
    return RATE["sgd"] / 5 ** sum(t >= share * steps for share in (0.3, 0.6, 0.8))


def _motions(shape: tuple[int, int], side: int, generator: torch.Generator) -> Tensor:
    """(*shape, 2, 3): affine maps of crops after a padding of 4, flips and rotations by up to 15 degrees."""
    angle = (2 * torch.rand(shape, generator=generator) - 1) * math.pi / 12
    shift = torch.randint(-4, 5, (2, *shape), generator=generator) * 2 / side
    flip = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
    rows = [flip * angle.cos(), -angle.sin(), shift[0], flip * angle.sin(), angle.cos(), shift[1]]
    return torch.stack(rows, -1).view(*shape, 2, 3)
