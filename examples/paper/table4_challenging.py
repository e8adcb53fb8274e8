"""Table 4: other structure, other modality, other task: an encoder's value matrix and an image classifier.

    python -m examples.paper.table4_challenging                                    # smoke: a stand-in, digits; seconds
    python -m examples.paper.table4_challenging --scale small --root DIR --models DIR --out table4.json
    python -m examples.paper.table4_challenging --scale paper --root DIR           # BERT, CIFAR-100, a GPU; not run yet

A round is one batch of questions (QA) and two of images (M); a transfer before every second batch of images.
"""

from __future__ import annotations

from dataclasses import replace

from .experiment import Arm, Experiment, Graft, Setup, controls
from .harness import main
from .images import mobilenet_network
from .texts import question_network, value

EM, F1, TOP1 = "QA EM", "QA F1", "M top-1"
ROUNDS = {"smoke": 6, "small": 120, "paper": 39_000}


def experiment(setup: Setup) -> Experiment:
    link = (value(setup, "L", 1.0), "classifier.1")
    onto_images = Graft("QA", "M", (link,), cycle=2, options={"heads": 12})
    onto_questions = Graft("M", "QA", (link[::-1],), cycle=1, options={"heads": 12})
    both = replace(onto_images, direction="both")
    arms = [
        Arm("plain", ("QA", "M"), paper={EM: 70.17, F1: 73.06, TOP1: 63.87}),
        *controls(
            Arm("MergeNet QA↔M", ("QA", "M"), both, paper={EM: 71.49, F1: 74.85, TOP1: 65.96}),
            frozen=False,
        ),
        *controls(Arm("MergeNet QA→M", ("M",), onto_images)),
        *controls(Arm("MergeNet M→QA", ("QA",), onto_questions)),
    ]
    images = replace(mobilenet_network(setup), per_round=2)
    return Experiment(
        "table4_challenging",
        {"QA": question_network(setup), "M": images},
        tuple(arms),
        ROUNDS[setup.scale],
        of_paper="BERT-base on SQuAD v2, MobileNetV2 on CIFAR-100",
        result=setup.scale != "smoke",
    )


if __name__ == "__main__":
    main(experiment, __doc__)
