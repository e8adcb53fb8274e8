"""One file a run, written whole: a killed experiment goes on where it stopped, and tables share their runs.

In: an experiment, an arm, a seed, a folder. Out: the run's record, computed where its file is absent. Always true: a
file's name holds a digest of all that its result depends on: the networks and their data, the graft, the loss, the
rounds, the seed, how the sources were made, the device's kind and torch's version. The arm's name, the paper's figures
and the table's name do not matter, so `plain` of one table is `plain` of another. The code's own digest is kept
inside the record; a report says when its runs come from different code.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

import graftlib
import graftlib_adapters
from graftlib.disk import write_whole

from .experiment import Arm, Experiment, Setup, facts_of
from .training import SOURCE_SEED, digest, made, run, train_source

__all__ = ["RunFiles"]


class RunFiles:
    """The runs of one experiment in one folder.

    Args:
        experiment: with all settings in their final state.
        setup: split and device are read from it.
        folder: made where it is absent.
    """

    def __init__(self, experiment: Experiment, setup: Setup, folder: Path) -> None:
        self.experiment, self.folder = experiment, folder
        self.device = torch.device(setup.device)
        self._sources: dict[str, nn.Module] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def record(self, arm: Arm, seed: int) -> dict[str, Any]:
        """The run of `arm` with `seed`; its file is read, or computed and written."""
        path = self.path(arm, seed)
        if not path.exists():
            sources = {name: self.source(name) for name in self.needs(arm)}
            sizes = None
            if arm.noise_of is not None:
                sizes = self.record(self.experiment.arm(arm.noise_of), seed)["sizes"]
            found = run(self.experiment, arm, seed, sources, sizes, self.device)
            _write(path, {**found, "code": code(), "facts": self.facts(arm)})
        return dict(json.loads(path.read_text()), arm=arm.name)

    def path(self, arm: Arm, seed: int) -> Path:
        """Where the run of `arm` with `seed` is kept."""
        return self.folder / f"run-{_digest([self.facts(arm), seed])}-seed{seed}.json"

    def facts(self, arm: Arm) -> dict[str, Any]:
        """All that a run of `arm` depends on, but the seed."""
        experiment = self.experiment
        facts: dict[str, Any] = {
            "trains": {name: facts_of(experiment.networks[name]) for name in arm.trains},
            "order": list(arm.trains),
            "rounds": experiment.rounds,
            "graft": facts_of(arm.graft),
            "distil": facts_of(arm.distil),
            "start": facts_of(arm.start),
            "givers": {name: self._source_facts(name) for name in self.needs(arm)},
            "device": self.device.type,
            "torch": torch.__version__,
        }
        if arm.noise_of is not None:
            facts["noise of"] = self.facts(experiment.arm(arm.noise_of))
        return facts

    def source(self, name: str) -> nn.Module:
        """The trained, frozen model of a network: read from its file, or trained and written."""
        if name not in self._sources:
            network = self.experiment.networks[name]
            weights, scores = self._source_paths(name)
            if scores.exists():
                model = made(name, network, SOURCE_SEED, self.device)
                model.load_state_dict(load_file(weights, device=str(self.device)))
            else:
                begun = {network.begins: self.source(network.begins)} if network.begins else {}
                learner = train_source(name, network, self._source_rounds(name), self.device, begun)
                model, found = learner.model, learner.evaluate()
                whole = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
                write_whole(weights, save(whole))
                _write(scores, {"metrics": found, "weights": digest(model)})  # last: it says done
            self._sources[name] = model.eval().requires_grad_(False)
        return self._sources[name]

    def needs(self, arm: Arm) -> list[str]:
        """The networks that `arm` reads in their trained, frozen state."""
        graft = arm.graft
        if arm.noise_of is not None:
            graft = self.experiment.arm(arm.noise_of).graft
        needs = {arm.start.source} if arm.start is not None else set()
        needs |= {begun for n in arm.trains if (begun := self.experiment.networks[n].begins)}
        if graft is not None and (graft.spoil is not None or graft.source not in arm.trains):
            needs.add(graft.source)
        if arm.distil is not None and arm.distil.teacher is not None:
            needs.add(arm.distil.teacher)
        return sorted(needs)

    def source_scores(self) -> dict[str, Any]:
        """Network -> metrics of its trained, frozen model, for those that some arm reads."""
        names = sorted({name for arm in self.experiment.arms for name in self.needs(arm)})
        found = {}
        for name in names:
            scores = self._source_paths(name)[1]
            if scores.exists():
                found[name] = json.loads(scores.read_text())["metrics"]
        return found

    def _source_facts(self, name: str) -> dict[str, Any]:
        network = self.experiment.networks[name]
        return {
            "player": facts_of(network),
            "begins": None if network.begins is None else self._source_facts(network.begins),
            "rounds": self._source_rounds(name),
            "seed": SOURCE_SEED,
            "torch": torch.__version__,
            "device": self.device.type,
        }

    def _source_rounds(self, name: str) -> int:
        own = self.experiment.networks[name].source_rounds
        return self.experiment.rounds if own is None else own

    def _source_paths(self, name: str) -> tuple[Path, Path]:
        stem = f"source-{_digest([name, self._source_facts(name)])}"
        return self.folder / f"{stem}.safetensors", self.folder / f"{stem}.json"


OF_A_RESULT = (
    *(
        "training",
        "controls",
        "pull",
        "asked_twice",
        "baselines",
        "images",
        "texts",
        "squad",
        "vqa",
    ),
    *("two_encoders", "pictures"),
)


@cache
def code() -> str:
    """A digest of the code that decides a result: how grafts write and learn, the methods, and this folder."""
    core, methods = Path(graftlib.__file__).parent, Path(graftlib_adapters.__file__).parent
    here = Path(__file__).parent
    files = [
        *(core / "graft").glob("*.py"),
        core / "match" / "views.py",
        *methods.glob("*.py"),
        *(methods / "mergenet").glob("*.py"),
        *(methods / "assembly").glob("*.py"),
        *(here / f"{name}.py" for name in OF_A_RESULT),
        here.parent / "common" / "datasets.py",
    ]
    seen = hashlib.sha256()
    for file in sorted(files):
        seen.update(file.name.encode() + b"\0" + file.read_bytes())
    return seen.hexdigest()[:12]


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def _write(path: Path, found: dict[str, Any]) -> None:
    write_whole(path, json.dumps(found))
