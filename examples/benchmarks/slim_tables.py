"""The sections of docs/measurements.md that compare `slim` with Torch-Pruning.

In: the reports of `slim_peer.py`, `slim_peer_text.py`, `distil_text.py` and `slim_default.py`. Out: Markdown.
"""

from __future__ import annotations

import statistics
from typing import Any

from ..common.intervals import interval
from ..common.markdown import paragraph, signed, table

__all__ = ["distil_text", "slim_default", "slim_peer", "slim_peer_text"]

PEER = "peer "
HEADS = {
    "one-shot": "one-shot",
    "one-shot, statistics": "beside re-estimated norms",
}


def slim_peer(found: dict[str, Any]) -> str:
    """Image models: before any training, and after the same training."""
    parts = []
    for name, cell in found["tables"].items():
        task, _, share = name.rpartition(", ")
        kinds = _kinds(cell)
        best = [
            f"{_short(c['best'])} {c['rows'][c['best']]['mean']:.1f}" for c in map(cell.get, kinds)
        ]
        rows = [["*Torch-Pruning's best*", *best]]
        for setting in cell["one-shot"]["rows"]:
            if setting.startswith(PEER):
                continue
            cells = [cell[kind]["rows"].get(setting) for kind in kinds]
            shown = [f"{c['mean']:.1f}: {signed(c['minus best'], 1)}" if c else "" for c in cells]
            rows.append([setting, *shown])
        counts = ", ".join(f"{_head(k)} {cell[k]['rows']['magnitude']['n']}" for k in kinds)
        about = f"**{task}, {float(share):.0%} of the MACs**; original {cell['original']:.1f} %; seeds: {counts}"
        parts.append(f"{about}\n\n{table(['setting', *map(_head, kinds)], rows)}")
    tables = "\n\n".join(parts)
    return f"""## Slim beside Torch-Pruning

{_about(found)}

    pip install torch-pruning==1.6.1
    python -m examples.benchmarks.slim_peer --data .gpu/images.npz --out docs/benchmarks/slim_peer.json --minutes 6.4 \\
        --processes 10 --tasks "residual CNN, CIFAR-10" "vision transformer, CIFAR-10" "residual CNN, Fashion-MNIST" \\
        --settings "peer group-L2, local" "peer group-L2, global" "peer group-L2, isomorphic" "peer Taylor, local" \\
        "peer Taylor, global" "peer Taylor, isomorphic" magnitude

{tables}
"""


def _about(found: dict[str, Any]) -> str:
    before, after = (_above(found, kinds) for kinds in (("one-shot",), ("tuned",)))
    text = paragraph(
        f"""Accuracy in percent on held-out images, on one {found["device"]} that did other work, too. One trained
        original for each seed; both tools prune it to the same MACs with the same {found["calibration"]:,} training
        images; then all are trained on, on the same batches at the same rates. Torch-Pruning 1.6.1 in six forms
        (group-L2 and Taylor importance, with local, global and isomorphic ranking) and with the hints that its
        examples give. Its best of the six, by the mean over the seeds, is what graftlib is compared with: the
        difference and its paired 95 % interval, not corrected for their number. "Beside re-estimated norms" takes the
        statistics of its batch norms anew on the same images, which it does not do by itself."""
    )
    seconds, others = _seconds(found), _seconds(found, peer=True)
    result = paragraph(
        f"""**Before training graftlib is ahead in {before} comparisons with the interval above zero, after training in
        {after}.** The fit is what wins, and it is not free: {seconds} seconds against {others}. After training
        something of the better start is left on Fashion-MNIST, and on CIFAR-10 no difference can be told. These runs
        have `importance="magnitude"`, before data decided by default. Not measured, as the time on the device ended: a
        ResNet-56, the transformer after training, and other importances on these models. Once Torch-Pruning's global
        form took all heads of a layer, and the model ran no more; that run is left out."""
    )
    return f"{text}\n\n{result}"


def _above(found: dict[str, Any], kinds: tuple[str, ...]) -> str:
    """How many comparisons of fitted magnitudes have an interval above zero, of how many."""
    gaps = [
        cell[kind]["rows"]["magnitude"]["minus best"]
        for cell in found["tables"].values()
        for kind in _kinds(cell)
        if kind.startswith(kinds)
    ]
    return f"{sum(gap[1] > 0 for gap in gaps)} of {len(gaps)}"


def _kinds(cell: dict[str, Any]) -> list[str]:
    """What was measured; re-estimated norms count where there are some."""
    kinds = [kind for kind, each in cell.items() if kind != "original" and each["rows"]]
    if cell["one-shot"]["rows"] == cell["one-shot, statistics"]["rows"]:
        kinds.remove("one-shot, statistics")
    return kinds


def _seconds(found: dict[str, Any], *, peer: bool = False) -> str:
    """The range over models of the mean seconds of a prune."""
    means = [
        statistics.mean(
            row["seconds"] for name, row in rows.items() if name.startswith(PEER) is peer
        )
        for rows in (cell["one-shot"]["rows"] for cell in found["tables"].values())
    ]
    return f"{min(means):.0f} to {max(means):.0f}"


def _head(kind: str) -> str:
    return HEADS.get(kind, kind.replace("tuned at", "trained on at"))


def _short(name: str) -> str:
    return name.removeprefix(PEER)


def slim_peer_text(found: dict[str, Any]) -> str:
    """A sentence encoder, without training."""
    runs: dict[float, dict[str, dict[int, float]]] = {}
    for r in found["runs"]:
        runs.setdefault(r["share"], {}).setdefault(r["setting"], {})[r["seed"]] = r["cosine"]
    head, columns = ["setting"], []
    for share, each in runs.items():
        peers = [name for name in each if name.startswith(PEER)]
        seeds = sorted(set.intersection(*(set(own) for own in each.values())))
        best = max(peers, key=lambda name: statistics.mean(each[name][s] for s in seeds))
        head += [f"{share:.0%} of the MACs", f"minus {_short(best)}"]
        columns.append((each, seeds, best))
    rows = []
    for name in columns[0][0]:
        row = [name]
        for each, seeds, best in columns:
            if name not in each:
                row += ["", ""]
                continue
            gap = interval([each[name][s] - each[best][s] for s in seeds])
            row.append(f"{statistics.mean(each[name][s] for s in seeds):.3f}")
            row.append("" if name.startswith(PEER) else signed(gap, 3))
        rows.append(row)
    about = paragraph(
        f"""MiniLM-L6 without training: the mean cosine of sentence vectors to those of the whole model, on IMDb reviews
        that nobody saw, after both tools read the same {found["texts"]} reviews (draws of them: {len(columns[0][1])}).
        Heads and neurons go, the stream stays. Differences to Torch-Pruning's best form, with paired 95 % intervals."""
    )
    command = f"python -m examples.benchmarks.slim_peer_text --root DIR --texts {found['texts']}"
    return f"""### A sentence encoder

{about}

    {command} --out docs/benchmarks/slim_peer_text.json

{table(head, rows)}
"""


def distil_text(found: dict[str, Any]) -> str:
    """A sentence encoder with half of its layers, trained on."""
    rows = [
        [
            name,
            f"{row['cosine']:.3f}",
            f"{row['pairs']:.3f}",
            f"{row['probe']:.1f}",
            signed(row.get("minus shipped"), 1),
        ]
        for name, row in found["rows"].items()
    ]
    gone = ", ".join(f"`{name}`" for name in found["gone"])
    about = paragraph(
        f"""MiniLM-L6 without {gone}, trained towards the whole model on {found["pool"]:,} IMDb reviews of 64 tokens
        ({found["steps"]} steps of 32, without labels), beside the shipped MiniLM-L3, a paraphrase model that was not
        trained towards this one. Judged on {found["test"]:,} reviews of the test half: the cosine of sentence vectors
        to those of the whole model; the correlation of the cosines among all pairs of reviews with its own, which does
        not ask that two models have their vectors in one place; and what a linear probe of the sentiment names right,
        in percent, with the paired 95 % interval over reviews of the difference to the shipped one."""
    )
    head = ["model", "cosine to L6", "pairs as in L6", "probe %", "minus shipped L3"]
    return f"""### A sentence encoder with three layers

{about}

    python -m examples.benchmarks.distil_text --root DIR --cache DIR --out docs/benchmarks/distil_text.json

{table(head, rows)}

In similarity it is far above the shipped model, in the probe not: there the whole model, which it learns from, is not
above the shipped one either.
"""


def slim_default(found: dict[str, Any]) -> str:
    """What the default importance and ranking were chosen by."""
    errors: dict[str, dict[str, list[float]]] = {}
    for r in found["runs"]:
        how = f"{r['importance']}, {r['ranking']}"
        errors.setdefault(r["model"], {}).setdefault(how, []).append(r["error"])
    head = ["model", *next(iter(errors.values()))]
    rows = [
        [name, *(f"{statistics.mean(each[how]):.4f}" if how in each else "" for how in head[1:])]
        for name, each in errors.items()
    ]
    seeds = len({r["seed"] for r in found["runs"]})
    about = paragraph(
        f"""Half of the MACs, fitted: squared error relative to the squared results on inputs that the fit did not see;
        {seeds} draw of the data, too few for intervals. Uniform shares are the default, as isomorphic ranks can go
        wrong by far (the CNN). "wanda" is the default where there are data: it chose better than magnitudes for both
        transformers, the CNN and MobileNetV2, and a little worse for the MLP and the layer-scaled CNN."""
    )
    return f"""### What stays by default

{about}

    python -m examples.benchmarks.slim_default --root DIR --out docs/benchmarks/slim_default.json

{table(head, rows)}
"""
