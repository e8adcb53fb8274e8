"""Figure 3: how often a transfer should take place: T_cycle of 1, 2, 4, 8 and 16 steps.

    python -m examples.paper.fig3_cycle                                            # smoke: digits, seconds
    python -m examples.paper.fig3_cycle --scale small --root DIR --out fig3.json
    python -m examples.paper.fig3_cycle --scale paper --root DIR                   # CIFAR-100, a GPU; not run yet

Both models learn, as in table 1. The two ends of the sweep come with noise of the size of their transfers. The paper's
text gives two figures, of the self-learning ratios 0 and 1: a transfer at every step, and at every second.
"""

from __future__ import annotations

from .experiment import Arm, Experiment, Graft, Setup, controls
from .harness import main
from .images import BLOCKS, mobilenet_network, project, resnet_network, rounds_of

CYCLES = (1, 2, 4, 8, 16)
PAPER = {1: {"M top-1": 60.09}, 2: {"M top-1": 65.61}}


def experiment(setup: Setup) -> Experiment:
    links = (("fc", project(BLOCKS[setup.scale])),)
    arms = [Arm("plain", ("R", "M"), paper={"M top-1": 63.87, "R top-1": 68.11})]
    for cycle in CYCLES:
        graft = Graft("R", "M", links, direction="both", cycle=cycle)
        arm = Arm(f"T_cycle {cycle}", ("R", "M"), graft, paper=PAPER.get(cycle, {}))
        arms += controls(arm, frozen=False) if cycle in (CYCLES[0], CYCLES[-1]) else [arm]
    return Experiment(
        "fig3_cycle",
        {"R": resnet_network(setup), "M": mobilenet_network(setup)},
        tuple(arms),
        rounds_of(setup),
        of_paper="ResNet-50 and MobileNetV2 on CIFAR-100",
    )


if __name__ == "__main__":
    main(experiment, __doc__)
