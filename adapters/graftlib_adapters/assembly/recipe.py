"""What ``graftlib assemble`` reads: a YAML file with a base, sources and what to choose by.

In: the path of an untrusted file. Out: a `Recipe` that knows what it names. Always true: unknown words are refused
with the nearest known ones, all at once; reading executes nothing; paths are relative to the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from graftlib.cli.inputs import parse_shape
from graftlib.cli.models import find_model, load_model
from graftlib.errors import nearest

from .assemble import Assembly, assemble
from .card import FILES
from .permutation import AssemblyError
from .zoo import Live, ZooEntry

__all__ = ["Named", "Recipe", "function", "read"]

_TOP = ("base", "sources", "evaluate", "links", "settings")
_MODEL = ("model", "weights", "folder", "input", "name")
_SETTINGS = {
    "merge_factor": float,
    "goal": str,
    "tolerance": float,
    "factors": list,
    "parts": list,
    "pad": str,
    "method": str,
    "score": str,
    "restarts": int,
    "rounds": int,
    "patience": int,
    "seed": int,
}


@dataclass(frozen=True)
class Named:
    """A model by name, as on the command line; builds it when called.

    Attributes:
        model: ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER`` or ``FILE.py:FACTORY``.
        shapes: of its example inputs; empty for its own.
    """

    model: str
    shapes: tuple[tuple[int, ...], ...] = ()

    def __call__(self) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        """The module without the checkpoint's values, and example inputs."""
        loaded = load_model(self.model, shapes=self.shapes)
        if torch.empty(0).is_meta:  # asked for under the meta device
            return loaded.model, loaded.args, loaded.kwargs
        if any(p.is_meta for p in loaded.model.parameters()):
            loaded = load_model(self.model, shapes=self.shapes, device="cpu", values=True)
        return loaded.model, loaded.args, loaded.kwargs


@dataclass(frozen=True)
class _Side:
    """One model that the file names: with a checkpoint, or a whole folder of them."""

    named: Named
    weights: Path | None
    folder: Path | None
    name: str

    def files(self) -> list[Path]:
        """The checkpoints."""
        if self.folder is not None:
            return sorted(self.folder.glob("*.safetensors"))
        return [] if self.weights is None else [self.weights]

    def names(self) -> list[str]:
        """What is read, in words."""
        files = [str(file) for file in self.files()]
        return files or [self.named.model]

    def entries(self) -> Iterator[ZooEntry | Live]:
        """As sources."""
        for file in self.files():
            if file.suffix in (".safetensors", ".json"):
                yield ZooEntry(self.named, file, name=self.name or file.name.partition(".")[0])
            else:
                yield self.live()
        if not self.files():
            yield self.live()

    def live(self) -> Live:
        """In memory, with its values."""
        loaded = load_model(
            self.named.model,
            shapes=self.named.shapes,
            device="cpu",
            values=True,
            weights=self.weights if self.weights and self.weights.suffix != ".json" else None,
        )
        return Live(loaded.model, loaded.args, loaded.kwargs, self.name or self.named.model)


@dataclass(frozen=True)
class Recipe:
    """A file that was read.

    Attributes:
        base: receives.
        sources: give.
        evaluate: ``FILE.py:FUNCTION``, model -> score, larger is better; None where no data choose.
        links: (source pattern, base pattern); None where the layers are found.
        settings: further keywords of `assemble`.
    """

    base: _Side
    sources: tuple[_Side, ...]
    evaluate: str | None
    links: tuple[tuple[str, str], ...] | None
    settings: Mapping[str, Any]

    def facts(self, output: Path) -> dict[str, Any]:
        """What would be read, executed and written."""
        sides = (self.base, *self.sources)
        named = [find_model(side.named.model) for side in sides]
        files = [str(found.path) for found in named if found.library == "file"]
        files += [self.evaluate.rpartition(":")[0]] if self.evaluate else []
        return {
            "dry_run": True,
            "base": str(named[0]),
            "sources": [name for side in self.sources for name in side.names()],
            "executes": list(dict.fromkeys(files)),
            "settings": dict(self.settings),
            "writes": [str(output / name) for name in FILES],
        }

    def run(self, output: Path, *, resume: bool = False, jobs: int = 1) -> Assembly:
        """Assemble, and write the folder.

        Raises:
            GraftError: a model, a checkpoint or the scorer is not what the file says.
        """
        scorer = None if self.evaluate is None else function(self.evaluate)
        base = self.base.live()
        made = assemble(
            base.model,
            [entry for side in self.sources for entry in side.entries()],
            args=base.args,
            kwargs=base.kwargs,
            mapping=self.links,
            evaluate=scorer,
            jobs=jobs,
            log=output,
            resume=resume,
            **self.settings,
        )
        made.save(output)
        return made


def read(path: Path) -> Recipe:
    """Read a file; nothing is executed.

    Raises:
        AssemblyError: it cannot be read, is malformed, or names files that are not there; all at once.
        ModelNameError: a model's name is none.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise AssemblyError(
            f"{str(path)!a} cannot be read as YAML.", why=str(error).replace("\n", " ")[:300]
        ) from error
    reader = _Reader(path.parent)
    recipe = reader.recipe(values)
    if reader.wrong:
        raise AssemblyError(
            f"{str(path)!a} is no plan of an assembly.",
            where=reader.wrong,
            fix="see graftlib assemble --help for an example",
        )
    assert recipe is not None
    for side in (recipe.base, *recipe.sources):
        find_model(side.named.model)
    return recipe


def function(name: str) -> Callable[[nn.Module], float]:
    """The function that ``FILE.py:FUNCTION`` names; the file is executed.

    Raises:
        ModelNameError: there is none.
    """
    from graftlib.cli.models import _execute  # the one place that runs a user's file

    found = find_model(name)
    if found.library != "file" or found.path is None:
        raise AssemblyError(f"{name!a} is no FILE.py:FUNCTION.")
    scorer: Callable[[nn.Module], float] = getattr(_execute(found.path), found.rest)
    if not callable(scorer):
        raise AssemblyError(f"{name!a} cannot be called.", fix="name a function: model -> score")
    return scorer


class _Reader:
    """Walks through the values of a file and gathers all that is wrong with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wrong: dict[str, object] = {}

    def recipe(self, values: Any) -> Recipe | None:
        if not self._known(values, _TOP, "the file"):
            return None
        base = self._side(values.get("base"), "base", one=True)
        given = values.get("sources")
        if not isinstance(given, list) or not given:
            self.wrong["sources"] = "is no list of models"
            given = []
        sources = [self._side(each, f"sources[{i}]") for i, each in enumerate(given)]
        evaluate, settings = values.get("evaluate"), self._settings(values.get("settings", {}))
        if evaluate is not None:
            evaluate = self._python(evaluate, "evaluate")
        links = self._links(values.get("links"))
        if self.wrong or base is None:
            return None
        return Recipe(base, tuple(s for s in sources if s), evaluate, links, settings)

    def _known(self, values: Any, words: tuple[str, ...], where: str) -> bool:
        if not isinstance(values, dict):
            self.wrong[where] = "has no fields: " + ", ".join(words)
            return False
        for word in values.keys() - set(words):
            near = nearest(str(word), words, n=1)
            self.wrong[f"{where}: {word!a}"] = "is unknown" + (
                f"; nearest {near[0]}" if near else ""
            )
        return True

    def _side(self, values: Any, where: str, *, one: bool = False) -> _Side | None:
        words = tuple(word for word in _MODEL if not (one and word == "folder"))
        if not self._known(values, words, where):
            return None
        model = values.get("model")
        if not isinstance(model, str):
            self.wrong[f"{where}: model"] = "is missing"
            return None
        weights, folder = (
            self._path(values.get(w), f"{where}: {w}") for w in ("weights", "folder")
        )
        if weights and folder:
            self.wrong[where] = "has weights and a folder: name one of them"
        if folder and not sorted(folder.glob("*.safetensors")):
            self.wrong[f"{where}: folder"] = f"{str(folder)!a} holds no *.safetensors"
        if not (weights or folder) and model.partition(":")[0] in ("torchvision", "timm"):
            self.wrong[f"{where}: weights"] = "is missing: this model would be random"
        named = Named(self._python(model, f"{where}: model"), self._shapes(values, where))
        return _Side(named, weights, folder, str(values.get("name", "")))

    def _python(self, name: Any, where: str) -> str:
        """FILE.py:NAME and hf:FOLDER with the path made absolute; other names as they are."""
        if not isinstance(name, str):
            self.wrong[where] = "is no name"
            return ""
        file, colon, rest = name.rpartition(":")
        if colon and file.endswith(".py"):
            return f"{self.folder / file}:{rest}"
        if name.startswith("hf:"):
            return f"hf:{self.folder / Path(rest).expanduser()}"
        return name

    def _path(self, value: Any, where: str) -> Path | None:
        if value is None:
            return None
        path = self.folder / str(value)
        if not path.exists():
            self.wrong[where] = f"{str(path)!a} is not there"
        return path

    def _shapes(self, values: Mapping[str, Any], where: str) -> tuple[tuple[int, ...], ...]:
        given = values.get("input", [])
        try:
            return tuple(
                parse_shape(str(s)) for s in (given if isinstance(given, list) else [given])
            )
        except ValueError as error:
            self.wrong[f"{where}: input"] = str(error)
            return ()

    def _links(self, given: Any) -> tuple[tuple[str, str], ...] | None:
        if given is None:
            return None
        pairs = given if isinstance(given, list) else [given]
        if not all(
            isinstance(p, list) and len(p) == 2 and all(isinstance(w, str) for w in p)
            for p in pairs
        ):
            self.wrong["links"] = "is no list of [source pattern, base pattern]"
            return None
        return tuple((one, other) for one, other in pairs)

    def _settings(self, given: Any) -> dict[str, Any]:
        if not self._known(given, tuple(_SETTINGS), "settings"):
            return {}
        made = {}
        for word, value in given.items():
            kind = _SETTINGS.get(word)
            wanted = (int, float) if kind is float else kind
            if kind and (not isinstance(value, wanted) or isinstance(value, bool)):  # type: ignore[arg-type]
                self.wrong[f"settings: {word}"] = f"is no {kind.__name__}"
            made[str(word)] = value
        return made
