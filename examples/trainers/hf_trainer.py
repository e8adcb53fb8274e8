"""Hugging Face's Trainer: one callback carries the graft through training, evaluation and checkpoints.

python examples/trainers/hf_trainer.py        (needs `pip install "graftlib[hf]" scikit-learn`)
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments

from graftlib import Mapping, attach, trace
from graftlib.integrations.transformers import GraftCallback
from graftlib_adapters import MergeNet


class Classifier(nn.Module):
    """Any module that answers with its loss serves the Trainer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict:
        logits = self.head(torch.relu(self.hidden(x)))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def accuracy(answer) -> dict:
    return {"accuracy": float((answer.predictions.argmax(1) == answer.label_ids).mean())}


digits = load_digits()
rows = [
    {"x": torch.tensor(x, dtype=torch.float32) / 16, "labels": int(y)}
    for x, y in zip(digits.data, digits.target, strict=True)
]
torch.manual_seed(0)
source, target = Classifier(256), Classifier(32)  # source: load your weights
example = (torch.zeros(2, 64),)
mapping = Mapping(trace(source, example), trace(target, example)).link("hidden", "hidden")

graft = attach(MergeNet(), mapping, cycle=4, record=True)
trainer = Trainer(
    target,
    TrainingArguments(
        output_dir="out/trainer",
        num_train_epochs=2,
        per_device_train_batch_size=64,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        eval_strategy="epoch",
        save_strategy="epoch",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    ),
    train_dataset=rows[:1500],
    eval_dataset=rows[1500:],
    compute_metrics=accuracy,
    callbacks=[GraftCallback(graft)],
)
trainer.train()  # later: trainer.train(resume_from_checkpoint=True)

print(trainer.evaluate())
print(f"{graft}; learned: {graft.report(Path('out/graft.html'))}")
assert not graft.attached
assert len(list(Path("out/trainer").glob("checkpoint-*/graft.safetensors"))) >= 2
