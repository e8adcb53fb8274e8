"""By what should `slim` choose what stays? How near small models stay to the whole, fitted, by importance and ranking.

    python -m examples.benchmarks.slim_default --root DIR --out docs/benchmarks/slim_default.json

Half of the MACs; models, data and measures are those of `restoration.py`: the squared error relative to the squared
results, on inputs that the fit did not see. One draw of the data for each seed.
"""

from __future__ import annotations

import itertools
import json
import warnings

import torch

import graftlib

from ..common import command, results
from .restoration import CASES, _length, _rows, fidelity, outputs

MODELS = {
    "vision transformer": 256,
    "CNN": 256,
    "layer-scaled CNN": 256,
    "MLP": 256,
    "MobileNetV2": 48,
}
IMPORTANCES, RANKINGS = ("magnitude", "wanda", "fluctuation"), ("uniform", "isomorphic")


def main() -> None:
    parser = command.parser(__doc__, "docs/benchmarks/slim_default.json")
    command.add_root(parser)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    runs = []
    for seed, name in itertools.product(range(args.seeds), args.only):
        model, unseen, pool = CASES[name][0](args.root, args.root.parent / "models")
        random = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(_length(pool), generator=random)[: MODELS[name]]
        graph = graftlib.trace(model, _rows(pool, slice(0, 2)))
        wanted = outputs(model, unseen)
        for importance, ranking in itertools.product(IMPORTANCES, RANKINGS):
            small = graftlib.slim(
                graph,
                budget={"macs": 0.5},
                data=[_rows(pool, rows) for rows in chosen.split(64)],
                importance=importance,
                ranking=ranking,
                multiple_of=1,
            )
            row = {"model": name, "seed": seed, "importance": importance, "ranking": ranking}
            runs.append(row | fidelity(small.model, unseen, wanted))
            print(json.dumps(runs[-1]), flush=True)
            results.save(args.out, {"torch": torch.__version__, "runs": runs})


if __name__ == "__main__":
    main()
