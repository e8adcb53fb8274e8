"""Table 1: a ResNet's classifier writes a convolution of a MobileNetV2, one way and both ways, against distillation.

    python -m examples.paper.table1_cross_structure                                    # smoke: digits, seconds
    python -m examples.paper.table1_cross_structure --scale small --root DIR --out table1.json
    python -m examples.paper.table1_cross_structure --scale paper --root DIR           # CIFAR-100, a GPU; not run yet

M is the MobileNetV2, R the ResNet. A frozen R (or M, for the lower half) was trained once, with another seed, for as
long as the others; a co-trained one learns beside the target. S is a far stronger frozen source; the graft from it is
the one that `search.py` left, confirmed here on test images together with distillation from the same S and a start from
its weights.
"""

from __future__ import annotations

from dataclasses import replace

from .experiment import Arm, Distil, Experiment, Graft, Setup, Start, controls
from .harness import main
from .images import BLOCKS, mobilenet_network, project, resnet_network, rounds_of, strong_network
from .search import searched

M, R = "M top-1", "R top-1"
M_PAPER = {"kd": 64.32, "rkd": 65.48, "dkd": 65.23, "nkd": 65.09}
R_PAPER = {"kd": 68.36, "rkd": 68.60, "dkd": 69.03, "nkd": 69.27}


def experiment(setup: Setup) -> Experiment:
    links = (("fc", project(BLOCKS[setup.scale])),)
    onto_m = Graft("R", "M", links, cycle=4)
    onto_r = Graft("M", "R", tuple((target, source) for source, target in links), cycle=5)
    both = replace(onto_m, direction="both")
    paper_form = replace(onto_m, options={"init": "paper", "rank": None})
    arms = [
        Arm("plain", ("R", "M"), paper={M: 63.87, R: 68.11}),
        *controls(Arm("MergeNet R→M", ("M",), onto_m)),
        Arm("MergeNet R→M, R co-trained", ("R", "M"), onto_m, paper={M: 66.23}),
        *controls(Arm("MergeNet R↔M", ("R", "M"), both, paper={M: 66.51, R: 69.84}), frozen=False),
        *controls(Arm("MergeNet M→R", ("R",), onto_r)),
        Arm("MergeNet R→M, the authors' form", ("M",), paper_form),
    ]
    combined = Arm(
        "MergeNet R→M with kd", ("M",), onto_m, Distil("kd", "M", "R"), versus=("plain", "kd R→M")
    )
    arms += controls(combined)[:2]  # against the same without the graft, and with a source of noise
    for loss in M_PAPER:
        arms.append(
            Arm(f"{loss} R→M", ("M",), distil=Distil(loss, "M", "R"), paper={M: M_PAPER[loss]})
        )
        arms.append(
            Arm(f"{loss} M→R", ("R",), distil=Distil(loss, "R", "M"), paper={R: R_PAPER[loss]})
        )
        arms.append(Arm(f"{loss} S→M", ("M",), distil=Distil(loss, "M", "S")))
    arms.append(Arm("transplanted start", ("M",), start=Start("S", "M")))
    arms += [arm for arm in searched(setup) if arm.name not in {known.name for known in arms}]
    return Experiment(
        "table1_cross_structure",
        {"R": resnet_network(setup), "M": mobilenet_network(setup), "S": strong_network(setup)},
        tuple(arms),
        rounds_of(setup),
        of_paper="ResNet-50 and MobileNetV2 on CIFAR-100, 200 epochs",
    )


if __name__ == "__main__":
    main(experiment, __doc__)
