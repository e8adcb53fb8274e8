"""Table 6: which layer of a large encoder to which layer of a slim one, both answering questions.

    python -m examples.paper.table6_layers                                         # smoke: a stand-in, seconds
    python -m examples.paper.table6_layers --scale small --root DIR --models DIR --out table6.json
    python -m examples.paper.table6_layers --scale paper                           # BERT, DistilBERT, GPU; not run yet

L is the large one, trained before and frozen; S the slim one. 'half' is the layer in the middle, 'last' the last: 6 and
12 of BERT, 3 and 6 of DistilBERT; 3 and 6 of MiniLM-L6, 2 and 3 of MiniLM-L3.
"""

from __future__ import annotations

from .experiment import Arm, Experiment, Graft, Setup, controls
from .harness import main
from .texts import question_network, text_rounds, value

EM, F1 = "S EM", "S F1"
PAPER = {
    ("half", "half"): (57.69, 60.42),
    ("last", "half"): (54.77, 58.50),
    ("half", "last"): (64.89, 68.26),
    ("last", "last"): (66.98, 70.44),
}
DEPTH = {"half": 0.5, "last": 1.0}
TRAINED = {"smoke": 3, "small": 4, "paper": 12}


def experiment(setup: Setup) -> Experiment:
    arms = [Arm("plain", ("S",))]
    for (source, target), (em, f1) in PAPER.items():
        link = value(setup, "L", DEPTH[source]), value(setup, "S", DEPTH[target])
        graft = Graft("L", "S", (link,), cycle=2, options={"heads": 12})
        arm = Arm(f"L {source}→S {target}", ("S",), graft, paper={EM: em, F1: f1})
        arms += controls(arm) if (source, target) == ("last", "last") else [arm]
    networks = {
        "L": question_network(setup, "L", "L", trained=TRAINED[setup.scale]),
        "S": question_network(setup, "S", "S", per_round=2),
    }
    return Experiment(
        "table6_layers",
        networks,
        tuple(arms),
        text_rounds(setup),
        of_paper="BERT-base to DistilBERT on SQuAD v2; it gives no figure for DistilBERT alone",
        result=setup.scale != "smoke",
    )


if __name__ == "__main__":
    main(experiment, __doc__)
