"""The folder of an assembly: weights, what they are, where they come from.

The files come together or not at all; names of models and sources are untrusted text and stand escaped in the card.
"""

from __future__ import annotations

import json
import platform
import re
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from graftlib.disk import destination, make_folder, place_all, unwritable
from graftlib.errors import shown

from .errors import AssemblyError
from .plan import Plan, Step

__all__ = ["card", "config", "report", "weights", "write"]

_LIBRARIES = ("torch", "safetensors", "scipy", "graftlib")
_MARKUP = re.compile(r"[\\`*_{}\[\]()<>#+!|~&$@:/-]")


def write(folder: str | Path, model: nn.Module, plan: Plan) -> Path:
    """Write `FILES` into `folder`, which is made where it is missing.

    The card goes first and comes last, and so do all files that describe the weights: a folder with a card is whole,
    and after a kill at any point no file in it describes another's weights.

    Raises:
        AssemblyError: the folder cannot be written, or a tensor has a name that no file can hold.
    """
    contents = {
        "model.safetensors": weights(model),
        "config.json": _json(config(model)).encode(),
        "plan.json": plan.text.encode(),
        "report.json": _json(report(plan)).encode(),
        "README.md": card(plan).encode("utf-8", "backslashreplace"),
    }
    folder = make_folder(folder, error=AssemblyError)
    places = {name: destination(folder / name, error=AssemblyError) for name in contents}
    described = [name for name in contents if name not in ("model.safetensors", "plan.json")]
    moves: list[tuple[bytes | None, Path]] = [(None, places[name]) for name in reversed(described)]
    moves += [(content, places[name]) for name, content in contents.items()]
    try:
        place_all(moves)
    except OSError as refusal:
        raise unwritable(folder, refusal, AssemblyError) from refusal
    return folder


def config(model: nn.Module) -> dict[str, Any]:
    """The class and the tensors; with the model's own `config` where it has one that is plain."""
    state = model.state_dict()
    facts: dict[str, Any] = {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": {
            name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
            for name, t in state.items()
        },
    }
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if callable(to_dict):
        facts["config"] = to_dict()
    return facts


def report(plan: Plan) -> dict[str, Any]:
    """What happened, in figures."""
    steps = [{k: v for k, v in step.to_json().items() if k != "reads"} for step in plan.steps]
    return {
        "base": plan.base,
        "settings": dict(plan.settings),
        "sources_seen": len(plan.steps),
        "sources_merged": len(plan.accepted),
        "metric_before": next((s.before for s in plan.steps if s.before is not None), None),
        "metric_after": next((s.after for s in reversed(plan.accepted)), None),
        "stopped": plan.stopped,
        "steps": steps,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def card(plan: Plan) -> str:
    """The model card in Markdown; the head is YAML that model hubs read."""
    lines = [
        "---",
        "tags: [merge, graftlib]",
        "---",
        "",
        f"# {_plain(plan.base)}, assembled from {len(plan.accepted)} sources",
        "",
        "Layers of the sources below were aligned to the base by generalized permutations and merged into it, without "
        "training, by [graftlib](https://arxiv.org/abs/2503.21657). The architecture is the base's.",
        "",
        f"Base: {_plain(plan.base)}, SHA-256 of its tensors `{_hex(plan.fingerprint)}`. "
        f"Chosen by: {_plain(str(plan.settings.get('chosen_by', 'unknown')))}.",
        "",
        "| step | source | SHA-256 | factor | modules | metric before | after |",
        "|---|---|---|---|---|---|---|",
        *(_row(i, step) for i, step in enumerate(plan.accepted, 1)),
        "",
        f"{len(plan.steps) - len(plan.accepted)} further sources were looked at and refused; `plan.json` says why. "
        "The metric is the one that the steps were chosen by, so it is not a test of the result.",
        "",
        "## To do it again",
        "",
        "```python",
        "from graftlib_adapters.assembly import replay",
        "",
        'again = replay("plan.json", base, sources, args=example)  # the same bits',
        "```",
        "",
    ]
    return "\n".join(lines)


def _row(number: int, step: Step) -> str:
    modules = "all that are paired" if step.layers is None else str(len(step.layers))
    metrics = ("" if each is None else f"{each:.6g}" for each in (step.before, step.after))
    digest = f"`{_hex(step.fingerprint)[:16]}`"
    cells = (str(number), _plain(step.source), digest, f"{step.factor:g}", modules, *metrics)
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Untrusted text as Markdown shows it to the letter: no line break, no markup, no control character."""
    short = text if len(text) <= 120 else text[:119] + "…"
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", shown)


def _hex(text: str) -> str:
    """A fingerprint; what is none shows as such."""
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else "unknown"


def weights(model: nn.Module) -> bytes:
    """The state dict as safetensors, tied tensors once.

    Raises:
        AssemblyError: a tensor has a name that no file can hold.
    """
    tensors = _untied(model)
    for name in tensors:
        if name.encode("utf-8", "replace").decode() != name:
            raise AssemblyError(
                f"the tensor {shown(name)} cannot be saved.",
                why="its name holds half of a letter (a lone surrogate), which no file can hold",
                fix="give its module another name",
            )
    return save(tensors, metadata={"format": "pt"})


def _untied(model: nn.Module) -> dict[str, Tensor]:
    """Each tensor once, under its first name; contiguous, in memory of its own."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return tensors


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _json(record: Any) -> str:
    return json.dumps(record, indent=1, ensure_ascii=True, default=str) + "\n"
