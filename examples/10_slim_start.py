"""Prune: half of a trained network as the start of a slim one, beside the same slim network from random weights.

python examples/10_slim_start.py
"""

import torch
from sklearn.datasets import load_digits
from torch.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential

from graftlib import surgery, trace

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels)
many, few, test = torch.randperm(len(y)).split([1200, 200, 397])


def net(width):
    first = Conv2d(1, width, 3, padding=1), ReLU(), MaxPool2d(2)
    second = Conv2d(width, width, 3, padding=1), ReLU(), MaxPool2d(2)
    return Sequential(*first, *second, Flatten(), Linear(4 * width, 10))


def train(model, images, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        batch = images[torch.randint(len(images), (50,))]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return f"{(model(x[test]).argmax(1) == y[test]).float().mean():.1%}"


large = net(32)
print("large           ", train(large, many, 400))
graph = trace(large, x[:2])  # 1
slim = surgery.prune(graph, 0.5)  # 2: half of every class that may move, the stronger half
fitted = surgery.prune(graph, 0.5, data=[x[few]])  # or fitted to inputs
for name, model in {"random": net(16), "slim": slim, "slim, fitted": fitted}.items():
    print(f"{name:<16} {train(model, few, 0)}, after 60 steps {train(model, few, 60)}")  # 3
