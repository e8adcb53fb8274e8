"""What ``graftlib assemble`` reads: a recipe, a YAML file with a base, sources and what to choose by.

The file is untrusted: unknown words are refused with the nearest known ones, all at once; reading executes nothing;
paths are relative to the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from graftlib.cli.names import find_model, parse_shape
from graftlib.disk import named
from graftlib.documents import Record, read_yaml
from graftlib.errors import shown

from .errors import AssemblyError
from .layout import FILES
from .options import RecipeSettings

if TYPE_CHECKING:
    from torch import nn

    from .assembling import Assembly
    from .zoo import LoadedModel, ZooEntry

__all__ = ["Named", "Recipe", "find_function", "function", "read"]

_Shape = str | Annotated[int, Meta(ge=0, le=10**12)]


class _Base(Record):
    """The model that receives."""

    model: str
    weights: str | None = None
    input: _Shape | tuple[_Shape, ...] = ()
    name: str = ""


class _Source(_Base):
    """A model that gives, or a folder of them."""

    folder: str | None = None


class _File(Record):
    """What stands in a recipe."""

    base: _Base
    sources: Annotated[list[_Source], Meta(min_length=1)]
    evaluate: str | None = None
    links: list[tuple[str, str]] | None = None
    settings: RecipeSettings | None = None


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
        import torch

        from graftlib.cli.models import load_model

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

    def entries(self) -> Iterator[ZooEntry | LoadedModel]:
        """As sources."""
        from .zoo import ZooEntry

        for file in self.files():
            if file.suffix in (".safetensors", ".json"):
                yield ZooEntry(self.named, file, name=self.name or file.name.partition(".")[0])
            else:
                yield self.load()
        if not self.files():
            yield self.load()

    def load(self) -> LoadedModel:
        """In memory, with its values."""
        from graftlib.cli.models import load_model

        from .zoo import LoadedModel

        loaded = load_model(
            self.named.model,
            shapes=self.named.shapes,
            device="cpu",
            values=True,
            weights=self.weights if self.weights and self.weights.suffix != ".json" else None,
        )
        return LoadedModel(loaded.model, loaded.args, loaded.kwargs, self.name or self.named.model)


@dataclass(frozen=True)
class Recipe:
    """A file that was read.

    Attributes:
        base: receives.
        sources: give.
        evaluate: ``FILE.py:FUNCTION``, model -> metric, larger is better; None where no data choose.
        links: (source pattern, base pattern); None where the layers are found.
        settings: further arguments of `assemble`, those of its options among them.
    """

    base: _Side
    sources: tuple[_Side, ...]
    evaluate: str | None
    links: tuple[tuple[str, str], ...] | None
    settings: RecipeSettings

    def facts(self, output: Path) -> dict[str, Any]:
        """What would be read, executed and written."""
        sides = (self.base, *self.sources)
        models = [find_model(side.named.model) for side in sides]
        files = [str(each.path) for each in models if each.library == "file"]
        files += [self.evaluate.rpartition(":")[0]] if self.evaluate else []
        return {
            "dry_run": True,
            "base": str(models[0]),
            "sources": [name for side in self.sources for name in side.names()],
            "executes": list(dict.fromkeys(files)),
            "settings": self.settings.to_dict(),
            "writes": [str(output / name) for name in FILES],
        }

    def run(self, output: Path, *, resume: bool = False, jobs: int = 1) -> Assembly:
        """Assemble, and write the folder.

        Raises:
            GraftError: a model, a checkpoint or the metric is not what the file says.
        """
        from .assembling import assemble

        metric = None if self.evaluate is None else function(self.evaluate)
        base = self.base.load()
        assembly = assemble(
            base.model,
            [entry for side in self.sources for entry in side.entries()],
            args=base.args,
            kwargs=base.kwargs,
            mapping=self.links,
            evaluate=metric,
            jobs=jobs,
            log=output,
            resume=resume,
            **self.settings.keywords(),
        )
        assembly.save(output)
        return assembly


def read(path: Path) -> Recipe:
    """Read a file; nothing is executed.

    Raises:
        AssemblyError: it cannot be read, is malformed, or names files that are not there; all at once.
        ModelNameError: a model's name is none.
    """
    content = read_yaml(
        path,
        _File,
        what="recipe",
        error=AssemblyError,
        fix="see graftlib assemble --help for an example",
    )
    reader = _Reader(path.parent)
    recipe = reader.recipe(content)
    if reader.wrong:
        raise AssemblyError(
            f"the recipe {named(path)} names what is not there.",
            where=reader.wrong,
            fix="see graftlib assemble --help for an example",
        )
    for side in (recipe.base, *recipe.sources):
        find_model(side.named.model)
    if recipe.evaluate is not None:
        find_function(recipe.evaluate)
    return recipe


def find_function(name: str) -> tuple[Path, str]:
    """The file and the name in ``FILE.py:FUNCTION``; the file is read and not executed.

    Raises:
        ModelNameError: there is none.
        AssemblyError: it is the name of a model.
    """
    place = find_model(name)
    if place.library != "file" or place.path is None:
        raise AssemblyError(f"{shown(name)} is no FILE.py:FUNCTION.")
    return place.path, place.rest


def function(name: str) -> Callable[[nn.Module], float]:
    """The function that ``FILE.py:FUNCTION`` names; the file is executed.

    Raises:
        ModelNameError: there is none.
    """
    from graftlib.cli.models import execute

    file, attribute = find_function(name)
    metric: Callable[[nn.Module], float] = getattr(execute(file), attribute)
    if not callable(metric):
        raise AssemblyError(
            f"{shown(name)} cannot be called.", fix="name a function: model -> metric"
        )
    return metric


class _Reader:
    """Makes paths absolute and looks for every file that is named; gathers all that is wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wrong: dict[str, object] = {}

    def recipe(self, content: _File) -> Recipe:
        evaluate = None if content.evaluate is None else self._python(content.evaluate)
        return Recipe(
            self._side(content.base, "base"),
            tuple(self._side(each, f"sources[{i}]") for i, each in enumerate(content.sources)),
            evaluate,
            None if content.links is None else tuple(content.links),
            content.settings or RecipeSettings(),
        )

    def _side(self, model: _Base, where: str) -> _Side:
        weights = self._path(model.weights, f"{where}.weights")
        folder = self._path(getattr(model, "folder", None), f"{where}.folder")
        if weights and folder:
            self.wrong[where] = "has weights and a folder: name one of them"
        if folder and not sorted(folder.glob("*.safetensors")):
            self.wrong[f"{where}.folder"] = f"{named(folder)} holds no *.safetensors"
        if not (weights or folder) and model.model.partition(":")[0] in ("torchvision", "timm"):
            self.wrong[f"{where}.weights"] = "is missing: this model would be random"
        name = Named(self._python(model.model), self._shapes(model, where))
        return _Side(name, weights, folder, model.name)

    def _python(self, name: str) -> str:
        """FILE.py:NAME and hf:FOLDER with the path made absolute; other names as they are."""
        file, colon, rest = name.rpartition(":")
        if colon and file.endswith(".py"):
            return f"{self.folder / file}:{rest}"
        if name.startswith("hf:"):
            return f"hf:{self.folder / Path(rest).expanduser()}"
        return name

    def _path(self, value: str | None, where: str) -> Path | None:
        if value is None:
            return None
        path = self.folder / value
        try:
            there = path.exists()
        except (OSError, ValueError):  # too long, or a NUL in it
            there = False
        if not there:
            self.wrong[where] = f"{named(path)} is not there"
        return path if there else None

    def _shapes(self, model: _Base, where: str) -> tuple[tuple[int, ...], ...]:
        shapes = model.input if isinstance(model.input, tuple) else (model.input,)
        try:
            return tuple(parse_shape(str(shape)) for shape in shapes)
        except ValueError as error:
            self.wrong[f"{where}.input"] = str(error)
            return ()
