"""Table 5: a MobileNetV2's classifier writes one of its own inverted residual blocks, at four depths.

    python -m examples.paper.table5_self                                           # smoke: digits, seconds
    python -m examples.paper.table5_self --scale small --root DIR --out table5.json
    python -m examples.paper.table5_self --scale paper --root DIR                  # CIFAR-100, a GPU; not run yet

The baselines are distillation without a teacher. For the controls the classifier of a trained, frozen copy takes the
place of the model's own: a model that reads its own spoiled classifier would be another model.
"""

from __future__ import annotations

from .experiment import Arm, Distil, Experiment, Graft, Setup, controls
from .harness import main
from .images import DEPTHS, mobilenet_network, project, rounds_of

M = "M top-1"
PAPER = (63.51, 64.02, 64.42, 66.48)


def experiment(setup: Setup) -> Experiment:
    arms = [Arm("plain", ("M",), paper={M: 63.87})]
    middle = {"feature": f"features.{DEPTHS[setup.scale][1]}"}
    for depth, figure in zip(DEPTHS[setup.scale], PAPER, strict=True):
        graft = Graft("M", "M", (("classifier.1", project(depth)),), cycle=4)
        arm = Arm(f"classifier→block {depth}", ("M",), graft, paper={M: figure})
        arms += controls(arm) if depth == DEPTHS[setup.scale][-1] else [arm]
    arms += [
        Arm("tf_kd", ("M",), distil=Distil("tf_kd", "M"), paper={M: 65.43}),
        Arm("uskd", ("M",), distil=Distil("uskd", "M", options=middle), paper={M: 65.66}),
    ]
    return Experiment(
        "table5_self",
        {"M": mobilenet_network(setup)},
        tuple(arms),
        rounds_of(setup),
        of_paper="MobileNetV2 on CIFAR-100, blocks 4, 8, 12 and 16 of 17",
    )


if __name__ == "__main__":
    main(experiment, __doc__)
