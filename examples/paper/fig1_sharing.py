"""Figure 1: plain parameter sharing between two unlike models, beside MergeNet on the same links.

    python -m examples.paper.fig1_sharing                                          # smoke: digits, seconds
    python -m examples.paper.fig1_sharing --scale small --root DIR --out fig1.json
    python -m examples.paper.fig1_sharing --scale paper --root DIR                 # CIFAR-100, a GPU; not run yet

Sharing makes the overlapping leading block of two matrices one value, averaged at each transfer.
"""

from __future__ import annotations

from dataclasses import replace

from .experiment import Arm, Experiment, Graft, Setup, controls
from .harness import main
from .images import BLOCKS, mobilenet_network, project, resnet_network, rounds_of


def experiment(setup: Setup) -> Experiment:
    both = Graft("R", "M", (("fc", project(BLOCKS[setup.scale])),), direction="both", cycle=4)
    sharing = replace(both, method="sharing")
    arms = [
        Arm("plain", ("R", "M"), paper={"M top-1": 63.87, "R top-1": 68.11}),
        *controls(Arm("parameter sharing R↔M", ("R", "M"), sharing), frozen=False),
        *controls(Arm("parameter sharing R→M", ("M",), replace(sharing, direction="forward"))),
        *controls(
            Arm("MergeNet R↔M", ("R", "M"), both, paper={"M top-1": 66.51, "R top-1": 69.84}),
            frozen=False,
        ),
    ]
    return Experiment(
        "fig1_sharing",
        {"R": resnet_network(setup), "M": mobilenet_network(setup)},
        tuple(arms),
        rounds_of(setup),
        of_paper="ResNet-50 and MobileNetV2 on CIFAR-100; the figure gives sharing no number",
    )


if __name__ == "__main__":
    main(experiment, __doc__)
