"""Assemble: layers of networks of other widths merged into one, without training, chosen on held-out digits.

python examples/08_assemble.py
"""

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

from graftlib_adapters.assembly import ZooEntry, assemble, replay

x, y = map(torch.tensor, load_digits(return_X_y=True))


def network(width):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def loss(model, images):
    return nn.functional.cross_entropy(model(x[images].float() / 16), y[images])


def trained(width, images):
    optimizer = torch.optim.Adam((model := network(width)).parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss(model, images).backward()
        optimizer.step()
    return model.requires_grad_(False)


torch.manual_seed(0)
base = trained(32, slice(0, 200))  # the sources saw other digits, and one of them lies on disk
save_file(trained(48, slice(200, 1000)).state_dict(), "wide.safetensors")
zoo = [ZooEntry(lambda: network(48), "wide.safetensors"), trained(24, slice(0, 1000))]
made = assemble(base, zoo, args=x[:2].float(), evaluate=lambda m: -loss(m, slice(1000, 1400)))
made.save("out")  # weights, config, model card, plan, report
print(made, *(f"test loss {loss(m, slice(1400, None)):.3f}" for m in (base, made.model)), sep="\n")
assert replay("out/plan.json", base, zoo, args=x[:2].float()).record == made.record
