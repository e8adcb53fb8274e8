"""Grafted trainings in several processes; run by test_ranks.py under torchrun.

torchrun --nproc-per-node 2 ranks_run.py FOLDER: every rank writes FOLDER/rank{i}.json, scenario -> facts.
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from graftlib import GraftError, Mapping, attach, trace
from graftlib.graft.ranks import fingerprint
from graftlib_adapters import MergeNet

STEPS, CYCLE = 7, 3
TRANSFERS = 3  # before steps 0, 3 and 6


class Uneven(nn.Module):
    """Widths that two processes cannot share evenly, and a root that holds a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 9)
        self.norm = nn.LayerNorm(9)
        self.last = nn.Linear(9, 5)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x)))) * self.scale


def models():
    torch.manual_seed(0)
    source = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 5))
    return source.requires_grad_(requires_grad=False), Uneven()


def mapped(source, target):
    example = (torch.zeros(2, 6),)
    mapping = Mapping(trace(source, example), trace(target, example))
    return mapping.link("0", "first").link("2", "last")


def batches(rank):
    numbers = torch.Generator().manual_seed(100 + rank)
    x = torch.randn(STEPS, 8, 6, generator=numbers)
    return x, torch.randint(0, 5, (STEPS, 8), generator=numbers)


def adapter(**options):
    # A generous bound, so that what is written shows.
    return MergeNet(rank=4, trust=0.2, **options)


def train(model, optimizer, graft=None, steps=range(STEPS), evaluate=False):
    x, y = batches(dist.get_rank())
    for i in steps:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[i]), y[i]).backward()
        optimizer.step()
        if evaluate:
            with graft.settled(), torch.no_grad():
                model(x[i])


def calls():
    """Collective calls of this process so far."""
    return dist.distributed_c10d._get_default_group()._get_sequence_number_for_group()


def whole(target):
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in target.state_dict().items()
    }


def prints(target):
    return {name: int(fingerprint(value)) for name, value in whole(target).items()}


def ddp(*, grafted=True, spoil=0.0, **options):
    source, target = models()
    with torch.no_grad():
        source[0].weight.add_(spoil * dist.get_rank())
    mapping = mapped(source, target)
    model = DistributedDataParallel(target)
    optimizer = torch.optim.AdamW(target.parameters(), lr=1e-2)
    torch.manual_seed(dist.get_rank())  # what the host draws must not matter
    before, facts = calls(), {}
    graft = (
        attach(adapter(), mapping, cycle=CYCLE, **options).follow(optimizer) if grafted else None
    )
    try:
        train(model, optimizer)
    except GraftError as error:
        facts["error"] = str(error)
    facts["calls"] = calls() - before
    if graft is not None:
        facts["deterministic"] = graft._running().deterministic
        facts["sizes"] = [sum(c.size for c in e.changes.values()) for e in graft.history]
        graft.detach()
    return {**facts, "prints": prints(target)}


def fsdp(*, grafted=True, evaluate=False, write="replace", signal="trajectory", stop=None):
    source, target = models()
    mapping = mapped(source, target)
    fully_shard(target.first)
    fully_shard(
        target
    )  # the root shards the rest, `last` included, and stays gathered after an evaluation
    optimizer = torch.optim.AdamW(target.parameters(), lr=1e-2)
    new = lambda: attach(adapter(write=write, signal=signal), mapping, cycle=CYCLE)  # noqa: E731
    before = calls()
    graft = new().follow(optimizer) if grafted else None
    train(target, optimizer, graft, range(STEPS if stop is None else stop), evaluate)
    if stop is not None:
        with graft.settled():
            state = graft.state_dict()
        graft.detach()
        graft = new()
        graft.load_state_dict(state)
        graft.follow(optimizer)
        train(target, optimizer, graft, range(stop, STEPS))
    facts = {"calls": calls() - before, "sharded": hasattr(target.first.weight, "full_tensor")}
    if graft is not None:
        graft.detach()
    target.reshard()
    facts["parts"] = {n: list(p.to_local().shape) for n, p in target.named_parameters()}
    return {**facts, "prints": prints(target)}


def unsharded(*, write="replace", signal="trajectory"):
    source, target = models()
    mapping = mapped(source, target)
    model = DistributedDataParallel(target)
    optimizer = torch.optim.AdamW(target.parameters(), lr=1e-2)
    graft = attach(adapter(write=write, signal=signal), mapping, cycle=CYCLE).follow(optimizer)
    train(model, optimizer)
    graft.detach()
    return {"prints": prints(target)}


SCENARIOS = {
    "plain": lambda: ddp(grafted=False),
    "grafted": lambda: ddp(verify_every=0),
    "compared": lambda: ddp(verify_every=3),
    "by default": ddp,
    "spoilt and compared": lambda: ddp(spoil=1e-3, verify_every=3),
    "spoilt": lambda: ddp(spoil=1e-3, verify_every=0),
    "spoilt and broadcast": lambda: ddp(spoil=1e-3, verify_every=0, sync="broadcast"),
    "fsdp plain": lambda: fsdp(grafted=False),
    "fsdp": fsdp,
    "fsdp evaluated": lambda: fsdp(evaluate=True),
    "fsdp resumed": lambda: fsdp(stop=3),
    "unsharded": unsharded,
    "fsdp probe": lambda: fsdp(write="probe", signal="gradient"),
    "unsharded probe": lambda: unsharded(write="probe", signal="gradient"),
}


def main(folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {name: run() for name, run in SCENARIOS.items()}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
