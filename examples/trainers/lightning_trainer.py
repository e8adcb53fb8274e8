"""Lightning: one callback carries the graft through fit, validation and checkpoints.

python examples/trainers/lightning_trainer.py        (needs `pip install "graftlib[lightning]" scikit-learn`)
"""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from graftlib import Mapping, attach, trace
from graftlib.integrations.lightning import GraftCallback
from graftlib_adapters import MergeNet


class Digits(pl.LightningModule):
    """Any module's training, as Lightning wants it told."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        x, y = batch
        self.log("accuracy", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-2)


def classifier(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


pl.seed_everything(0)
digits = load_digits()
x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
training = DataLoader(TensorDataset(x[:1500], y[:1500]), 64, shuffle=True)
validation = DataLoader(TensorDataset(x[1500:], y[1500:]), 297)

source, target = classifier(256), classifier(32)  # source: load your weights
mapping = Mapping(trace(source, (x[:2],)), trace(target, (x[:2],))).link("0", "0")

graft = attach(MergeNet(), mapping, cycle=4, record=True)
trainer = pl.Trainer(
    max_epochs=2,
    accumulate_grad_batches=2,
    callbacks=[GraftCallback(graft), ModelCheckpoint("out/lightning", save_last=True)],
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Digits(target), training, validation)  # later: ckpt_path="out/lightning/last.ckpt"

print(f"accuracy {float(trainer.callback_metrics['accuracy']):.3f}")
print(f"{graft}; learned: {graft.report('out/graft.html')}")
assert not graft.attached
assert graft.history
