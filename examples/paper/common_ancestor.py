"""When can a graft find its source? Source and target with a trained common ancestor, and with an untrained one.

    python -m examples.paper.common_ancestor                                       # smoke: digits, seconds
    python -m examples.paper.common_ancestor --scale small --root DIR --out common_ancestor.json

A ResNet (A) is trained for half of the time. From there F goes on for longer, on crops and flips, and is frozen. M, of
half the width, begins with A's largest units (`graftlib_adapters.assembly.transplant`) and sees other batches. F's
units are put in the order of M's, and every convolution and the classifier are linked to their like. The rows
'untrained' are the same with an A that was never trained: F and M then have nothing in common but where they began.

It is also the positive control of this folder. What is shared without being learned must gain from a trained source,
and lose that gain with a source of noise: otherwise none of the tables could find a gain.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import nn

from .experiment import Arm, Distil, Experiment, Graft, Network, Setup, Start, controls
from .harness import main
from .images import image_task, layers_of, resnet_network, rounds_of, stronger

WIDTH = {"smoke": 4, "small": 8}
"""Of M's first stage; A's is twice that."""


def experiment(setup: Setup) -> Experiment:
    if setup.scale not in WIDTH:
        raise SystemExit("the paper has no such experiment: --scale smoke or small")
    large, rounds = resnet_network(setup), rounds_of(setup)
    slim = partial(large.make.func, **{**large.make.keywords, "width": WIDTH[setup.scale]})
    networks = {"M": replace(large, make=slim, task=image_task(setup, "M"))}
    arms: list[Arm] = []
    for ancestor, future, trained in (("A", "F", rounds // 2), ("A0", "F0", 0)):
        networks[ancestor] = replace(large, source_rounds=trained)
        networks[future] = replace(stronger(setup, large), begins=ancestor)
        arms += _arms(setup, networks["M"], ancestor, future, "" if trained else "untrained: ")
    return Experiment(
        "common_ancestor", networks, tuple(arms), rounds, of_paper="none: the paper does not ask"
    )


def _arms(setup: Setup, M: Network, ancestor: str, future: str, prefix: str) -> list[Arm]:
    alike = tuple((name, name) for name in layers_of(M.make(), (nn.Conv2d, nn.Linear)))
    begun, plain = Start(ancestor, "M"), f"{prefix}plain"
    pull = Graft(future, "M", alike, method="pull", aligned=True, lr=1e-2)
    mergenet = Graft(future, "M", alike, aligned=True, options={"trust": 0.05})
    shared = Graft(future, "M", alike, method="sharing", aligned=True, cycle=1, stop=0.1)

    def arm(name: str, graft: Graft) -> list[Arm]:
        made = controls(Arm(prefix + name, ("M",), graft, start=begun, versus=(plain,)))
        return [made[0], made[1], made[-1]]  # itself, a source of noise, noise of its size

    return [
        Arm(plain, ("M",), start=begun),
        *arm("pull", pull),
        *arm("MergeNet, trust 0.05", mergenet),
        *arm("shared until 10 %", shared),
        Arm(f"{prefix}kd", ("M",), distil=Distil("kd", "M", future), start=begun, versus=(plain,)),
        Arm(f"{prefix}from the end of F", ("M",), start=Start(future, "M"), versus=(plain,)),
    ]


if __name__ == "__main__":
    main(experiment, __doc__)
