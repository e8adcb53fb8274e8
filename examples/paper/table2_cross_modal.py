"""Table 2: the vision encoder and the text encoder of one model write each other, for questions and for retrieval.

    python -m examples.paper.table2_cross_modal                                    # smoke: digits, seconds
    python -m examples.paper.table2_cross_modal --scale small --root DIR --out table2.json      # easy-vqa
    python -m examples.paper.table2_cross_modal --scale paper --root DIR           # VQA v2, MSCOCO, a GPU; not run yet

One model learns to answer questions and to match pictures with captions; the links are inside it. TR finds the caption
of a picture, IR a picture for a caption; equal captions are one.
"""

from __future__ import annotations

from dataclasses import replace

from .experiment import Arm, Experiment, Graft, Setup, controls
from .harness import main
from .vqa import FORM, two_encoder_network, vqa_rounds

VQA, TR, IR = "VQA accuracy", "TR@10", "IR@10"


def experiment(setup: Setup) -> Experiment:
    last = FORM[setup.scale]["layers"] - 1
    links = tuple((f"vision.{last}.{part}", f"text.{last}.{part}") for part in ("value", "feed.3"))
    to_text = Graft("V", "V", links, cycle=2, options={"heads": 12})
    to_vision = replace(to_text, links=tuple((text, vision) for vision, text in links))
    both = replace(to_text, direction="both")
    arms = [
        Arm("plain", ("V",), paper={VQA: 45.78, TR: 41.48, IR: 37.64}),
        *controls(Arm("MergeNet V→T", ("V",), to_text, paper={VQA: 46.33, TR: 44.72, IR: 39.00})),
        *controls(Arm("MergeNet T→V", ("V",), to_vision, paper={VQA: 45.96, TR: 44.58, IR: 38.93})),
        *controls(
            Arm("MergeNet V↔T", ("V",), both, paper={VQA: 46.51, TR: 44.78, IR: 39.26}),
            frozen=False,
        ),
    ]
    return Experiment(
        "table2_cross_modal",
        {"V": two_encoder_network(setup)},
        tuple(arms),
        vqa_rounds(setup),
        of_paper="X-VLM (small) on VQA v2 and MSCOCO, trained on a tenth; its retrieval is at 10",
    )


if __name__ == "__main__":
    main(experiment, __doc__)
