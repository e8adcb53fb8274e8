"""What comes after training: the slim file with its proof, the page, the links as data.

In: a finished `Run` and a folder. Out: files in it, and what was proven.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from graftlib import export_onnx, view
from graftlib.export import ExportReport

from .data import Images
from .experiment import Run

__all__ = ["Shipped", "ship"]


@dataclass(frozen=True)
class Shipped:
    """What left the workshop.

    Attributes:
        export: the proof, with the cost of the slim file and of the source beside it.
        accuracy: of the ONNX file itself on all held-out images, 0.0 to 1.0.
    """

    export: ExportReport
    accuracy: float


def ship(run: Run, images: Images, folder: Path, *, measure: bool = True) -> Shipped:
    """Export the run's grafted target, draw its mapping, and save that as YAML.

    Args:
        run: a finished one.
        images: the example inputs, and what the file's own accuracy is counted on.
        folder: to write ``slim.onnx``, ``mapping.html`` and ``mapping.yaml`` into.
        measure: export the source too, for its size, and time both files (about 10 s).
    """
    example = (images.test_x[:2],)
    report = export_onnx(
        run.target.cpu().eval(),
        folder / "slim.onnx",
        example,
        source=run.source.cpu().eval() if measure else None,
        measure=measure,
        card=False,
        seed=run.seed,
    )
    view(run.mapping.source, run.mapping.target, run.mapping).save(folder / "mapping.html")
    run.mapping.save(folder / "mapping.yaml")
    return Shipped(report, _accuracy(folder / "slim.onnx", images))


def _accuracy(file: Path, images: Images) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    right = 0
    for x, y in zip(
        torch.split(images.test_x, 1000), torch.split(images.test_y, 1000), strict=True
    ):
        (logits,) = session.run(None, {name: x.numpy()})
        right += int((logits.argmax(1) == y.numpy()).sum())
    return right / len(images.test_y)
