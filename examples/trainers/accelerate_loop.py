"""Accelerate: the graft follows a prepared optimizer, and is part of what the accelerator saves.

python examples/trainers/accelerate_loop.py                       (needs `pip install "graftlib[hf]" scikit-learn`)
accelerate launch examples/trainers/accelerate_loop.py            on as many devices as you have
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from graftlib import Mapping, attach, trace
from graftlib.integrations.accelerate import follow
from graftlib_adapters import MergeNet


def classifier(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
source, target = classifier(256), classifier(32)  # source: load your weights
mapping = Mapping(trace(source, (x[:2],)), trace(target, (x[:2],))).link("0", "0")

accelerator = Accelerator(gradient_accumulation_steps=2)
source.to(accelerator.device)
model, optimizer, loader = accelerator.prepare(
    target,
    torch.optim.AdamW(target.parameters(), lr=1e-2),
    DataLoader(TensorDataset(x[:1500], y[:1500]), 64, shuffle=True),
)
graft = attach(MergeNet(), mapping, cycle=4, record=True)
follow(graft, accelerator, optimizer)
for _ in range(2):
    for batch, labels in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(batch), labels))
            optimizer.step()
            optimizer.zero_grad()
    with graft.settled(), torch.no_grad():
        found = model(x[1500:].to(accelerator.device)).argmax(1).cpu()
        accelerator.print(f"accuracy {float((found == y[1500:]).float().mean()):.3f}")
    accelerator.save_state("out/accelerate")  # later: accelerator.load_state("out/accelerate")
graft.detach()

if accelerator.is_main_process:
    print(f"{graft}; learned: {graft.report('out/graft.html')}")
    assert Path("out/accelerate/graft.safetensors").exists()
accelerator.end_training()
