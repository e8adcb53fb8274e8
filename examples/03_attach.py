"""Attach: three added lines turn a plain training loop into a grafted one.

python examples/03_attach.py
"""

import torch
from sklearn.datasets import load_digits
from torchvision.models import mobilenet_v2, resnet18

from graftlib import Mapping, attach, trace
from graftlib_adapters import MergeNet

digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1) / 16
y = torch.tensor(digits.target)
source, target = resnet18(num_classes=10), mobilenet_v2(num_classes=10)  # source: load your weights
mapping = Mapping(trace(source, (x[:2],)), trace(target, (x[:2],)))
mapping.link("layer4.0.downsample.0", "features.17.conv.2")

optimizer = torch.optim.SGD(target.parameters(), lr=0.05, momentum=0.9)
graft = attach(MergeNet(), mapping, cycle=4)  # 1
graft.follow(optimizer)  # 2
for batch in torch.randperm(len(y))[:640].split(64):
    loss = torch.nn.functional.cross_entropy(target(x[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"{graft}  loss {loss.item():.2f}")
graft.detach()  # 3

assert [entry.step for entry in graft.history] == [0, 4, 8]
