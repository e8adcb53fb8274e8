"""Slim: a third of the MACs of a trained network, then trained on towards the original's answers.

python examples/11_slim_and_distil.py
"""

import torch
from sklearn.datasets import load_digits
from torch.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from torch.nn.functional import cross_entropy

import graftlib
from graftlib_adapters.distillation import kd

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels)
train, test = torch.randperm(len(y)).split([1400, 397])
first = Conv2d(1, 32, 3, padding=1), ReLU(), MaxPool2d(2)
second = Conv2d(32, 32, 3, padding=1), ReLU(), MaxPool2d(2)
large = Sequential(*first, *second, Flatten(), Linear(128, 10))


def learn(model, loss, steps):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for rows in torch.randint(len(train), (steps, 50)):
        optimizer.zero_grad()
        loss(model(x[train[rows]]), rows).backward()
        optimizer.step()
    return f"{(model(x[test]).argmax(1) == y[test]).float().mean():.1%}"


print("original       ", learn(large, lambda out, rows: cross_entropy(out, y[train[rows]]), 400))
slim = graftlib.slim(graftlib.trace(large, x[:1]), budget={"macs": 0.3}, data=[x[train]])  # 1
print(slim)
with torch.no_grad():
    teacher = large(x[train])  # 2: the teacher's logits, once
print("slim           ", learn(slim.model, None, 0))
print("slim, distilled", learn(slim.model, lambda out, rows: kd(out, teacher[rows]), 100))  # 3
slim.save("out/slim")
