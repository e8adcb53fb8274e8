"""The sections of docs/measurements about the paper's experiments, from the reports of `examples/paper`.

In: a function that reads a report of docs/benchmarks. Out: Markdown. Always true: what a section says of its gains is
counted from the intervals of its report.
"""

from __future__ import annotations

from collections.abc import Callable

from ..common.markdown import paragraph, signed, table

__all__ = ["experiments", "gains"]

Read = Callable[[str], dict | None]
CONTROLS = ("random source", "shuffled source", "source at initialisation", "equal-norm noise")
SECTIONS = {
    "paper_table1_cifar10": (
        "table1_cross_structure",
        "Table 1, across structures: CIFAR-10, eight epochs",
    ),
    "paper_table1_fashion": (
        "table1_cross_structure",
        "Table 1, across structures: Fashion-MNIST, four epochs",
    ),
    "paper_table2": ("table2_cross_modal", "Table 2, across modalities"),
    "paper_table3": ("table3_cross_task", "Table 3, across tasks"),
    "paper_table4": ("table4_challenging", "Table 4, across all three"),
    "paper_table5": ("table5_self", "Table 5, from a model to itself"),
    "paper_table6": ("table6_layers", "Table 6, across layers"),
    "paper_table7": ("table7_ablation", "Table 7, parts of the method"),
    "paper_fig1": ("fig1_sharing", "Figure 1, plain sharing"),
    "paper_fig3": ("fig3_cycle", "Figure 3, how often"),
    "paper_common_ancestor": (
        "common_ancestor",
        "A positive control: with a common ancestor, and without",
    ),
}
EARLIER = {"paper_table6"}
"""Reports from before the adapter normalised the attention's output."""
EARLIER_SAID = " Of an earlier adapter, which hardly read its source."
HEAD = """Each is a file of `examples/paper`, on real data at the size of a laptop, with the controls that the paper
lacks. Seed by seed all arms share initial weights and batches. Some trainings are shorter than their
scale's own, for all arms alike: the commands say how long; some rows were left out (`--arms`). *Its hardest
control* is the least favourable of a source of noise, of shuffled or untrained weights, and noise of the
transfers' size. **A gain counts only where both intervals (95 %, paired) lie above zero.** Two or three
seeds show only that an effect is not large."""


def experiments(read: Read) -> list[str]:
    """Every section whose report is there."""
    parts = [HEAD]
    parts += [_section(name, *SECTIONS[name], found) for name in SECTIONS if (found := read(name))]
    if found := read("paper_downhill"):
        parts.append(_downhill(found))
    if found := read("paper_search"):
        parts.append(_search(found))
    return parts


def gains(found: dict) -> list[tuple[str, str]]:
    """(arm, metric) of the grafts that beat plain training, what else they name, and every control that was run."""
    return [
        (arm, metric)
        for metric, rows in found["metrics"].items()
        for arm, row in rows.items()
        if _controls(arm, row)
        and all(value[1] > 0 for key, value in row.items() if key.startswith("minus "))
    ]


def _controls(arm: str, row: dict) -> dict[str, list[float]]:
    return {key.rpartition(", ")[2]: row[key] for key in row if key.startswith(f"minus {arm}, ")}


def _section(name: str, script: str, title: str, found: dict) -> str:
    rows, plain = [], []
    for metric, arms in found["metrics"].items():
        base = arms.get("plain", {})
        if base:
            plain.append(f"{metric} {base['mean']:.2f} ± {base['sd']:.2f}")
        for arm, row in arms.items():
            if arm == "plain" or arm.rpartition(", ")[2] in CONTROLS:
                continue
            controls = _controls(arm, row)
            hardest = min(controls, key=lambda control: controls[control][0], default=None)
            gaps = [
                signed(row[key]) if key == "minus plain" else f"to {key[6:]} {signed(row[key])}"
                for key in row
                if key.startswith("minus ") and not key.startswith(f"minus {arm}, ")
            ]
            papers = (row.get("paper"), base.get("paper"))
            rows.append(
                [
                    arm,
                    metric,
                    f"{row['mean']:.2f}",
                    "; ".join(gaps),
                    f"{signed(controls[hardest])} {hardest}" if hardest else "",
                    f"{papers[0] - papers[1]:+.2f}" if None not in papers else "",
                ]
            )
    head = ["arm", "metric", "%", "minus plain", "minus its hardest control", "the paper's gain"]
    about = "; ".join(dict.fromkeys(data["about"] for data in found["data"].values()))
    sources = ", ".join(
        f"{source} ({', '.join(f'{metric} {score:.1f}' for metric, score in scores.items())})"
        for source, scores in found["givers"].items()
    )
    winners = [f"{arm} ({metric})" for arm, metric in gains(found)]
    flags = f"--scale small --root DIR --rounds {found['settings']['rounds']} --seeds {len(found['seeds'])}"
    flags += " --data fashion-mnist" if "fashion" in name else ""
    about = paragraph(
        f"""{about}. {len(found["seeds"])} seeds. Plain training: {", ".join(plain)}. Frozen sources:
        {sources or "none"}. Grafts that beat plain training and every control:
        **{", ".join(winners) or "none"}**.{EARLIER_SAID * (name in EARLIER)}"""
    )
    return f"""## {title}

{about}

    python -m examples.paper.{script} {flags} --out docs/benchmarks/{name}.json

{table(head, rows)}
"""


def _downhill(found: dict) -> str:
    rows = [
        [start, kind, *(signed(phase, 3) for phase in phases)]
        for start, kinds in found["means"].items()
        for kind, phases in kinds.items()
    ]
    layers, steps, seeds = found["layers"], found["rounds"], len(found["seeds"])
    flags = f"--scale {found['scale']} --root DIR --rounds {steps} --seeds {seeds}"
    aligned = " and ".join(f"{n} ({k.partition(', ')[2]})" for k, n in layers.items() if ", " in k)
    about = paragraph(
        f"""The cosine of minus the gradient with the way from the weights of M to others, mean over steps and
        layers in each quarter of a training of {steps} steps, {seeds} seeds, CIFAR-10. M has {layers["of M"]}
        convolutions and linear layers, the aligned ResNet counterparts of {aligned}. A sibling had the same start
        and other batches. An adapter learns from these gradients alone."""
    )
    return f"""## Does the training loss lead to a source?

{about}

    python -m examples.paper.downhill {flags} --out docs/benchmarks/paper_downhill.json

{table(["start", "the way to", "first quarter", "second", "third", "last"], rows)}
"""


def _search(found: dict) -> str:
    parts = []
    for stage in found["rungs"]:
        rows = [
            [name, f"{row['mean']:.2f}", row["against"], signed(row["difference"])]
            for name, row in stage["settings"].items()
        ]
        others = {**stage["references"], **stage["random sources"]}
        beside = ", ".join(f"{name} {row['mean']:.2f}" for name, row in others.items())
        head = ["setting", "accuracy %", "adds a graft to", "minus that"]
        parts.append(
            f"**{stage['rounds']} steps, {len(stage['seeds'])} seeds** ({beside})\n\n{table(head, rows)}"
        )
    shares = found["rungs"][0]["share of a transfer that comes from the source"]
    rows = [
        [name, link, f"{100 * shares[0]:.0f} %"]
        for name, links in shares.items()
        for link, shares in links.items()
    ]
    body = "\n\n".join(parts)
    flags = f"--scale {found['scale']} --root DIR --stages {len(found['rungs'])}"
    about = paragraph(
        f"""S, a frozen ResNet with {found["givers"]["S"]["S top-1"]:.1f} %, gives; a MobileNetV2 receives. CIFAR-10,
        the last fifth of the training images held out, no test image read. The first rounds are short and of few
        seeds: only effects of several points could be seen there, and the best of {len(found["tried"])} is too good
        by chance. Left: **{found["left"]}**."""
    )
    return f"""## The search for a graft that helps

{about}

    python -m examples.paper.search {flags} --out docs/benchmarks/paper_search.json

{body}

How far a transfer's change moves when its source is exchanged for noise, in the first run of each (0: it does not
read it):

{table(["setting", "link", "share"], rows)}
"""
