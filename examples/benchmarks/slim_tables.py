"""The sections of docs/measurements.md that compare `slim` with Torch-Pruning.

In: the reports of `slim_peer.py` and `slim_peer_text.py`. Out: Markdown.
"""

from __future__ import annotations

import statistics
from typing import Any

from ..common.intervals import interval
from ..common.markdown import paragraph, signed, table

__all__ = ["slim_peer", "slim_peer_text"]

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
        kinds = [kind for kind, each in cell.items() if kind != "original" and each["rows"]]
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
        counts = ", ".join(
            f"{_head(kind)} {max(len(row['seeds']) for row in cell[kind]['rows'].values())}"
            for kind in kinds
        )
        about = f"**{task}, {float(share):.0%} of the MACs**; original {cell['original']:.1f} %; seeds: {counts}"
        parts.append(f"{about}\n\n{table(['setting', *map(_head, kinds)], rows)}")
    tables = "\n\n".join(parts)
    return f"""## Slim beside Torch-Pruning

{_about(found)}

    pip install torch-pruning==1.6.1
    python -m examples.benchmarks.slim_peer --data .gpu/images.npz --out docs/benchmarks/slim_peer.json --minutes 6

{tables}
"""


def _about(found: dict[str, Any]) -> str:
    return paragraph(
        f"""Accuracy in percent on held-out images, by {found["device"]}. One trained original for each seed; both
        tools prune it to the same MACs with the same {found["calibration"]:,} training images; then all are trained
        on the same batches at the same rates. Torch-Pruning 1.6.1 in six forms (group-L2 and Taylor importance, with
        local, global and isomorphic ranking) and with the hints that its examples give; its best of the six, by the
        mean over the seeds, is what the others are compared with: the difference and its paired 95 % interval, not
        corrected for their number. "Beside re-estimated norms" re-estimates its batch norms on the same images, which
        it does not do by itself."""
    )


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
            gap = interval([each[name][s] - each[best][s] for s in seeds])
            row.append(f"{statistics.mean(each[name][s] for s in seeds):.3f}")
            row.append("" if name.startswith(PEER) else signed(gap, 3))
        rows.append(row)
    about = paragraph(
        f"""MiniLM-L6 without training: the mean cosine of sentence vectors to those of the whole model, on IMDb reviews
        that nobody saw, after both tools read the same {found["texts"]} reviews ({len(columns[0][1])} draws of them).
        Heads and neurons go, the stream stays. Differences to Torch-Pruning's best form, with paired 95 % intervals."""
    )
    command = f"python -m examples.benchmarks.slim_peer_text --root DIR --texts {found['texts']}"
    return f"""### A sentence encoder

{about}

    {command} --out docs/benchmarks/slim_peer_text.json

{table(head, rows)}
"""
