"""Transplant: a fresh network of half the width and depth starts from a trained one's weights, unit by unit.

python examples/09_transplant.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from graftlib import Mapping, trace
from graftlib_adapters.assembly import transplant

digits = load_digits()
x, y = torch.tensor(digits.images).float()[:, None] / 16, torch.tensor(digits.target)


def network(width, depth):
    layers, now = [], 1
    for _ in range(depth):
        layers += [nn.Conv2d(now, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        now = width
    return nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(4 * width, 10))


def train(model, steps):
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for batch in torch.randint(0, 1400, (steps, 64), generator=torch.Generator().manual_seed(0)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return float((model.eval()(x[1400:]).argmax(1) == y[1400:]).float().mean())


torch.manual_seed(0)
source, target = network(24, 4), network(12, 2)
print(f"source {train(source, 100):.1%}")
done = transplant(
    Mapping(trace(source, x[:2]), trace(target, x[:2]))
)  # no links: by kind and depth
print(done, f"fresh {train(target, 15):.1%}", f"transplanted {train(done.model, 15):.1%}", sep="\n")
