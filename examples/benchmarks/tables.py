"""Write docs/measurements.md and its parts from the JSON of the benchmarks in docs/benchmarks: no figure by hand.

python -m examples.benchmarks.tables
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..common import results
from ..common.markdown import table
from .gpu_tables import carried, gpu
from .paper_tables import experiments
from .slim_tables import distil_text, slim_default, slim_peer, slim_peer_text

DOCS = Path(__file__).parents[2] / "docs"

HEAD = """# Measurements

Every table is made from a JSON file in `docs/benchmarks/` by `python -m examples.benchmarks.tables`, and every JSON
file by the command above its table; `examples.common.results.load` reads one. Times are those of one machine (2 cores,
no GPU) that was busy with other work: compare ratios, not seconds. What was measured on CUDA is in one part, "On a
GPU"; the cost of DDP and FSDP2 is not measured.

"""

Section = Callable[[dict], str]


def read(name: str) -> dict | None:
    path = DOCS / "benchmarks" / f"{name}.json"
    return results.load(path) if path.exists() else None


def step_cost(found: dict) -> str:
    settings = found["settings"]
    rows = []
    for name, row in found["arms"].items():
        low, high = row["cpu_quartiles"]
        memory = f"{row['memory_ratio']:.3f}x ({row['peak_bytes'] / 2**20:.0f} MiB)"
        ratio = f"{row['cpu_ratio']:.3f}x"
        rows.append([name, ratio, f"{low:.3f} to {high:.3f}", f"{row['wall_ratio']:.3f}x", memory])
    flags = f"--batch {settings['batch']} --rounds {settings['rounds']}"
    kept = "; ".join(
        f"at rank {rank} {sum(row[k] for k in ('adapter', 'moments', 'transfer')) / 2**20:.1f} MiB, "
        f"{row['share_of_peak']:.1%} of the plain step's peak"
        for rank, row in found["counted"].items()
    )
    return f"""## What a step costs

MobileNetV2 at 32 x 32 (its stride-1 form, 100 classes, batch {settings["batch"]}), one link from a frozen ResNet-50's
classifier, a transfer every fourth step, rank {settings["rank"]}; beside it distillation with that ResNet-50 as the
teacher. Ratios to the plain step, amortised over a cycle, within a round; median and quartiles of
{settings["rounds"]} rounds, {settings["threads"]} thread. Memory is the growth of a process's largest resident set.

    python -m examples.benchmarks.step_cost {flags} --out docs/benchmarks/step_cost.json

{table(["step", "CPU time", "quartiles", "wall", "peak memory"], rows)}

The resident set scatters by more than an adapter is large, so what a graft keeps (adapter, moments, a transfer until
its update) is also counted: {kept}.
"""


def pull_cost(found: dict) -> str:
    settings, row = found["settings"], found["arms"]["pulled"]
    low, high = row["cpu_quartiles"]
    flags = f"--batch {settings['batch']} --rounds {settings['rounds']}"
    return f"""## What a pull costs

The same MobileNetV2, batch {settings["batch"]}: every convolution and the classifier towards those of one of twice its
width (`AlignedPull`), a transfer before every step. Against the plain step, median and quartiles of
{settings["rounds"]} rounds, {settings["threads"]} thread: CPU time {row["cpu_ratio"]:.3f}x ({low:.3f} to {high:.3f}),
wall {row["wall_ratio"]:.3f}x, peak memory {row["memory_ratio"]:.3f}x. That is while it lasts; over a training whose
first tenth is pulled {1 + (row["cpu_ratio"] - 1) / 10:.3f}x. What a transfer costs does not depend on the batch.

    python -m examples.benchmarks.step_cost --arms plain pulled {flags} --out docs/benchmarks/pull_cost.json
"""


def adapter_cost(found: dict) -> str:
    rows = []
    for name, row in found["rows"].items():
        faster = row["times_faster_than_authors"]
        spread = f"{faster['median']:.1f}x ({faster['q1']:.1f} to {faster['q3']:.1f})"
        time = f"{row['ms']['all']['median']:.0f} ms"
        held = f"{row['saved_mib']:.0f} MiB"
        rows.append([name, f"{row['parameters'] / 1e6:.2f} M", held, time, spread])
    seeds = found["seeds"]
    flags = f"--repetitions {found['repetitions'] // seeds} --seeds {seeds}"
    return f"""## What a transfer costs

One transfer with its update at the shapes of the paper's pair (160 x 960 from 100 x 2048, 8 heads, 2 layers), against
the authors' arithmetic written out: own projections for each pairing, materialised attention with dropout, a
feed-forward sized so that the parameters come to their 38.6 M. Median and quartiles of {found["repetitions"]}
interleaved repetitions over {found["seeds"]} seeds, {found["threads"]} thread. A part of the gain is their dropout, so
the second row leaves it out.

    python -m examples.benchmarks.adapter_cost {flags} --out docs/benchmarks/adapter_cost.json

{table(["adapter", "parameters", "graph held", "transfer + update", "faster than the authors'"], rows)}
"""


def import_cost(found: dict) -> str:
    rows = []
    for name, clocks in found["rows"].items():
        row = clocks["processor"]
        low, high = row["ratio_quartiles"]
        wall = f"{clocks['wall']['ratio']:.3f}x"
        rows.append([f"`{name}`", f"{row['ratio']:.3f}x", f"{low:.2f} to {high:.2f}", wall])
    return f"""## What importing costs

Against `import torch`, {found["repeats"]} interleaved repetitions in fresh interpreters.

    python -m examples.benchmarks.import_cost -o docs/benchmarks/import_cost.json

{table(["statement", "CPU time", "quartiles", "wall"], rows)}
"""


def page(found: dict) -> str:
    words = {
        "write_s": ("written in", "{:.2f} s of a processor"),
        "kB": ("size", "{:.0f} kB"),
        "open_ms": ("opens in", "{:.0f} ms of a processor"),
        "expand_ms": ("one module opened in", "{:.0f} ms of a processor"),
        "expand_wall_ms": ("from the click to the next frame", "{:.0f} ms"),
        "pan_fps": ("dragged, all open", "{:.0f} frames a second"),
        "pan_ms": ("a frame of that", "{:.1f} ms of a processor"),
        "wheel_ms": ("a frame of that", "{:.1f} ms of a processor"),
        "wheel_fps": ("zoomed, all open", "{:.0f} frames a second"),
    }
    rows = []
    for name, row in found["rows"].items():
        models, _, figure = name.rpartition(", ")
        label, form = words[figure]
        values = [form.format(row["median"]), *(f"{row[end]:.4g}" for end in ("least", "most"))]
        rows.append([models.replace("|", "and"), label, *values])
    machine = found["machine"]
    return f"""## What the page costs

{found["repeats"]} repetitions on {machine["cores"]} cores, which other work kept at a load of {machine["load"]:.0f}.
Chromium {machine["browser"]} without a GPU. "All open" is after opening level by level six times.

    python -m examples.benchmarks.page -o docs/benchmarks/page.json

{table(["models", "what", "median", "least", "most"], rows)}
"""


def accuracy(title: str, name: str, found: dict) -> str:
    settings = found["settings"]
    rows = []
    for arm, row in found["arms"].items():
        cells = [arm, f"{row['mean']:.2f} ± {row['sd']:.2f}"]
        for reference in ("minus plain", "minus random source"):
            gap = row.get(reference)
            cells.append(f"{gap[0]:+.2f} [{gap[1]:+.2f}, {gap[2]:+.2f}]" if gap else "")
        rows.append([*cells, f"{row['cpu_seconds']:.1f}"])
    n = next(iter(found["arms"].values()))["n"]
    flags = [f"--data {settings['data']}", f"--train-size {settings['train_size']}"]
    if settings["data"] != "digits":
        flags.insert(1, "--root DIR")
    for flag in ("epochs", "source_epochs"):
        flags.append(f"--{flag.replace('_', '-')} {settings[flag]}")
    if settings["data"] != "digits":
        flags.append("--arms " + " ".join(f'"{arm}"' for arm in settings["arms"]))
    return f"""### {title}

Source {found["source_accuracy"]:.2f} %. Accuracy of the last epoch in per cent, mean ± standard deviation of
n = {n} seeds; paired differences in points with their 95 % interval.

    python -m examples.benchmarks.accuracy {" ".join(flags)} --out docs/benchmarks/{name}.json

{table(["arm", "accuracy", "minus plain", "minus random source", "CPU s"], rows)}
"""


def cut_cost(found: dict) -> str:
    def shown(one: dict | None) -> str:
        if not one:
            return ""
        spread = (
            f"{one['median']:.2f} ({one['q1']:.2f} to {one['q3']:.2f})" if "median" in one else ""
        )
        return spread or one["answer"]

    rows = []
    for row in found["models"]:
        left = " / ".join(
            f"{row[w]:.2f}" for w in ("graftlib_left", "torch-pruning_left") if w in row
        )
        times = f"{row['times']['median']:.2f}x" if "times" in row else ""
        own, peer = shown(row.get("graftlib")), shown(row.get("torch-pruning"))
        rows.append([row["model"], str(row["n"]), own, shown(row.get("prune")), peer, times, left])
    flags = f"--rounds {found['machine']['rounds']}"
    loads = [row["load"] for row in found["models"] if "load" in row] or [0]
    cores = found["machine"]["cores"]
    busy = f"A load of {min(loads):.0f} to {max(loads):.0f} on {cores} cores: ratios say more than seconds."
    head = ["model", "n", "graftlib", "of it the edit", "Torch-Pruning", "theirs / ours", "left"]
    return f"""## What pruning half costs

Half of every class of a model that was never traced, with its trace and proof, beside Torch-Pruning's graph and step.
CPU seconds of one thread, median and quartiles; the share of the parameters that is left, ours / theirs.
{busy}

    pip install torch-pruning==1.6.1
    python -m examples.benchmarks.cut_cost {flags} --out docs/benchmarks/cut_cost.json

{table(head, rows)}
"""


def breaks(found: dict) -> str:
    words = {"left_out": "left out", "undone": "ties undone"}
    words |= {"widened": "widened", "ranked": "ranked"}
    kinds = {kind: words[kind] for kind in words if all(kind in row for row in found["rows"])}
    rows, total = [], {kind: [0, 0, 0] for kind in kinds}
    for row in found["rows"]:
        cells = [f"`{row['model']}`", str(row["classes"])]
        for kind in kinds:
            one = row[kind]
            counts = one["breaks"] - one["blind"], one["seen"], one["blind"]
            total[kind] = [a + b for a, b in zip(total[kind], counts, strict=True)]
            cells.append(_seen(*counts))
        seen = [row[k]["smallest_seen"] for k in ("left_out", "undone") if row[k]["seen"]]
        rows.append([*cells, f"{min(seen):.0e}" if seen else ""])
    classes = sum(row["classes"] for row in found["rows"])
    rows.append(["all", str(classes), *(_seen(*total[kind]) for kind in kinds), ""])
    flags = " --widen" * ("widened" in kinds) + " --importance" * ("ranked" in kinds)
    unseen = [
        f"`{row['model']}`, {kinds[kind]}, such as {row[kind]['unseen'][0]}"
        for row in found["rows"]
        for kind in kinds
        if row[kind]["unseen"]
    ]
    more = "Not seen: " + "; ".join(unseen) + ".\n" if unseen else ""
    return f"""## Does the check see what is wrong?

Each cell: breaks that were seen, of how many; and how many more the function provably does not depend on (a bias of
keys under softmax). Every member of every free class left out in turn, and every tie that bridges two parts of a class
undone in turn: the permutation check must fail. Every member of a widened class broken in turn: the proof of `widen`
must fail. Half of every class switched off, and pruned by an importance that does not see it: the function must change,
as it does not by the library's own. `smallest` is the smallest relative change of an output that one of the first two
made (a check fails from 1e-9 on). Random weights, seed {found["seed"]}, no sample: all single breaks. "Settled" has
the running statistics of its inputs; with fresh ones the deepest layers of that model hardly move its outputs.

    python -m examples.benchmarks.breaks{flags} --out docs/benchmarks/breaks.json

{table(["model", "classes", *kinds.values(), "smallest"], rows)}

{more}"""


def _seen(breaks: int, seen: int, blind: int) -> str:
    return f"{seen} of {breaks}" + (f" + {blind}" if blind else "")


def trace_cost(found: dict) -> str:
    def cell(row: dict, tool: str) -> str:
        one = row.get(tool)
        if one is None:
            return ""
        return one.get("answer") or f"{one['median']:.2f} ({one['q1']:.2f} to {one['q3']:.2f})"

    rows = []
    for row in found["models"]:
        ratio = (row.get("torch-pruning") or {}).get("times_graftlib")
        cells = [cell(row, t) for t in ("graftlib", "torch-pruning", "make_fx", "torch.export")]
        faster = f"{ratio['median']:.2f}x" if ratio else ""
        rows.append([row["model"], str(row["ops"]), *cells, faster])
    head = [
        "model",
        "ops",
        "trace + classes",
        "Torch-Pruning",
        "make_fx",
        "torch.export",
        "peer / ours",
    ]
    points = []
    for curve in found["curves"]:
        for point in curve["points"]:
            t, c = point["trace"]["median"], point["classes"]["median"]
            points.append([curve["kind"], f"{point['ops']:,}", f"{t:.3f}", f"{c:.3f}"])
    exponents = "; ".join(
        f"{c['kind']}: trace ~ ops^{c['trace_exponent']:.2f}, classes ~ ops^{c['classes_exponent']:.2f}"
        for c in found["curves"]
    )
    big = found["large"]
    newer = ""
    if "newer" in found:
        models, rounds = ", ".join(found["newer"]["models"]), found["newer"]["rounds"]
        newer = f"\nThe rows of {models} are newer than all else here, and of {rounds} rounds."
    flags = f"--rounds {found['rounds']} --limit {found['limit']:.0f}"
    return f"""## What seeing costs

Processor seconds of one process, one thread, warm: median (quartiles) of {found["rounds"]} rounds, all tools
in turn. Torch-Pruning is `build_dependency` and all of `get_all_groups`, with a limit of {found["limit"]:.0f} s; its
classes are groups of coupled channels. `make_fx` and `torch.export` make a graph only. The last column is the median of
the ratios within a round: above 1 graftlib is faster. Measured beside other work: ratios say more than seconds.{newer}

    pip install torch-pruning
    python -m examples.benchmarks.trace_cost {flags} --out docs/benchmarks/trace_cost.json

{table(head, rows)}

Against the number of ops, a chain of blocks ({exponents}; 1 is linear):

{table(["chain", "ops", "trace, s", "classes, s"], points)}

A Llama of {big["parameters"] / 1e9:.1f} B parameters on the meta device: {big["trace_seconds"]:.1f} s to trace,
{big["classes_seconds"]:.1f} s for its classes ({big["ops"]:,} ops), {big["peak_gib"]:.2f} GiB at most
({big["peak_gib_before"]:.2f} GiB before tracing).
"""


def slim_start(found: dict) -> str:
    settings, parts = found["settings"], []
    for name, starts in found["tables"].items():
        rows = []
        for start, row in starts.items():
            gaps = [row.get(f"minus {other}") for other in ("random weights", "uniform units")]
            texts = ["" if g is None else f"{g[0]:+.1f} [{g[1]:+.1f}, {g[2]:+.1f}]" for g in gaps]
            at = row["reaches random's accuracy"]
            share = at["median share of steps"]
            when = "never" if share is None else f"{share:.0%} ({at['seeds']} of {row['n']})"
            shown = [f"{row['mean']:.1f}", f"{row['sd']:.1f}", f"{row['untrained']:.1f}"]
            rows.append([start, *shown, *texts, "" if start == "random weights" else when])
        sources = ", ".join(f"{s:.1f}" for s in found["sources"][name])
        sizes = found["sizes"][name.partition(",")[0]]
        head = [
            "start",
            "accuracy %",
            "sd",
            "untrained",
            "minus random",
            "minus uniform units",
            "at random's",
        ]
        facts = (
            f"{sizes['images']:,} images, {sizes['epochs']} epochs; source: {sizes['source images']:,} images, "
            f"{sizes['source epochs']} epochs, {sources} %"
        )
        parts.append(f"**{name}**: {facts}\n\n{table(head, rows)}")
    shown = "\n\n".join(parts)
    return f"""## Is a slim start a help?

A target of half the width of a trained source, trained on few images from different starts; seed by seed the
same batches as from random weights. Means over {settings["seeds"]} seeds ({settings["sources"]} sources in
turn); paired differences with 95 % t intervals, not corrected for their number. "Untrained" and "at random's" are on
1,000 test images: before the first step, and the median share of the steps after which a start first had the
accuracy that random weights ended with (checked every tenth of the training; the seeds that got there). CIFAR-10 is
8,000 / 2,000 images of its test half.

    python -m examples.benchmarks.slim_start --root DIR --out docs/benchmarks/slim_start.json

**Every start from the source beats random weights, in all six settings.** Uniform units, taken class by class, are not
better than per-tensor selection, which ignores classes; what helps beyond that is the choice of units and, mostly, the
fit to data. The fit does not always help (the transformer on CIFAR-10), and on 2,000 images training itself can cost
accuracy: the fitted CNN starts above where it ends, at a learning rate that was tuned for random weights. These runs
are older than an importance that counts what scales a channel, and than fits that are judged on inputs held out.

{shown}
"""


def restoration(found: dict) -> str:
    rows = []
    for name, runs in found["models"].items():
        for samples in sorted({run["samples"] for run in runs}):
            same = [run for run in runs if run["samples"] == samples]
            cells = [name, str(samples)]
            for measure in ("error", "cosine"):
                for when in ("before", "after"):
                    cells.append(f"{sum(run[when][measure] for run in same) / len(same):.3f}")
            cells += [
                str(sum(run["taken back"] for run in same)),
                str(sum(run["harm"] for run in same)),
            ]
            rows.append([*cells, f"{sum(run['fit_cpu_seconds'] for run in same) / len(same):.1f}"])
    seeds = len({run["seed"] for runs in found["models"].values() for run in runs})
    head = [
        "model",
        "samples",
        "error",
        "fitted",
        "cosine",
        "fitted",
        "taken back",
        "harm",
        "CPU s",
    ]
    return f"""## What a fit restores

Half of every free class, then fitted to some inputs (`prune(…, data=)`). Squared error relative to the squared
results and mean cosine to the model as it was, on inputs that the fit did not see; how many of {seeds} draws of the
inputs had fits taken back, and how many left the model further off than without the fit. A sample is an image or a
text of 64 tokens. The rules of taking back were set after harm in runs of this benchmark, so it is no independent test
of them.

    python -m examples.benchmarks.restoration --root DIR --seeds {seeds} --out docs/benchmarks/restoration.json

{table(head, rows)}
"""


def vocabulary(found: dict) -> str:
    before = found["before"]
    rows = []
    for name, row in found["rows"].items():
        change = "" if row["change"] is None else f"{row['change']:.0e}"
        size = f"{row['bytes'] / 1e6:.1f} MB (-{row['saved']:.1%})"
        cosines = [f"{row[key]:.4f}" for key in ("cosine", "least")]
        rows.append([name, f"{row['tokens']:,}", size, change, f"{row['same']:.1%}", *cosines])
    head = ["tokens of", "tokens", "parameters", "change on them"]
    head += ["held-out reviews split alike", "cosine", "least"]
    used = found["rows"]["25,000 reviews"]["tokens"] / before["tokens"]
    whole = f"{before['tokens']:,} tokens, {before['bytes'] / 1e6:.1f} MB of float32 parameters"
    return f"""## A smaller vocabulary

{found["model"]} ({whole}) with the vocabulary of IMDb (`prune_vocabulary`). The first rows keep every
token of that many reviews: all of these are split as before, and the embeddings of 64 change by no more than shown. The
last row keeps the most frequent tokens of the 25,000 reviews of the train half. Held out are 500 reviews of the test
half for how they are split, and 100 of them for the cosine of the sentence embedding to the old one.

    python -m examples.benchmarks.vocabulary --root DIR --models DIR --cache DIR --out docs/benchmarks/vocabulary.json

**The reviews use {used:.0%} of the tokens, so their whole vocabulary saves little.** The table is half of this
model, and 40 % less asks for a fifth of the tokens: those of some 200 reviews, or the most frequent ones, at the price
of other words that are spelled in more pieces.

{table(head, rows)}
"""


def coverage(family: str, found: dict) -> list[str]:
    one = found["summary"]
    kinds = ", ".join(
        f"{kind} {freedom:.3f}" for kind, freedom in one["median freedom by kind"].items()
    )
    return [
        family,
        str(one["models"]),
        str(one["traced"]),
        str(one["check passed"]),
        str(one["check failed"]),
        str(one["check says little"] + one["not checked"]),
        kinds,
        str(one["below 0.5"]),
        f"{one['of these, ran and gave the traced shapes']} of {one['half pruned']}",
        str(one["of these, every class pruned"]),
        f"{one['median share of parameters left']:.2f}",
        f"{one['median CPU s of the edit']:.1f}, {one['longest CPU s of an edit']:.1f}",
        one["saved and loaded"] if one["saved and loaded"] != "0 of 0" else "–",
    ]


COVERAGE_HEAD = """## Which models are seen

Random weights, nothing downloaded; every row, with its frozen ops, is in `docs/benchmarks/coverage_FAMILY.md`.
torchvision is every model but the quantised ones. Freedom is the share of the weights that some class may move
(median by kind). Half of every class was pruned in a copy of a model that had run before: how many ran and gave the
traced shapes, in how many every class got smaller, the median share of the parameters left, median and most CPU
seconds, and how many of those with a configuration were saved, loaded and gave the same (the others were warned that it
cannot say the sizes). Large models take minutes for the check: ViT-H/14 of torchvision and four of timm stand as an
earlier run saw them, without an edit.

    python -m examples.benchmarks.coverage --family FAMILY --prune --fresh --limit 1500 --out docs/benchmarks
"""


def halved(found: list[dict]) -> str:
    """Half of every class, on every architecture that there is."""
    rows, sets = [], ""
    for one in found:
        all_of, saved = one["totals"], one["totals"]["saved, loaded, same answers"]
        spread = all_of["share of parameters left, spread"]
        rows.append(
            [
                one["family"],
                str(all_of["models that run by themselves"]),
                str(all_of["half pruned, ran, gave the traced shapes"]),
                str(all_of["of these, every class got smaller"]),
                f"{all_of['share of parameters left, median']:.2f}",
                str(spread["0.8 to 1.0"]),
                " / ".join(f"{n:.1f}" for n in all_of["CPU s of the edit, median, 95 %, most"]),
                ", ".join(f"{n} {word}" for word, n in saved.items()) or "–",
            ]
        )
        sets += f"- {one['family']}: {one['set']}\n"
    head = [
        "family",
        "run",
        "half pruned",
        "all classes",
        "left",
        "above 0.8",
        "CPU s",
        "saved and loaded",
    ]
    return f"""### Half of every class

`prune(graph, 0.5)` in a copy of a model that has run before: how many gave the traced shapes, in how many of
these every class got smaller, the median share of the parameters that is left, how many keep more than 0.8 of
them, CPU seconds of the edit (median, 95 %, most), and whether what was saved gave the same answers once loaded
("no, said": a warning names what the configuration cannot say). Where no class is left and much remains, the
inputs reach a part of the model (a text alone), or the model gives out its hidden states, whose order is fixed.
`docs/benchmarks/coverage_FAMILY_all.md` names whatever did not go as it should. Where what a walk found was mended
behind it, its last column says what those models give since; the counts here are those of the code before.

{table(head, rows)}

{sets}
    python -m examples.benchmarks.coverage --family FAMILY --all --no-check --out FOLDER
    python -m examples.benchmarks.coverage_brief --family FAMILY --found FOLDER --set WORDS
"""


def planted(found: dict) -> str:
    rows = []
    for net, noises in found["rows"].items():
        for noise, ways in noises.items():
            for way, row in ways.items():
                cells = [net, noise, way, f"{row['recovered']} of {found['nets']}"]
                rows.append([*cells, f"{row['cpu_s_per_net'] * 1000:.0f} ms"])
    return f"""## Are planted permutations found?

A network, and a copy whose units were renamed by a random permutation in every class, with noise added (in shares
of each tensor's standard deviation); widths 30 and 50. Recovered: all classes, to the unit. "Grown
start" is the default.

    python -m examples.benchmarks.planted --nets {found["nets"]} -o docs/benchmarks/planted.json

{table(["nets", "noise", "method", "recovered", "CPU a net"], rows)}
"""


def planted_diffs(found: dict) -> str:
    rows = [
        [
            edit,
            f"{row['named']} of {row['pairs']}",
            "; ".join(f"{word} {n}" for word, n in row["said"].items()),
        ]
        for edit, row in found["rows"].items()
    ]
    named = sum(row["named"] for row in found["rows"].values())
    return f"""## Does a diff name the edit?

A small network that was trained on a random teacher, and a second that came from it by one edit (the fine-tuned one by
training on another teacher; the merged one by averaging with an independent network whose units were aligned with its
own), or that was trained in no relation to it. Named: the very word for what was done and none else. {named} of
{found["pairs"]} are; a comparison takes {found["cpu_s_per_diff"] * 1000:.0f} ms of a processor. The networks have 24
to 50 units a layer; how often larger ones, or edits that move more, are named was not measured.

    python -m examples.benchmarks.planted_diffs --pairs {found["pairs"]} -o docs/benchmarks/planted_diffs.json

{table(["edit", "named", "said"], rows)}
"""


def transplanted(found: dict) -> str:
    parts = []
    for name, setting in found["settings"].items():
        rows = []
        for arm, row in setting["arms"].items():
            cells = [arm, str(row["steps"]), f"{row['accuracy']:.1f} ± {row['std']:.1f}"]
            for other in ("minus random, all steps", "minus per tensor"):
                gap = row.get(other)
                cells.append(
                    f"{gap['mean']:+.1f} [{gap['low']:+.1f}, {gap['high']:+.1f}]" if gap else ""
                )
            rows.append(cells)
        head = ["start", "steps", "accuracy %", "minus random, all steps", "minus per tensor"]
        n = len({run["seed"] for run in setting["runs"]})
        parts.append(f"**{name}**, n = {n}\n\n{table(head, rows)}")
    shown = "\n\n".join(parts)
    return f"""## Is a transplant a good start?

A residual network is trained once; slim targets have half of its width, and half of its depth (`shallow`) or no way
around their convolutions (`plain convolutions`). Every start but the first row trains for half of the steps. Paired
differences over seeds with 95 % t intervals. `transplant, no knowledge` comes from the source before it was trained.
The two grafted rows are of an earlier adapter, whose rank replaced the rows and which hardly read its source. All rows
are older than an importance that counts what scales a channel, and than blocks that stay together.

    python -m examples.benchmarks.transplant --root DIR --out docs/benchmarks/transplant.json

{shown}
"""


def alignment(found: dict) -> str:
    def spent(row: dict) -> str:
        if "stopped_after_cpu_s" in row:
            return f"stopped after {row['stopped_after_cpu_s']} s"
        return f"{row['cpu_s']:.2f} s" if row else "not run"

    def both(ours: dict, peer: dict, key: str, style: str) -> str:
        return " / ".join(f"{row[key]:{style}}" if key in row else "none" for row in (ours, peer))

    rows = []
    for net, row in found["rows"].items():
        ours, share, peer = row["graftlib"], row.get("share", {}), row.get("rebasin", {})
        known = "products" in share
        shown = f"{share['products'] + share['assignments']:.0%}" if known else ""
        peak = f"{ours['peak_by_weights']:.2f}" if "peak_by_weights" in ours else ""
        pair = [net, spent(ours), spent(peer), shown, peak]
        rows.append(
            [*pair, both(ours, peer, "objective", ".1f"), both(ours, peer, "function_error", ".0e")]
        )
    head = ["pair", "graftlib", "rebasin", "products + assignments", "peak / weights"]
    return f"""## What aligning costs

Two networks of one architecture with random weights: CPU seconds to align all classes, the share of them in matrix
products and the assignment solver, peak memory by the weights of both, the objective (larger is better) and the largest
change of the renamed network's function, each ours / the peer's.

    pip install rebasin
    python -m examples.benchmarks.alignment --limit 200 -o docs/benchmarks/alignment.json

{table([*head, "objective", "function error"], rows)}
"""


def barrier(found: dict) -> str:
    settings = found["settings"]
    rows = []
    for name, row in found["rows"].items():
        rows.append(
            [
                name,
                "{:.4f} ± {:.4f}".format(*row["barrier"]),
                "{:.2f} ± {:.2f}".format(*row["accuracy_barrier"]),
                "{:.1f} ± {:.1f}".format(*row["objective"]),
                f"{row['cpu_s'][0]:.1f} s",
            ]
        )
    result = found["verdict"]
    said = ""
    if result:
        said = (
            f"The lowest published barrier is that of {result['best_published']}; ours minus it: "
            f"{result['ours_minus_best']:+.4f} nats.\n"
        )
    flags = f"--pairs {settings['pairs']} --epochs {settings['epochs']} --git-re-basin DIR"
    head = ["", "barrier, nats", "barrier, points", "objective", "CPU time"]
    return f"""## The barrier between two MLPs

{settings["pairs"]} pairs of MLPs with {settings["depth"]} hidden layers of {settings["width"]} units, trained on
{settings["train_images"]:,} images of MNIST for {settings["epochs"]} epochs (test accuracy
{found["networks"]["test_accuracy"]:.2f} %), aligned in several ways and interpolated at {settings["points"]} factors.
Mean and standard deviation over pairs; the barrier is the largest height above the chord, on
{settings["test_images"]:,} test images. `git-re-basin` is the authors' weight matching, run under jax. {said}
    python -m examples.benchmarks.barrier --root DIR {flags} -o docs/benchmarks/barrier.json

{table(head, rows)}
"""


def zoo_memory(found: dict) -> str:
    rows = [
        [name, str(row["n"]), f"{row['median_mb']:.1f} MB", f"{row['spread_mb']:.1f} MB"]
        for name, row in found["rows"].items()
    ]
    by = [f"{found[f'{how}: 20 by 2']:.2f}" for how in ("files", "held at once")]
    return f"""## What a larger zoo holds in memory

`assemble` over safetensors files of {found["source_mb"]:.1f} MB each: how far the resident memory of a fresh
process grew. Below it the control, the same sources given as models. From 2 to 20 sources: {by[0]}x, and
{by[1]}x where all are held.

    python -m examples.benchmarks.zoo_memory -o docs/benchmarks/zoo_memory.json

{table(["sources", "n", "median", "spread"], rows)}
"""


def stream(found: dict) -> str:
    def mb(count: float) -> str:
        return f"{count / 1e6:,.0f} MB"

    def spread(values: list[float]) -> str:
        return " / ".join(f"{value:.1f}" for value in values)

    rows = [
        [
            size,
            mb(row["bytes"]),
            mb(row["largest_tensor_bytes"]),
            spread(row["seconds"]),
            spread(row["cpu_seconds"]),
            spread(row["cp_seconds"]),
            f"{row['by_cp']:.1f}x",
            mb(row["peak_above_libraries_bytes"]),
            mb(row["peak_bytes"]),
        ]
        for size, row in found["rows"].items()
    ]
    same = next(row["in_memory"] for row in found["rows"].values() if "in_memory" in row)
    load = max(load for row in found["rows"].values() for load in row["load"])
    head = ["parameters", "files", "largest tensor", "seconds", "of them CPU", "of cp", "by cp"]
    return f"""## Slimming files that are larger than memory

`slim_folder` to half of the parameters of a Llama in bfloat16, against `cp -r` of its shards. At 0.3 billion the same
edit was made in memory: {same["other"]} of {same["tensors"]} tensors are other ones, and the edit is
{"the same" if same["same_edit"] else "another"}; the peak there was {mb(same["peak_bytes"])}.
Slimming and copy in turn, on {found["cores"]} cores with a load of at most {load:.1f}; "by cp" is the median of the
ratios of neighbours. A copy waits for the disk, a slimming for processors (SHA-256 of the source is much of it), so
that other work beside it makes the ratio worse. What a process needs before it reads anything weighs on small files.

    python -m examples.benchmarks.stream --scratch DIR -o docs/benchmarks/stream.json

{table([*head, "peak above the libraries", "peak"], rows)}
"""


def round_trip(found: dict) -> str:
    keys = ["same", "answers", "uneven", "fewer", "unchanged", "errors"]
    rows = [
        [f, f"{row['models']} of {row['of']}", *(str(row[key]) for key in keys)]
        for f, row in found["summary"].items()
    ]
    odd = [
        f"- `{name}`: {row.get('error') or row.get('differing') or row.get('answers', 'no axis class may change')}"
        for each in found["odd"].values()
        for name, row in each.items()
    ]
    head = ["family", "models", "state and attributes equal", "outputs equal", "uneven widths"]
    more = "Not counted as equal:\n\n" + "\n".join(odd) + "\n" if odd else ""
    return f"""## Do slimmed models come back from their files?

The Hugging Face types of the coverage, the classifiers of torchvision and 100 architectures of timm with random
weights: a block fewer where one can go, and slimmed to 70 % of the parameters by random importances and a global
ranking; saved; and loaded through their class with other random values. Compared bit by bit. Where it says fewer than
all, the run was stopped before the rest.

    python -m examples.benchmarks.round_trip -o rows.json --brief docs/benchmarks/round_trip.json

{table([*head, "fewer blocks", "nothing may change", "failed"], rows)}

{more}"""


ACCURACY_HEAD = """## Does it help?

A slim MobileNetV2 is trained on few images; a far stronger ResNet, trained on many, is the frozen source. Two of the
target's residual branches are linked, a transfer every fourth step, stopping at 80 % of training; seed by seed all arms
share initial weights and batches. The controls carry no knowledge: a source whose linked weights are noise of the same
moments, or have their rows shuffled, or were never trained; noise of the size of the graft's own transfers at the same
steps.

**A gain of a graft counts only where it beats `plain` and `random source`.** Transfers that replace weights point the
same way for long and add up, while noise of the same size averages out: hence the default bound of half a percent of a
layer's norm. It was tightened from 2 % after a result on test images of Fashion-MNIST, in the safe direction only. What
a looser one can cost is in the [positive control](paper.md) (`MergeNet, trust 0.05`).
"""


def slim_budgets(found: dict) -> str:
    def each(row: dict, key: str, style: str) -> str:
        budgets = row.get("budgets", [])
        return " / ".join(format(b[key], style) if key in b else "-" for b in budgets)

    rows, ratios, met = [], [], []
    for name, row in found["rows"].items():
        if "budgets" not in row:
            rows.append([name, row["answer"], "", "", "", "", ""])
            continue
        for b in row["budgets"]:
            met += [b["of_budget"]] if "of_budget" in b else []
            if "foretold_ms" in b:
                b["ratio"] = b["foretold_ms"] / b["ms"]
                ratios.append(b["ratio"])
        table_s = f"{row['table_s']:.1f} s" if "table_s" in row else ""
        before = [b["before_ms"] for b in row["budgets"] if "before_ms" in b]
        costs = [f"{row['macs'] / 1e9:.2f} G", f"{min(before):.0f} ms" if before else "", table_s]
        cpu = f"{row['trace_s']:.1f} + {each(row, 'cpu_s', '.1f')} s"
        rows.append(
            [
                name,
                *costs[:2],
                each(row, "of_budget", ".3f"),
                cpu,
                costs[2],
                each(row, "ratio", ".2f"),
            ]
        )
    met.sort()
    ratios.sort()
    near = sum(0.98 <= value <= 1 + 1e-9 for value in met)
    off = sorted(abs(value - 1) for value in ratios)
    said = ""
    if ratios:
        said = (
            f"Within 2 % of the budget and not above it: {near} of {len(met)}, the furthest at {met[0]:.3f}. "
            f"Predicted by measured latency: median {ratios[len(ratios) // 2]:.2f}, "
            f"from {ratios[0]:.2f} to {ratios[-1]:.2f}; "
            f"{sum(value <= 0.15 for value in off)} of {len(off)} within 15 %.\n"
        )
    head = [
        "model",
        "MACs",
        "pass",
        "MACs / budget",
        "trace + slim, CPU",
        "table, CPU",
        "latency ratio",
    ]
    return f"""## Twelve models at three budgets

`slim(graph, budget={{"macs": share}})` at 0.7, 0.5 and 0.3, with no other argument, on random weights, one thread,
batch 1, images of 224 x 224 (320 for SSDLite), 128 tokens. MACs of the small model as `torch.utils.flop_counter`
counts them, by those asked for; CPU seconds of the trace and of each slimming (which times two passes), and of the
table of ops that latency is predicted from; predicted by measured latency of each small model. Two models were
measured at a time, on two cores that nothing else used, with an empty cache; all times are processor time.
{said}
    python -m examples.benchmarks.slim_budgets --out docs/benchmarks/slim_budgets.json

{table(head, rows)}
"""


PARTS: dict[str, tuple[str, dict[str, Section]]] = {
    "graphs": (
        "Seeing a model: what it costs, and whether it is right",
        {"import_cost": import_cost, "trace_cost": trace_cost, "page": page, "breaks": breaks},
    ),
    "edits": (
        "Editing a model: what it costs, and what is left of its function",
        {
            "cut_cost": cut_cost,
            "slim_budgets": slim_budgets,
            "slim_peer": slim_peer,
            "slim_peer_text": slim_peer_text,
            "distil_text": distil_text,
            "slim_default": slim_default,
            "vocabulary": vocabulary,
            "stream": stream,
            "round_trip": round_trip,
            "slim_start": slim_start,
            "restoration": restoration,
        },
    ),
    "assembly": (
        "Aligning and assembling models",
        {
            "planted": planted,
            "planted_diffs": planted_diffs,
            "alignment": alignment,
            "barrier": barrier,
            "zoo_memory": zoo_memory,
            "transplant": transplanted,
        },
    ),
    "grafts": (
        "Grafts: what a step costs, and whether it helps",
        {"step_cost": step_cost, "pull_cost": pull_cost, "adapter_cost": adapter_cost},
    ),
    "gpu": ("On a GPU", {"on_gpu": gpu, "carry": carried}),
    "paper": ("The paper's experiments", {}),
}
"""Part -> its title, and its sections by the file that each is made from."""


def main() -> None:
    """Write the parts, and the page that lists them."""
    listed = []
    (DOCS / "measurements").mkdir(exist_ok=True)
    for part, (title, sections) in PARTS.items():
        made = [make(found) for name, make in sections.items() if (found := read(name))]
        if part == "graphs":
            made.append(seen())
        if part == "grafts":
            made += helps()
        if part == "paper":
            made += experiments(read)
        heads = [line[3:] for text in made for line in text.splitlines() if line.startswith("## ")]
        listed.append(f"- [{title}](measurements/{part}.md): {'; '.join(heads)}")
        (DOCS / "measurements" / f"{part}.md").write_text("\n".join([f"# {title}\n", *made]))
    (DOCS / "measurements.md").write_text(HEAD + "\n".join(listed) + "\n")


def seen() -> str:
    """How many models are seen."""
    reports = [(f, read(f"coverage_{f}")) for f in ("torchvision", "hf", "timm")]
    head = ["family", "models", "traced", "check passed", "failed", "open", "freedom", "below 0.5"]
    head += ["halved, ran", "every class", "left", "CPU s", "saved"]
    walks = [found for f in ("hf", "timm") if (found := read(f"coverage_{f}_all"))]
    text = COVERAGE_HEAD + "\n" + table(head, [coverage(f, d) for f, d in reports if d]) + "\n"
    return f"{text}\n{halved(walks)}" if walks else text


def helps() -> list[str]:
    """What the default graft does to accuracy."""
    titles = {
        "accuracy_digits_200": "Digits, 200 training images",
        "accuracy_fashion_2000": "Fashion-MNIST, 2,000 training images",
    }
    found = {name: read(name) for name in titles}
    return [ACCURACY_HEAD, *(accuracy(titles[n], n, each) for n, each in found.items() if each)]


if __name__ == "__main__":
    main()
