"""One file a run, written whole: a killed experiment goes on where it stopped, and tables share their runs.

In: an experiment, an arm, a seed, a folder. Out: the run's record, computed where its file is absent. Always true: a
file's name holds a digest of all that its result depends on: the players and their data, the graft, the loss, the
rounds, the seed, how the givers were made, the device's kind and torch's version. The arm's name, the paper's figures
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
from .training import GIVER_SEED, digest, made, run, train_giver

__all__ = ["Ledger"]


class Ledger:
    """The runs of one experiment in one folder.

    Args:
        experiment: with all settings in their final state.
        setup: split and device are read from it.
        folder: made where it is absent.
    """

    def __init__(self, experiment: Experiment, setup: Setup, folder: Path) -> None:
        self.experiment, self.folder = experiment, folder
        self.device = torch.device(setup.device)
        self._givers: dict[str, nn.Module] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def record(self, arm: Arm, seed: int) -> dict[str, Any]:
        """The run of `arm` with `seed`; its file is read, or computed and written."""
        path = self.path(arm, seed)
        if not path.exists():
            givers = {name: self.giver(name) for name in self.needs(arm)}
            sizes = None
            if arm.noise_of is not None:
                sizes = self.record(self.experiment.arm(arm.noise_of), seed)["sizes"]
            found = run(self.experiment, arm, seed, givers, sizes, self.device)
            _write(path, {**found, "code": code(), "facts": self.facts(arm)})
        return dict(json.loads(path.read_text()), arm=arm.name)

    def path(self, arm: Arm, seed: int) -> Path:
        """Where the run of `arm` with `seed` is kept."""
        return self.folder / f"run-{_digest([self.facts(arm), seed])}-seed{seed}.json"

    def facts(self, arm: Arm) -> dict[str, Any]:
        """All that a run of `arm` depends on, but the seed."""
        experiment = self.experiment
        facts: dict[str, Any] = {
            "trains": {name: facts_of(experiment.players[name]) for name in arm.trains},
            "order": list(arm.trains),
            "rounds": experiment.rounds,
            "graft": facts_of(arm.graft),
            "distil": facts_of(arm.distil),
            "start": facts_of(arm.start),
            "givers": {name: self._giver_facts(name) for name in self.needs(arm)},
            "device": self.device.type,
            "torch": torch.__version__,
        }
        if arm.noise_of is not None:
            facts["noise of"] = self.facts(experiment.arm(arm.noise_of))
        return facts

    def giver(self, name: str) -> nn.Module:
        """The trained, frozen model of a player: read from its file, or trained and written."""
        if name not in self._givers:
            player = self.experiment.players[name]
            weights, scores = self._giver_paths(name)
            if scores.exists():
                model = made(name, player, GIVER_SEED, self.device)
                model.load_state_dict(load_file(weights, device=str(self.device)))
            else:
                begun = {player.begins: self.giver(player.begins)} if player.begins else {}
                learner = train_giver(name, player, self._giver_rounds(name), self.device, begun)
                model, found = learner.model, learner.evaluate()
                whole = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
                write_whole(weights, save(whole))
                _write(scores, {"metrics": found, "weights": digest(model)})  # last: it says done
            self._givers[name] = model.eval().requires_grad_(False)
        return self._givers[name]

    def needs(self, arm: Arm) -> list[str]:
        """The players that `arm` reads in their trained, frozen state."""
        graft = arm.graft
        if arm.noise_of is not None:
            graft = self.experiment.arm(arm.noise_of).graft
        needs = {arm.start.source} if arm.start is not None else set()
        needs |= {begun for n in arm.trains if (begun := self.experiment.players[n].begins)}
        if graft is not None and (graft.spoil is not None or graft.source not in arm.trains):
            needs.add(graft.source)
        if arm.distil is not None and arm.distil.teacher is not None:
            needs.add(arm.distil.teacher)
        return sorted(needs)

    def giver_scores(self) -> dict[str, Any]:
        """Player -> metrics of its trained, frozen model, for those that some arm reads."""
        names = sorted({name for arm in self.experiment.arms for name in self.needs(arm)})
        found = {}
        for name in names:
            scores = self._giver_paths(name)[1]
            if scores.exists():
                found[name] = json.loads(scores.read_text())["metrics"]
        return found

    def _giver_facts(self, name: str) -> dict[str, Any]:
        player = self.experiment.players[name]
        return {
            "player": facts_of(player),
            "begins": None if player.begins is None else self._giver_facts(player.begins),
            "rounds": self._giver_rounds(name),
            "seed": GIVER_SEED,
            "torch": torch.__version__,
            "device": self.device.type,
        }

    def _giver_rounds(self, name: str) -> int:
        own = self.experiment.players[name].giver_rounds
        return self.experiment.rounds if own is None else own

    def _giver_paths(self, name: str) -> tuple[Path, Path]:
        stem = f"giver-{_digest([name, self._giver_facts(name)])}"
        return self.folder / f"{stem}.safetensors", self.folder / f"{stem}.json"


OF_A_RESULT = (
    *("training", "controls", "pull", "hearing", "rivals", "images", "texts", "squad", "vqa"),
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
