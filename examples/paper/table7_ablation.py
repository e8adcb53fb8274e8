"""Table 7: what each part of MergeNet adds: an MLP instead of attention, rows only, averaged weights of the pairings.

    python -m examples.paper.table7_ablation                                       # smoke: digits, seconds
    python -m examples.paper.table7_ablation --scale small --root DIR --out table7.json
    python -m examples.paper.table7_ablation --scale paper --root DIR              # CIFAR-100, a GPU; not run yet

Both models learn, as in the lower rows of table 1, whose runs are shared where the cache is the same.
"""

from __future__ import annotations

from dataclasses import replace

from .experiment import Arm, Experiment, Graft, Setup, controls
from .harness import main
from .images import BLOCKS, mobilenet_network, project, resnet_network, rounds_of

M, R = "M top-1", "R top-1"


def experiment(setup: Setup) -> Experiment:
    full = Graft("R", "M", (("fc", project(BLOCKS[setup.scale])),), direction="both", cycle=4)
    variants = {
        "MLP adapter": (replace(full, method="mlp"), {M: 64.69, R: 68.53}),
        "rows only": (replace(full, options={"pairings": ("rr",)}), {M: 65.76, R: 69.38}),
        "averaged ω": (replace(full, options={"omega": "mean"}), {M: 66.02, R: 69.66}),
    }
    arms = [
        Arm("plain", ("R", "M"), paper={M: 63.87, R: 68.11}),
        *controls(Arm("MergeNet R↔M", ("R", "M"), full, paper={M: 66.51, R: 69.84}), frozen=False),
    ]
    for name, (graft, figures) in variants.items():
        arms.append(Arm(name, ("R", "M"), graft, versus=("plain", "MergeNet R↔M"), paper=figures))
    return Experiment(
        "table7_ablation",
        {"R": resnet_network(setup), "M": mobilenet_network(setup)},
        tuple(arms),
        rounds_of(setup),
        of_paper="ResNet-50 and MobileNetV2 on CIFAR-100",
    )


if __name__ == "__main__":
    main(experiment, __doc__)
