"""Attach, the explicit way: `with graft.step():` around forward, backward and optimizer step.

python examples/04_attach_step.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from graftlib import Mapping, TransferCycle, attach, trace
from graftlib_adapters import MergeNet

digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
source = nn.Sequential(
    nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
)
target = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
mapping = Mapping(trace(source, (x[:2],)), trace(target, (x[:2],)))
mapping.link("0", "0").link("4", "2", direction="both")  # the source reads the target, too

optimizer = torch.optim.AdamW([*source.parameters(), *target.parameters()], lr=3e-3)
cycle = TransferCycle(every=2, stop=0.8)  # the last fifth of training is the models' own
graft = attach(MergeNet(rank=8), mapping, cycle=cycle, total_steps=100)
for batch in torch.randperm(1500).repeat(5)[:6400].split(64):
    with graft.step():
        loss = sum(
            nn.functional.cross_entropy(model(x[batch]), y[batch]) for model in (source, target)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
graft.detach()

for name, model in {"source": source, "target": target}.items():
    print(
        f"{name}: {(model(x[1500:]).argmax(1) == y[1500:]).float().mean():.1%} of the held-out digits"
    )
assert len(graft.history) == 40
