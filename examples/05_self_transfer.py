"""Self transfer: one model is source and target at once; its classifier teaches an early layer.

python examples/05_self_transfer.py
"""

import torch
from sklearn.datasets import load_digits
from torchvision.models import mobilenet_v2

from graftlib import Mapping, attach, trace
from graftlib_adapters import MergeNet

digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 16
y = torch.tensor(digits.target)
model = mobilenet_v2(num_classes=10)
graph = trace(model, (x[:2],))
mapping = Mapping(graph, graph).link("classifier.1", "features.8.conv.2")
print(mapping)

optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
graft = attach(MergeNet(), mapping, cycle=2).follow(optimizer)
for batch in torch.randperm(len(y))[:640].split(64):
    loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
graft.detach()

for entry in graft.history:
    for name, change in entry.changes.items():
        print(f"step {entry.step}: {name} changed by {change.size:.2%}")
