"""A positive control: the source is the target's own future, so unit by unit it holds what the target will need.

    python examples/paper/own_future.py                                            # smoke: digits, seconds
    python examples/paper/own_future.py --scale small --root DIR --out own_future.json

A MobileNetV2 (F) is trained for longer, on crops and flips, and frozen; M begins with the weights that F began with and
sees other batches. Every convolution and the classifier are linked to themselves. What is written without being learned
(shared weights) must gain here and must lose its gain with a source of noise: otherwise the tables of this folder could
find no gain anywhere. What has to be learned from the training's own steps shows whether it can be.
"""

from __future__ import annotations

from experiment import Arm, Distil, Experiment, Graft, Setup, Start, controls
from harness import main
from images import layers_of, mobilenet_player, rounds_of, stronger
from torch import nn


def experiment(setup: Setup) -> Experiment:
    M = mobilenet_player(setup)
    alike = tuple((name, name) for name in layers_of(M.make(), (nn.Conv2d, nn.Linear)))
    begun = Start("F", "M", untrained=True)
    shared = Graft("F", "M", alike, method="sharing", cycle=1, stop=0.1)
    pull = Graft("F", "M", alike, method="pull", lr=1e-2)
    mergenet = Graft("F", "M", alike, options={"trust": 0.05})
    arms = [
        Arm("plain", ("M",), start=begun),
        *controls(Arm("shared until 10 %", ("M",), shared, start=begun)),
        *controls(Arm("pull", ("M",), pull, start=begun))[:2],
        *controls(Arm("MergeNet, trust 0.05", ("M",), mergenet, start=begun))[:2],
        Arm("kd", ("M",), distil=Distil("kd", "M", "F"), start=begun),
        Arm("from the end of F", ("M",), start=Start("F", "M")),
    ]
    return Experiment(
        "own_future",
        {"M": M, "F": stronger(setup, M)},
        tuple(arms),
        rounds_of(setup),
        of_paper="none: the paper has no positive control",
    )


if __name__ == "__main__":
    main(experiment, __doc__)
