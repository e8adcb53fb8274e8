"""Hugging Face's Trainer: a slimmed model learns from the original, whose logits are a column of the data set.

python examples/trainers/hf_distil.py        (needs `pip install "graftlib[hf]" scikit-learn`)
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments

import graftlib
from graftlib_adapters.distillation import kd


class Distiller(Trainer):
    """The loss is the distance from the teacher's logits, which the data collator brings beside the inputs."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        teacher = inputs.pop("teacher")
        outputs = model(**inputs)
        loss = kd(outputs["logits"], teacher)
        return (loss, outputs) if return_outputs else loss


class Classifier(nn.Module):
    """Any module that answers with its logits serves."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, 256), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> dict:
        return {"logits": self.head(torch.relu(self.hidden(x)))}


digits = load_digits()
x, y = torch.tensor(digits.data).float() / 16, torch.tensor(digits.target)
torch.manual_seed(0)
large = Classifier()
optimizer = torch.optim.Adam(large.parameters(), lr=1e-2)
for _ in range(60):
    optimizer.zero_grad()
    nn.functional.cross_entropy(large(x[:1400])["logits"], y[:1400]).backward()
    optimizer.step()

slim = graftlib.slim(graftlib.trace(large, (x[:1],)), budget={"macs": 0.2}, data=[x[:1400]])
with torch.no_grad():
    logits = large(x[:1400])["logits"]  # once
rows = [{"x": one, "teacher": other} for one, other in zip(x[:1400], logits, strict=True)]


def accuracy(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model(x[1400:])["logits"].argmax(1) == y[1400:]).float().mean())


before = accuracy(slim.model)
trainer = Distiller(
    slim.model,
    TrainingArguments(
        output_dir="out/distil",
        num_train_epochs=4,
        per_device_train_batch_size=64,
        learning_rate=5e-3,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    ),
    train_dataset=rows,
)
trainer.train()
after = accuracy(slim.model.cpu())
print(f"original {accuracy(large):.1%}, slim {before:.1%}, distilled {after:.1%}")
slim.save("out/slim")
