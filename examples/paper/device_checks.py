"""Does a graft keep its promises on this device? Short checks, each by itself.

In: a device. Out: per check a dictionary of what was seen; a promise that does not hold raises. The models are tiny, so
that a check takes a second. The laws themselves are the test suite's; here they meet the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlib import Mapping, attach, trace
from graftlib.graft import AdapterOptimizer
from graftlib_adapters import MergeNet

from .captured import Captured

__all__ = ["CHECKS"]

Check = Callable[[str], dict[str, Any]]
CHECKS: dict[str, Check] = {}
CYCLE = 3
PAPER = {"init": "paper", "rank": None}


def check(function: Check) -> Check:
    """Enter a check in the list, in the order of this file."""
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


class Net(nn.Module):
    """Two convolutions, a norm, dropout and a classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, 10)."""
        x = F.relu(self.second(F.relu(self.norm(self.first(x)))))
        return self.fc(self.drop(x.mean((2, 3))))


class World:
    """A source, a target, a batch, an optimizer, a graft on one link."""

    def __init__(
        self,
        device: str,
        adapter: MergeNet | None = None,
        *,
        source_device: str | None = None,
        drop: float = 0.1,
        lr: float = 1e-2,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.source = Net(24).to(source_device or device)
        self.target = Net(16).to(device)
        self.target.drop.p = drop
        self.x, self.y = torch.randn(32, 3, 8, 8).to(device), torch.randint(10, (32,)).to(device)
        self.optimizer = torch.optim.AdamW(self.target.parameters(), lr, fused=True)
        mapping = Mapping(
            trace(self.source, (self.x[:2].to(source_device or device),)),
            trace(self.target, (self.x[:2],)),
        )
        mapping.link("fc", "second")
        adapter = MergeNet(heads=2, trust=0.2) if adapter is None else adapter
        options = {"cycle": CYCLE, "optimizer": AdapterOptimizer(lr=1e-2)} | options
        self.graft = attach(adapter, mapping, **options)

    def loss(self, model: nn.Module | None = None) -> Tensor:
        """Of the batch."""
        model = self.target if model is None else model
        return F.cross_entropy(model(self.x), self.y)

    def step(self, model: nn.Module | None = None) -> None:
        """An ordinary training step."""
        self.optimizer.zero_grad()
        self.loss(model).backward()
        self.optimizer.step()

    def weight(self) -> Tensor:
        """A copy of the target."""
        return self.target.second.weight.detach().clone()

    def sizes(self) -> list[float]:
        """Of the transfers so far."""
        return [row.size for e in self.graft.history for row in e.changes.values()]


def _random_states(device: str) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states + (torch.cuda.get_rng_state_all() if device == "cuda" else [])


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@check
def attaching_changes_no_bit(device: str) -> dict[str, Any]:
    world = World(device)
    before = deepcopy(world.target.state_dict())
    world.graft.follow(world.optimizer)
    assert all(torch.equal(before[k], v) for k, v in world.target.state_dict().items())
    return {"transfers": len(world.graft.history)}


@check
def following_an_optimizer(device: str) -> dict[str, Any]:
    world = World(device)
    world.graft.follow(world.optimizer)
    for _ in range(4 * CYCLE):
        world.step()
    assert [e.step for e in world.graft.history] == [0, 3, 6, 9, 12]
    assert world.graft.skipped == 0
    assert world.graft.pending
    sizes, written = world.sizes(), world.weight()
    assert min(sizes[1:]) > 0
    with world.graft.settled():
        settled = world.weight()
    assert not torch.equal(settled, written)
    world.graft.detach()
    assert torch.equal(world.weight(), settled)
    world.step()
    return {"sizes": sizes}


@check
def enclosing_the_step(device: str) -> dict[str, Any]:
    world = World(device)
    for _ in range(2 * CYCLE + 1):
        with world.graft.step():
            world.step()
    assert world.graft.step_count == 2 * CYCLE + 1
    return {"sizes": world.sizes()}


@check
def probing(device: str) -> dict[str, Any]:
    world = World(device, MergeNet(heads=2, trust=0.2, write="probe"))
    world.graft.follow(world.optimizer)
    for _ in range(2 * CYCLE + 1):
        world.step()
    assert len(world.graft.history) == 3
    return {"sizes": world.sizes()}


@check
def learning_from_the_gradient(device: str) -> dict[str, Any]:
    world = World(device, MergeNet(heads=2, trust=0.2, signal="gradient"))
    world.graft.follow(world.optimizer)
    for _ in range(2 * CYCLE + 1):
        world.step()
    signals = [norm for e in world.graft.history for norm in e.signal.values()]
    assert min(signals) > 0
    return {"signals": signals}


@check
def the_paper_form(device: str) -> dict[str, Any]:
    world = World(device, MergeNet(heads=2, **PAPER))
    world.graft.follow(world.optimizer)
    with world.graft.settled():
        before = world.weight()
    written = world.weight().flatten(1)
    assert not torch.equal(written, before.flatten(1))
    for _ in range(3 * CYCLE):
        world.step()
    assert world.graft.skipped == 0
    return {"sizes": world.sizes(), "row norm": float(written.norm(dim=1).mean())}


@check
def a_source_on_the_cpu(device: str) -> dict[str, Any]:
    world = World(device, source_device="cpu")
    world.graft.follow(world.optimizer)
    for _ in range(CYCLE + 1):
        world.step()
    return {"sizes": world.sizes()}


@check
def random_states_are_left_alone(device: str) -> dict[str, Any]:
    """Tracing, attaching, transfers and updates draw nothing from any device's state."""
    for options in ({"trust": 0.2}, PAPER):
        torch.manual_seed(1)
        source, target = Net(24).to(device), Net(16).to(device)
        x = torch.randn(2, 3, 8, 8, device=device)
        before = _random_states(device)
        mapping = Mapping(trace(source, (x,)), trace(target, (x,)))
        mapping.link("fc", "second")
        graft = attach(MergeNet(heads=2, **options), mapping, cycle=1)
        optimizer = torch.optim.SGD(target.parameters(), 0.1)
        graft.follow(optimizer)
        for _ in range(3):
            for parameter in target.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        graft.detach()
        assert _equal(before, _random_states(device)), f"moved by {options}"
        torch.rand(1, device=device)
        assert not _equal(before, _random_states(device)), "this check cannot fail"
    return {"states": len(before)}


@check
def a_step_that_the_scaler_skips(device: str) -> dict[str, Any]:
    world = World(device)
    world.graft.follow(world.optimizer)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    for t in range(4 * CYCLE):
        world.optimizer.zero_grad()
        with torch.autocast(device, dtype):
            loss = world.loss()
        scaler.scale(loss * float("inf") if t in (2, 6) else loss).backward()
        scaler.step(world.optimizer)
        scaler.update()
    assert world.graft.step_count == 4 * CYCLE - 2
    return {"steps": world.graft.step_count, "sizes": world.sizes()}


@check
def the_host_never_waits_between_transfers(device: str) -> dict[str, Any]:
    world = World(device)
    world.graft.follow(world.optimizer)
    silent = 0
    for _ in range(4 * CYCLE):
        world.optimizer.zero_grad()
        world.loss().backward()
        quiet = world.graft.step_count % CYCLE == 1 and not world.graft.pending
        if device == "cuda" and quiet:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            world.optimizer.step()
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        silent += quiet
    assert silent == 4
    return {"steps watched": silent}


@check
def a_captured_step_is_the_step(device: str) -> dict[str, Any]:
    """A graft follows a CUDA graph of the whole step as it follows the step itself."""
    weights = []
    for graph in (False, True):
        world = World(device, drop=0.0, lr=0.0)
        model = world.target
        rate = torch.tensor(1e-2, device=device)
        inner = torch.optim.AdamW(model.parameters(), rate, fused=True, capturable=device == "cuda")

        def run(model: nn.Module = model, world: World = world, inner: Any = inner) -> None:
            for parameter in model.parameters():
                parameter.grad = None
            world.loss(model).backward()
            inner.step()

        begin = deepcopy(model.state_dict())
        captured = Captured(model.parameters(), run)
        for _ in range(3):
            run()
        if graph and device == "cuda":
            captured.capture(torch.cuda.Stream())
        model.load_state_dict(begin)
        for state in inner.state.values():
            for value in state.values():
                value.zero_()
        world.graft.follow(captured)
        for _ in range(4 * CYCLE):
            captured.step()
        assert [e.step for e in world.graft.history] == [0, 3, 6, 9, 12]
        assert max(world.sizes()) > 0
        world.graft.detach()
        weights.append(world.weight())
    worst = float((weights[0] - weights[1]).abs().max() / weights[0].abs().max())
    assert worst < 1e-2, worst
    return {"largest difference": worst}


@check
def a_resumed_run_ends_with_the_same_bits(device: str) -> dict[str, Any]:
    """Saved while a transfer is pending and taken up by fresh models, for both forms."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    cudnn = torch.backends.cudnn
    was, cudnn.deterministic = cudnn.deterministic, True
    try:
        for options in ({"trust": 0.2}, PAPER):
            adapter = MergeNet(heads=2, deterministic=True, **options)
            world = World(device, adapter, drop=0.0, deterministic=True)
            world.graft.follow(world.optimizer)
            for _ in range(2 * CYCLE):
                world.step()
            assert world.graft.pending
            with world.graft.settled():
                saved = deepcopy(
                    (
                        world.target.state_dict(),
                        world.optimizer.state_dict(),
                        world.graft.state_dict(),
                    )
                )
            again = World(device, adapter, drop=0.0, deterministic=True, seed=5)
            again.target.load_state_dict(saved[0])
            again.optimizer.load_state_dict(saved[1])
            again.graft.load_state_dict(saved[2])
            again.graft.follow(again.optimizer)
            for each in (world, again):
                for _ in range(2 * CYCLE):
                    each.step()
            assert torch.equal(world.weight(), again.weight()), options
    finally:
        cudnn.deterministic = was
    return {"equal": True}


@check
def a_compiled_target_is_not_compiled_again(device: str) -> dict[str, Any]:
    torch._dynamo.reset()
    world = World(device)
    world.graft.follow(world.optimizer)
    how = {} if device == "cuda" else {"backend": "eager"}
    model = torch.compile(world.target, **how)
    world.step(model)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2 * CYCLE):
            world.step(model)
    with torch.no_grad():
        eager, compiled = float(world.loss()), float(world.loss(model))
    return {"sizes": world.sizes(), "loss": [eager, compiled]}


@check
def compiled_with_cuda_graphs(device: str) -> dict[str, Any]:
    """Writes take place at the addresses that the graphs read: both ways lose the same."""
    if device != "cuda":
        return {"not applicable": "no CUDA device"}
    losses = []
    for mode in (None, "reduce-overhead"):
        torch._dynamo.reset()
        world = World(device, MergeNet(heads=2, **PAPER | {"dropout": (0.0, 0.0)}), drop=0.0)
        world.graft.follow(world.optimizer)
        model = world.target if mode is None else torch.compile(world.target, mode=mode)
        seen = []
        for _ in range(3 * CYCLE):
            world.optimizer.zero_grad()
            loss = world.loss(model)
            loss.backward()
            seen.append(float(loss.detach()))
            world.optimizer.step()
        losses.append(seen)
    worst = max(abs(a - b) for a, b in zip(*losses, strict=True))
    assert worst < 0.05, losses
    return {"largest difference": worst, "losses": losses[0]}
