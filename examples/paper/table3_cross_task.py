"""Table 3: a model that answers questions and one that classifies reviews write each other, in rhythms of their own.

    python -m examples.paper.table3_cross_task                                     # smoke: a stand-in, seconds
    python -m examples.paper.table3_cross_task --scale small --root DIR --models DIR --out table3.json
    python -m examples.paper.table3_cross_task --scale paper                       # BERT, DistilBERT, GPU; not run yet

A round is two batches of questions (QA) and one of reviews (S); a transfer before every round is the paper's T_cycle:
1 for sentiment, 2 for the other. Where only one of the two learns, the other was trained before, and is frozen.
"""

from __future__ import annotations

from dataclasses import replace

from .experiment import Arm, Experiment, Graft, Setup, controls
from .harness import main
from .texts import question_network, sentiment_network, text_rounds, value

EM, F1, RIGHT = "QA EM", "QA F1", "S accuracy"


def experiment(setup: Setup) -> Experiment:
    asking, judging = value(setup, "L", 1.0), value(setup, "S", 1.0)
    onto_sentiment = Graft("QA", "S", ((asking, judging),), cycle=1, options={"heads": 12})
    onto_asker = Graft("S", "QA", ((judging, asking),), cycle=2, options={"heads": 12})
    both = replace(onto_sentiment, direction="both")
    arms = [
        Arm("plain", ("QA", "S"), paper={EM: 70.17, F1: 73.06, RIGHT: 100 - 8.02}),
        *controls(
            Arm("MergeNet QA↔S", ("QA", "S"), both, paper={EM: 71.89, F1: 75.43, RIGHT: 100 - 7.5}),
            frozen=False,
        ),
        *controls(Arm("MergeNet QA→S", ("S",), onto_sentiment)),
        *controls(Arm("MergeNet S→QA", ("QA",), onto_asker)),
    ]
    return Experiment(
        "table3_cross_task",
        {"QA": question_network(setup, per_round=2), "S": sentiment_network(setup)},
        tuple(arms),
        text_rounds(setup),
        of_paper="BERT-base on SQuAD v2, DistilBERT on IMDb (its error of 8.02 and 7.5 as accuracy)",
        result=setup.scale != "smoke",
    )


if __name__ == "__main__":
    main(experiment, __doc__)
