"""Many processes, data parallel or with sharded parameters: each runs the same graft, and nothing is sent for it.

torchrun --standalone --nproc-per-node 2 examples/trainers/ranks.py             DDP
torchrun --standalone --nproc-per-node 2 examples/trainers/ranks.py --shard     FSDP2

On a cluster, in a job that starts one task a node (for example `srun bash -c '...'` under Slurm):

    torchrun --nnodes $SLURM_NNODES --nproc-per-node 8 --rdzv-backend c10d \
        --rdzv-endpoint $HEAD_NODE:29500 examples/trainers/ranks.py --shard
"""

import os
import sys

import torch
from sklearn.datasets import load_digits
from torch import distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from graftlib import Mapping, attach, trace
from graftlib_adapters import MergeNet


def classifier(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


on_cuda = torch.cuda.is_available()
dist.init_process_group("nccl" if on_cuda else "gloo")
rank, world = dist.get_rank(), dist.get_world_size()
device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_cuda else torch.device("cpu")

digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
torch.manual_seed(0)  # the same weights on every rank
source, target = classifier(256).to(device), classifier(32).to(device)  # source: load your weights
example = (x[:2].to(device),)
mapping = Mapping(trace(source, example), trace(target, example)).link("0", "0")

if "--shard" in sys.argv:  # trace first, shard then: names stay as they were
    model = fully_shard(target)
else:
    model = DistributedDataParallel(target, device_ids=[device.index] if on_cuda else None)
optimizer = torch.optim.AdamW(target.parameters(), lr=1e-2)
graft = attach(MergeNet(), mapping, cycle=4, verify_every=10).follow(optimizer)
for batch in torch.randperm(1500)[: 1500 // world * world].view(world, -1)[rank].split(64):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[batch].to(device)), y[batch].to(device)).backward()
    optimizer.step()
with graft.settled(), torch.no_grad():  # on every rank: a sharded forward pass is a joint one
    found = model(x[1500:].to(device)).argmax(1).cpu()
if rank == 0:
    print(f"{world} processes, accuracy {float((found == y[1500:]).float().mean()):.3f}, {graft}")
graft.detach()
dist.destroy_process_group()
