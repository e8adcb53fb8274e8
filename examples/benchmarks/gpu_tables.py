"""The sections of docs/measurements.md that come from a GPU, from the report of `examples/paper/on_gpu.py`.

In: the report. Out: Markdown. Always true: which differences are said to leave zero out is read off their intervals.
"""

from __future__ import annotations

from ..common.markdown import paragraph, signed, table

__all__ = ["carried", "gpu", "unequal", "wins"]

CYCLE = 4  # steps between transfers, in both scripts
DATASETS = {"cifar10": "CIFAR-10", "fashion-mnist": "Fashion-MNIST"}
REGIMES = {
    "adamw": "AdamW 1e-2 on a cosine",
    "sgd": "SGD 0.1, momentum 0.9, a fifth of the rate at 30, 60 and 80 %",
}


def gpu(report: dict) -> str:
    """Checks, costs and every table 1 that was run."""
    checks = report["checks"]
    passed = sum(check["passed"] for check in checks)
    arguments = list(report["command"])
    if "--out" in arguments:
        arguments[arguments.index("--out") + 1] = "docs/benchmarks/on_gpu.json"
    tables = [_table1(one, report) for one in report["table1"]]
    about = paragraph(
        f"""One run on one {report["device"]} with torch {report["versions"]["torch"]}, an older torch than the
        package asks for. {passed} of {len(checks)} checks passed: every way to train with a graft, random states,
        GradScaler, compiled and captured steps, a resumed run (`examples/paper/device_checks.py`). Of this
        document only this section and the next were measured on CUDA."""
    )
    body = "\n".join([_cost(report["cost"]), *tables])
    return f"""## On a GPU

{about}

    python -m examples.paper.on_gpu --make-data .gpu/images.npz --root DIR
    python -m examples.paper.on_gpu {" ".join(arguments)}

{body}"""


def _cost(variants: list[dict]) -> str:
    rows, added, waits = [], [], []
    for one in variants:
        plain, ratio = 1000 * one["plain_seconds_per_step"], one["ratio"]
        low, high = one["quartiles"]
        # Two steps belong to a transfer: the one that ends in its write, and the one that it learns from.
        transfers = (one["plain_steps_outside"] - one["grafted_steps_outside"]) / 2
        added.append(CYCLE * (ratio - 1) * plain)
        waits.append(one["grafted_waits"] / transfers)
        peaks = [one[f"{arm}_peak_bytes"] / 2**20 for arm in ("plain", "grafted")]
        rows.append(
            [
                one["variant"],
                f"{plain:.1f} ms",
                f"{ratio:.2f}x",
                f"{low:.2f} to {high:.2f}",
                f"{added[-1]:.0f} ms",
                f"{waits[-1]:.0f}",
                str(one["grafted_waits_outside"]),
                f"{peaks[1] - peaks[0]:+.1f} MiB of {peaks[0]:.1f}",
            ]
        )
    settings, elsewhere = variants[0]["settings"], sum(v["grafted_waits_outside"] for v in variants)
    head = ["step", "plain", "grafted", "quartiles", "a transfer adds", "its waits", "other waits"]
    about = paragraph(
        f"""MobileNetV2 with 100 classes, batch {settings["batch"]}, {settings["size"]} x {settings["size"]}, fused
        AdamW, one link from a frozen ResNet-50's classifier to a 1x1 convolution, a transfer every fourth step. Ratios
        to the plain step, amortised over a cycle, within a round; median and quartiles of {settings["rounds"]} rounds
        of {settings["cycles"]} cycles. A transfer with its update adds {min(added):.0f} to {max(added):.0f} ms, however
        fast the step is, and has the host wait for the device {min(waits):.0f} to {max(waits):.0f} times; steps
        without one add {elsewhere} waits. By its ratio a grafted step is dearer here than on the CPU above (with
        smaller images); a longer cycle shares that out over more steps. Memory is what is allocated at most during a
        cycle, what captured graphs hold for themselves left out."""
    )
    return f"""### What a step costs on a GPU

{about}

{table([*head, "peak memory"], rows)}
"""


def _table1(one: dict, report: dict) -> str:
    data, differences = one["data"], one["differences"]
    rows = []
    for name, row in one["rows"].items():
        gap, behind = differences.get(f"{name} - plain"), differences.get(f"paper - {name}")
        rows.append(
            [
                name,
                f"{row['top-1']:.2f} ± {row['sd']:.2f}",
                signed(gap["top-1"]) if gap else "",
                signed(behind["top-1"]) if behind and name != "plain" else "",
                f"{row['loss']:.3f}",
                signed(gap["loss"], 3) if gap else "",
                "" if row["row norm"] is None else f"{row['row norm']:.1f}",
            ]
        )
    n = min(row["n"] for row in one["rows"].values())
    clear = unequal(differences)
    of_paper = [name for name in differences if name.startswith("paper - ")]
    wins = all(name in clear and differences[name]["top-1"][1] > 0 for name in of_paper)
    said = "; ".join(f"{name} {signed(differences[name]['top-1'])}" for name in clear) or "none"
    dataset, epochs = DATASETS[data["dataset"]], f"{one['epochs']:.0f} epochs"
    about = paragraph(
        f"""The authors' form with its dropout, their MobileNetV2 (default initialisation) as the target, a ResNet-50
        that trains beside it as the source (and, trained, as the teacher of `kd`), their crops, flips and rotations, a
        transfer every fourth step. Controls: a source of noise with the trained one's moments, the norm reset alone,
        the adapter frozen at its start (`dropout only`), the linked layer frozen. {dataset}, {data["train"]:,} images
        to learn from, {data["held out"]:,} held out; {REGIMES[data["regime"]]}; {one["steps"]} steps ({one["epochs"]}
        epochs), n = {n} seeds, bfloat16, {report["device"]}, torch {report["versions"]["torch"]}. Top-1 in per cent
        after the last step, mean ± standard deviation; paired differences in points, of the held-out loss in nats,
        with their 95 % intervals. Every setting of a seed sees the same batches from the same initial weights. The row
        norm is that of the written layer at the end."""
    )
    result = paragraph(
        f"""**Does the paper's form beat plain training and every control? {"Yes" if wins else "Not shown"}.** Of
        {len(differences)} differences in accuracy, not corrected for their number, these leave zero out: {said}. Of the
        others nothing is claimed: {n} seeds cannot tell an effect of less than half an interval's width from none. The
        source ends at {one["rows"]["source"]["top-1"]:.1f} %, the plain target at
        {one["rows"]["plain"]["top-1"]:.1f} %. The paper trains for 200 epochs on CIFAR-100, which has not been run."""
    )
    head = ["setting", "top-1", "minus plain", "paper minus it", "loss", "minus plain", "row norm"]
    return f"""### Table 1 in the paper's setting, on a GPU: {dataset}, {epochs}

{about}

{table(head, rows)}

{result}
"""


CONTROLS = {
    "pull": (
        "pull, untrained source",
        "pull, each layer in an order of its own",
        "noise of the pull's angle",
    ),
    "slow weights": ("half of the learning rate", "noise of the slow weights' angle"),
    "netaug": ("plain, twice the steps",),
    "mergenet": ("mergenet, untrained source",),
}
"""Of `examples/paper/carry.py`: what a graft must beat beside plain training, in as many steps or for its compute."""


def carried(report: dict) -> str:
    """Which grafts carry knowledge, on each data set."""
    tables = report["carry"]
    first = tables[0]
    n = max(row["n"] for one in tables for row in one["rows"].values())
    took = first["seconds a step"]
    transfer = took["pull"] / took["plain"]
    about = paragraph(
        f"""A ResNet of one basic block a stage, 8 channels in the first, from fresh weights; as the source one of twice
        its width (where the row says so, of its own), with another seed and twice the steps, frozen, a new one for each
        seed. `AlignedPull` links every convolution and the classifier, transfers before every step and ends after a
        tenth of training; MergeNet links one convolution of the last stage, a transfer every fourth step. NetAug's
        wider network is the target's own widened copy of twice the width; slow weights follow every fifth step, half of
        the way. {first["data"]["train"]:,} images to learn from, {first["data"]["held out"]:,} held out;
        {REGIMES["sgd"]}; crops, flips and rotations; {first["steps"]} steps ({first["epochs"]} epochs), n = {n} seeds,
        bfloat16, {report["device"]}, torch {report["versions"]["torch"]}. Top-1 in per cent after the last step, mean ±
        standard deviation, and paired differences in points, of the held-out loss in nats, with their 95 % intervals,
        not corrected for their number. Every setting of a seed sees the same batches from the same initial weights, but
        for the longer runs. The settings were written down before the first run."""
    )
    cost = paragraph(
        f"""With 13 links and many small runs beside each other on one device a step that a pull precedes took
        {transfer:.1f} plain ones, which a tenth of training makes {0.9 + 0.1 * transfer:.2f}: a transfer is a few
        hundred kernels, however small the network."""
    )
    return f"""## Which grafts carry knowledge

{about}

    python -m examples.paper.on_gpu {" ".join(report["command"])}

{"".join(_carried(one) for one in tables)}{cost}
"""


def _carried(one: dict) -> str:
    rows, differences = [], one["differences"]
    most = max(row["n"] for row in one["rows"].values())
    for name, row in one["rows"].items():
        gap = differences.get(f"{name} - plain")
        score = f"{row['top-1']:.2f} ± {row['sd']:.2f}"
        named = name if row["n"] == most else f"{name} (n = {row['n']})"
        rows.append([named, score, signed(gap["top-1"]) if gap else "", f"{row['loss']:.3f}"])
    between = [
        [name, signed(gap["top-1"]), signed(gap["loss"], 3)]
        for name, gap in differences.items()
        if not name.endswith(" - plain")
    ]
    won = ", ".join(f"`{name}`" for name in CONTROLS if wins(name, differences)) or "none"
    return f"""### {DATASETS[one["data"]["dataset"]]}

{table(["setting", "top-1", "minus plain", "loss"], rows)}

{table(["difference", "top-1", "loss"], between)}

**Above plain training and above every control of its own, with intervals that leave zero out: {won}.**

"""


def wins(name: str, differences: dict) -> bool:
    """Whether a graft beats plain training and every control of its own."""
    against = [differences.get(f"{name} - {other}") for other in ("plain", *CONTROLS[name])]
    return all(gap and gap["top-1"][1] is not None and gap["top-1"][1] > 0 for gap in against)


def unequal(differences: dict, metric: str = "top-1") -> list[str]:
    """Those whose interval leaves zero out."""
    return [
        name
        for name, one in differences.items()
        if None not in one[metric] and (one[metric][1] > 0 or one[metric][2] < 0)
    ]
