"""One small grafted training, written four times: as a plain loop, and for each trainer.

Every function takes the folder to save in (None: saves nothing), whether to go on from what is there, and the optimizer
step before which the process kills itself (None: never). Each returns the world it trained.
"""

import contextlib
import os
import signal
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from graftlib import Mapping, attach, trace
from graftlib_adapters import MergeNet

BATCH, ACCUMULATE, PER_EPOCH, EPOCHS = 4, 2, 5, 2
STEPS = PER_EPOCH * EPOCHS  # optimizer steps
CYCLE = 3


class Slim(nn.Module):
    """A target with running statistics, whose loss is part of its answer, as Hugging Face wants it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 9)
        self.norm = nn.BatchNorm1d(9)
        self.last = nn.Linear(9, 4)

    def forward(self, x, labels=None):
        logits = self.last(torch.tanh(self.norm(self.first(x))))
        if labels is None:
            return logits
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Rows(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.y[i]}


class Resumable:
    """Batches in order; knows where it stood, which Lightning needs to resume within an epoch."""

    def __init__(self, rows):
        self.rows, self.seen = rows, 0

    def __len__(self):
        return len(self.rows) // BATCH

    def __iter__(self):
        for i in range(self.seen % len(self), len(self)):
            self.seen = i + 1
            rows = slice(BATCH * i, BATCH * (i + 1))
            yield {"x": self.rows.x[rows], "labels": self.rows.y[rows]}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


class World:
    """Everything that a training needs, from one seed, and what was seen on the way."""

    def __init__(self, adapter=None, grafted=True, **options):
        torch.manual_seed(0)
        self.source = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))
        self.source.requires_grad_(requires_grad=False)
        self.target = Slim()
        rows = BATCH * ACCUMULATE * PER_EPOCH
        self.data = Rows(torch.randn(rows, 6), torch.randint(0, 4, (rows,)))
        example = (torch.zeros(2, 6),)
        mapping = Mapping(trace(self.source, example), trace(self.target, example))
        mapping.link("0", "first").link("2", "last")
        self.optimizer = torch.optim.AdamW(self.target.parameters(), lr=1e-2)
        self.graft = None
        if grafted:
            adapter = adapter or MergeNet(rank=4, trust=0.2)
            self.graft = attach(adapter, mapping, cycle=CYCLE, total_steps=STEPS, **options)
        self.seen = []  # fingerprints of the target at evaluations

    def look(self):
        self.seen.append({k: v.clone() for k, v in self.target.state_dict().items()})

    def loss(self, i):
        rows = slice(BATCH * i, BATCH * (i + 1))
        return self.target(self.data.x[rows], self.data.y[rows])["loss"]

    def end(self):
        return {k: v.clone() for k, v in self.target.state_dict().items()}


def die_at(step, die):
    if die is not None and step == die:
        os.kill(os.getpid(), signal.SIGKILL)


def plain(world=None):
    """The loop that all trainers stand for."""
    world = world or World()
    graft, optimizer = world.graft, world.optimizer
    if graft:
        graft.follow(optimizer)
    for _ in range(EPOCHS):
        for i in range(PER_EPOCH):
            for part in range(ACCUMULATE):
                (world.loss(ACCUMULATE * i + part) / ACCUMULATE).backward()
            optimizer.step()
            optimizer.zero_grad()
            with graft.settled() if graft else contextlib.nullcontext():
                world.look()
    if graft:
        graft.detach()
    return world


def huggingface(folder, resume=False, die=None, world=None, every=1):
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from graftlib.integrations.transformers import GraftCallback

    world = world or World()

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            die_at(state.global_step, die)

        def on_evaluate(self, args, state, control, **kwargs):
            world.look()

    saving = {"save_strategy": "steps", "save_steps": every} if folder else {"save_strategy": "no"}
    arguments = TrainingArguments(
        output_dir=str(folder or "unused"),
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATE,
        num_train_epochs=EPOCHS,
        max_grad_norm=0.0,
        eval_strategy="steps",
        eval_steps=1,
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        **saving,
    )
    constant = torch.optim.lr_scheduler.LambdaLR(world.optimizer, lambda _: 1.0)
    callbacks = [Look()]
    if world.graft:
        callbacks.append(GraftCallback(world.graft))
    trainer = Trainer(
        world.target,
        arguments,
        train_dataset=world.data,
        eval_dataset=Rows(world.data.x[:BATCH], world.data.y[:BATCH]),
        optimizers=(world.optimizer, constant),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=True if resume else None)
    return world


def lightning(folder, resume=False, die=None, world=None, every=1, manual=False):
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch.utils.data import DataLoader

    from graftlib.integrations.lightning import GraftCallback

    world = world or World()

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.target = world.target
            self.automatic_optimization = not manual

        def training_step(self, batch, index):
            loss = self.target(**batch)["loss"]
            if manual:
                self.manual_backward(loss / ACCUMULATE)
                if (index + 1) % ACCUMULATE == 0:
                    die_at(self.trainer.global_step, die)
                    optimizer = self.optimizers()
                    optimizer.step()
                    optimizer.zero_grad()
            return loss

        def validation_step(self, batch, index):
            world.look()

        def on_before_optimizer_step(self, optimizer):
            die_at(self.trainer.global_step, die)

        def configure_optimizers(self):
            return world.optimizer

    callbacks = [GraftCallback(world.graft)] if world.graft else []
    if folder:
        callbacks.append(
            ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers, loggers and devices
        trainer = pl.Trainer(
            max_epochs=EPOCHS,
            accumulate_grad_batches=1 if manual else ACCUMULATE,
            val_check_interval=ACCUMULATE,
            num_sanity_val_steps=0,
            callbacks=callbacks,
            enable_checkpointing=bool(folder),
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(folder or "."),
        )
        one = DataLoader(Rows(world.data.x[:BATCH], world.data.y[:BATCH]), BATCH)
        path = None
        if resume:
            path = max(Path(folder).glob("*.ckpt"), key=lambda p: int(p.stem.split("=")[1]))
        trainer.fit(Module(), Resumable(world.data), one, ckpt_path=path, weights_only=True)
    world.trainer = trainer
    return world


def accelerate(folder, resume=False, die=None, world=None, every=1):
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from graftlib.integrations.accelerate import follow

    world = world or World()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    model, optimizer, loader = accelerator.prepare(
        world.target, world.optimizer, DataLoader(world.data, BATCH)
    )
    if world.graft:
        follow(world.graft, accelerator, optimizer)
    start = 0
    if resume:
        last = max(Path(folder).glob("step-*"), key=lambda p: int(p.name.split("-")[1]))
        start = int(last.name.split("-")[1])
        accelerator.load_state(str(last))
    step = 0
    for _ in range(EPOCHS):
        for batch in loader:
            if step < start:  # skip what the checkpoint has seen
                accelerator._do_sync()
                step += accelerator.sync_gradients
                continue
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                if accelerator.sync_gradients:
                    die_at(step, die)
                optimizer.step()
                optimizer.zero_grad()
            if not accelerator.sync_gradients:
                continue
            step += 1
            with world.graft.settled() if world.graft else contextlib.nullcontext():
                world.look()
            if folder and step % every == 0:
                accelerator.save_state(str(Path(folder, f"step-{step}.tmp")))
                Path(folder, f"step-{step}.tmp").rename(Path(folder, f"step-{step}"))
    if world.graft:
        world.graft.detach()
    accelerator.free_memory()
    return world


TRAINERS = {"huggingface": huggingface, "lightning": lightning, "accelerate": accelerate}
