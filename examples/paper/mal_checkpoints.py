"""Checkpoints that others trained: MiniLM-L6 receives MiniLM-L3, MobileNetV2 of ImageNet receives networks of here.

    python -m examples.paper.mal_checkpoints --scale small --root DIR --models DIR --cache out/zoo --out FILE

Texts. The encoder finds to each SQuAD question its passage (the sentences around an answer) among all others, by cosine
similarity of mean-pooled tokens: nothing is trained. Accuracy is recall at 1, loss the cross-entropy over passages at a
temperature of 0.05, articles of validation and test are other ones. Layers meet as the alignment finds it (`by order`)
or as declared (`every second`: 0, 1, 2 -> 1, 3, 5), and parts of them alone.

Images. A linear probe is fitted once on the base's features of CIFAR-10 images, upsampled; merged models are read with
that probe, and with one fitted to their own features. Sources are members of the zoo, and a MobileNetV2 of 3/4 of the
width, cut from the base and tuned here on images that the probe was not fitted to.

Each arm walks over the same merging factors on validation examples. The threshold is where accuracy leaves 1 point
below the base's (between two factors by a line; `held` is the factor before); `best` is the factor of the lowest
validation loss. `best` and `held` are read on test, with 95 % t intervals over the test examples of paired differences.
Arms: `matched`, `identity`, `random`, `shrink`, with base entries that meet nothing kept or shrunk (`keep`, `zero`: the
same where all is as wide).
`smoke` runs on random stand-ins, without a download: its figures are no result, and the report says so.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftlib import Mapping, trace
from graftlib_adapters.assembly import Curve, align, merged, problem, transplant

from ..common import results
from ..common.intervals import interval
from . import squad, zoo
from .mal_lambda import emptied

FACTORS = {
    "smoke": (0.2,),
    "small": (0.1, 0.2, 0.3, 0.5),
    "paper": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75),
}
TOLERANCE = 1.0  # points of accuracy
HOPELESS = 20.0  # points below the base, from which on a walk is not followed
TEMPERATURE = 0.05
Rows = tuple[Tensor, Tensor]  # loss in nats and hit (0 or 1) of every example


@dataclass(frozen=True)
class Exam:
    """How a model is read: (model) -> losses and hits of validation examples, and of test examples."""

    validation: Callable[[nn.Module], Rows]
    test: Callable[[nn.Module], Rows]


# ------------------------------------------------------------------------------------------------------------ the walks


class Merge:
    """One base and one source, aligned in several ways.

    Args:
        base: never changed.
        source: gives.
        examples: keywords or arguments of both models.
        links: patterns (source, base); None: what meets is found.
    """

    def __init__(
        self,
        base: nn.Module,
        source: nn.Module,
        examples: tuple[dict, dict],
        links: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        self.base, self.source = base, source
        graphs = [trace(m, **e) for m, e in zip((base, source), examples, strict=True)]
        mapping = Mapping(graphs[1], graphs[0]) if links else None
        for one, other in links or ():
            mapping.link(one, other)
        self.problem = problem(*graphs, mapping=mapping)
        self.alignments: dict[str, object] = {}

    def aligned(self, how: str):
        if how not in self.alignments:
            method = {"matched": "coordinate", "shrink": "coordinate"}.get(how, how)
            states = self.base.state_dict(), self.source.state_dict()
            if how == "shrink" and "matched" in self.alignments:
                self.alignments[how] = self.alignments["matched"]
            else:
                self.alignments[how] = align(self.problem, *states, method=method)
        return self.alignments[how]

    def model(self, arm: str, factor: float, layers: Sequence[str] | None = None) -> nn.Module:
        how, _, pad = arm.partition(", ")
        source = self.source
        if how == "shrink":
            source = copy.deepcopy(source)
            emptied(source)
        state = merged(
            self.base.state_dict(), self.aligned(how), source.state_dict(), factor,
            pad=pad or "keep", layers=layers,
        )  # fmt: skip
        made = copy.deepcopy(self.base)
        made.load_state_dict(state, strict=False)
        return made.eval()

    def facts(self) -> dict:
        """What meets, and how much of the alignment is the order that was there."""
        found = self.aligned("matched")
        kept = {
            str(self.problem.classes[i].base.members[0].fqn): float(
                (p.reads == torch.arange(len(p.reads))).float().mean()
            )
            for i, p in found.permutations.items()
        }
        return {
            "tensors": len(self.problem.pairs),
            "stay": len(self.problem.refused),
            "embeddings": [p.base for p in self.problem.pairs if "embeddings.weight" in p.base],
            "objective": {
                how: float(self.aligned(how).objective) for how in ("matched", "identity", "random")
            },
            "share_read_in_place": kept,
        }


def walk(merge: Merge, exam: Exam, base: Rows, arm: str, factors, layers=None) -> dict:
    """One arm on validation examples; the first factor below which all is lost is the last that is measured."""
    losses, accuracies = [mean(base[0])], [100 * mean(base[1])]
    for factor in factors:
        if accuracies[-1] is None or accuracies[-1] <= accuracies[0] - HOPELESS:
            losses.append(None)
            accuracies.append(None)
            continue
        found = exam.validation(merge.model(arm, factor, layers))
        losses.append(mean(found[0]))
        accuracies.append(100 * mean(found[1]))
    points = (0.0, *factors)
    lost = [-1e9 if a is None else a for a in accuracies]
    known = {p: v for p, v in zip(points, losses, strict=True) if v is not None}
    return {
        "factors": points,
        "val_loss": losses,
        "val_accuracy": accuracies,
        "threshold": Curve(points, tuple(lost)).threshold(TOLERANCE),
        "best": min(known, key=known.get),
    }


def held(row: dict) -> float:
    """The largest factor of a walk up to which all stay within the tolerance; its threshold lies there or behind."""
    start, last = row["val_accuracy"][0], 0.0
    for factor, accuracy in zip(row["factors"], row["val_accuracy"], strict=True):
        if accuracy is None or accuracy < start - TOLERANCE:
            break
        last = factor
    return last


def mean(values: Tensor) -> float:
    return float(values.double().mean())


def against(base: Rows, found: Rows) -> dict:
    """Means of a model, and its gains over the base with 95 % intervals over examples."""
    gains = (base[0] - found[0]).tolist(), (100.0 * (found[1] - base[1])).tolist()
    return {
        "loss": mean(found[0]),
        "accuracy": 100 * mean(found[1]),
        "loss_gain": interval(gains[0]),
        "accuracy_gain": interval(gains[1]),
    }


@dataclass(frozen=True)
class Desk:
    """Where pieces of work are kept, so that what is done is not done again."""

    args: argparse.Namespace

    def kept(self, name: str, work: Callable[[], dict]) -> dict:
        folder = self.args.cache / self.args.scale / "checkpoints"
        path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.json"
        new = not path.exists()
        found = results.cached(path, work)
        if new:
            shown = {k: v for k, v in found.items() if k != "read"}
            print(name, json.dumps(shown), flush=True)
        return found

    def rows(self, name: str, work: Callable[[], Rows]) -> Rows:
        """Losses and hits, example by example."""

        def listed() -> dict:
            return {"read": [part.tolist() for part in work()]}

        losses, hits = self.kept(name, listed)["read"]
        return torch.tensor(losses), torch.tensor(hits)


def studied(
    desk: Desk, title: str, merge: Merge, exam: Exam, arms: Sequence[str], base: dict[str, Rows]
) -> dict:
    """All arms of one pair, on test where validation chose each; and the first arm against the others there."""
    factors = FACTORS[desk.args.scale]
    rows, read = {}, {}
    for arm in arms:
        rows[arm] = desk.kept(
            f"{title}, {arm}", partial(walk, merge, exam, base["validation"], arm, factors)
        )
        rows[arm]["held"] = held(rows[arm])
        for kind in ("best", "held"):
            factor = rows[arm][kind]
            read[arm, kind] = base["test"]
            if factor:
                read[arm, kind] = desk.rows(
                    f"{title}, {arm}, test at {factor:.4f}",
                    lambda arm=arm, factor=factor: exam.test(merge.model(arm, factor)),
                )
            rows[arm][f"test_at_{kind}"] = against(base["test"], read[arm, kind])
    first = arms[0]
    minus = {arm: against(read[arm, "best"], read[first, "best"]) for arm in arms if arm != first}
    gains = {a: {k: v for k, v in row.items() if k.endswith("gain")} for a, row in minus.items()}
    facts = desk.kept(f"{title}, facts", merge.facts)
    return {"facts": facts, "arms": rows, f"{first} minus, at best": gains}


# ------------------------------------------------------------------------------------------------------------ the texts


class Similar(nn.Module):
    """Cosine similarities of the texts of a batch. As an output they leave the order of the encoder's units free."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def vectors(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(texts, width), of length 1."""
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        mask = attention_mask[..., None].to(found.last_hidden_state.dtype)
        pooled = (found.last_hidden_state * mask).sum(1) / mask.sum(1)
        return pooled / pooled.square().sum(-1, keepdim=True).sqrt()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        made = self.vectors(input_ids, attention_mask)
        return made @ made.T


Tokens = list[list[int]]


@torch.no_grad()
def retrieved(model: Similar, questions: Tokens, passages: Tokens) -> Rows:
    """Every question against all passages; its own has its number."""
    ask, tell = (embedded(model, texts) for texts in (questions, passages))
    scores = ask @ tell.T / TEMPERATURE
    own = torch.arange(len(ask))
    return F.cross_entropy(scores, own, reduction="none"), (scores.argmax(1) == own).float()


def embedded(model: Similar, texts: Tokens, batch: int = 25) -> Tensor:
    """(texts, width); texts of like length go together, so that little is padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    made: list[Tensor | None] = [None] * len(texts)
    for begin in range(0, len(order), batch):
        part = order[begin : begin + batch]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(texts[i]) for i in part], batch_first=True)
        mask = nn.utils.rnn.pad_sequence(
            [torch.ones(len(texts[i]), dtype=torch.int64) for i in part], batch_first=True
        )
        for i, vector in zip(part, model.vectors(ids, mask), strict=True):
            made[i] = vector
    return torch.stack(made)


def passage(question: squad.Question) -> str:
    """The sentence that holds the answer, with the one behind it."""
    at = question.answers[0][1]
    ends = [m.end() for m in re.finditer(r"[.!?] ", question.context)]
    begin = max([e for e in ends if e <= at], default=0)
    behind = [e for e in ends if e > at]
    return question.context[begin : behind[1] if len(behind) > 1 else len(question.context)]


def drawn(records: Sequence[squad.Question], count: int) -> list[squad.Question]:
    """One question of each paragraph, drawn by seed 0."""
    order = list(records)
    random.Random(0).shuffle(order)
    first: dict[str, squad.Question] = {}
    for each in order:
        if each.answers:
            first.setdefault(each.context, each)
    return list(first.values())[:count]


TEXTS = {"smoke": (12, 12), "small": (80, 200), "paper": (500, 2000)}
SECOND = [
    ("encoder.embeddings.**", "encoder.embeddings.**"),
    *((f"encoder.encoder.layer.{i}.**", f"encoder.encoder.layer.{2 * i + 1}.**") for i in range(3)),
]
PARTS = {
    "embeddings": ["encoder.embeddings"],
    "layer 1": ["encoder.encoder.layer.1"],
    "layer 3": ["encoder.encoder.layer.3"],
    "layer 5": ["encoder.encoder.layer.5"],
    "layers 1, 3, 5": [f"encoder.encoder.layer.{i}" for i in (1, 3, 5)],
}


def encoders(args) -> tuple[Similar, Similar]:
    from transformers import AutoModel, BertConfig, BertModel, logging

    if args.scale == "smoke":
        made = []
        for layers, seed in ((6, 0), (3, 1)):
            torch.manual_seed(seed)
            config = BertConfig(
                vocab_size=60, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
                intermediate_size=24, max_position_embeddings=16,
            )  # fmt: skip
            made.append(BertModel(config, add_pooling_layer=False))
    else:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        made = [
            AutoModel.from_pretrained(
                args.models / name, dtype=torch.float32, add_pooling_layer=False
            )
            for name in ("minilm-l6", "minilm-l3")
        ]
    base, source = (Similar(each.eval()) for each in made)
    return base, source


def questions(args) -> Iterator[tuple[Tokens, Tokens]]:
    """Of validation, then of test: questions and their passages, as token numbers."""
    counts = TEXTS[args.scale]
    if args.scale == "smoke":
        for seed, count in enumerate(counts):
            pick = random.Random(seed)
            passages = [[pick.randrange(3, 60) for _ in range(9)] for _ in range(count)]
            yield [each[2:6] for each in passages], passages
        return
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(args.models / "minilm-l6")
    records = squad.read(args.root / "squad" / "squad_v1.1_dev.json.gz")
    for which, count in zip(("validation", "test"), counts, strict=True):
        chosen = drawn(squad.split(records, which)[1], count)
        yield tuple(
            tokens([str(t) for t in texts], truncation=True, max_length=longest)["input_ids"]
            for texts, longest in (([q.text for q in chosen], 32), (map(passage, chosen), 64))
        )


def texts(desk: Desk) -> dict:
    """MiniLM-L6 <- MiniLM-L3."""
    args = desk.args
    base, source = encoders(args)
    exam = Exam(*(partial(retrieved, questions=q, passages=p) for q, p in questions(args)))
    start = {
        name: desk.rows(f"texts, base, {name}", partial(getattr(exam, name), base))
        for name in ("validation", "test")
    }
    ids = torch.randint(3, 50, (2, 8))
    example = {"kwargs": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}}
    alone = desk.rows("texts, source, test", partial(exam.test, source))
    report = {
        "examples": dict(zip(("validation", "test"), TEXTS[args.scale], strict=True)),
        "base": against(start["test"], start["test"]),
        "source": against(start["test"], alone),
        "pairs": {},
    }
    arms = ("matched", "identity", "random", "shrink")
    declared = Merge(base, source, (example, example), SECOND)
    report["pairs"]["every second"] = studied(
        desk, "texts, every second", declared, exam, arms, start
    )
    found = Merge(base, source, (example, example))
    report["pairs"]["by order"] = studied(desk, "texts, by order", found, exam, ("matched",), start)
    factors = FACTORS[args.scale][1:]
    report["parts"] = {
        name: desk.kept(
            f"texts, {name}",
            partial(walk, declared, exam, start["validation"], "matched", factors[-2:], layers),
        )
        for name, layers in PARTS.items()
    }
    return report


# ----------------------------------------------------------------------------------------------------------- the images


class Probed(nn.Module):
    """A network's features under a linear probe."""

    def __init__(self, body: nn.Module, probe: nn.Linear) -> None:
        super().__init__()
        self.body, self.probe = body, probe

    def forward(self, x: Tensor) -> Tensor:
        return self.probe(self.body(x))


def body(network: nn.Module) -> nn.Module:
    """A MobileNetV2 up to its pooled features."""
    return nn.Sequential(network.features, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@torch.no_grad()
def features(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model.eval()(part) for part in x.split(50)])


def fitted(found: Tensor, y: Tensor, ridge: float = 10.0) -> nn.Linear:
    """Ridge regression of one-hot labels, of which four times the value are the logits."""
    found, goal = found.double(), F.one_hot(y, 10).double()
    middle, level = found.mean(0), goal.mean(0)
    x = found - middle
    weight = torch.linalg.solve(
        x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (goal - level)
    )
    probe = nn.Linear(x.shape[1], 10)
    with torch.no_grad():
        probe.weight.copy_(4 * weight.T)
        probe.bias.copy_(4 * (level - middle @ weight))
    return probe


@torch.no_grad()
def classified(model: nn.Module, x: Tensor, y: Tensor) -> Rows:
    outputs = features(model, x)
    return F.cross_entropy(outputs, y, reduction="none"), (outputs.argmax(1) == y).float()


IMAGES = {"smoke": (40, 30, 30, 32), "small": (400, 100, 250, 64), "paper": (5000, 1000, 2000, 128)}
TUNED = {"smoke": (40, 3), "small": (1000, 40), "paper": (2000, 500)}


def mobilenet(scale: str, width: float = 1.0) -> nn.Module:
    """An untrained one; the stand-in has two blocks, and 20 features in place of 1280."""
    from torchvision.models import MobileNetV2
    from torchvision.ops import Conv2dNormActivation

    if scale != "smoke":
        return MobileNetV2(width_mult=width).eval()
    made = MobileNetV2(width_mult=width, inverted_residual_setting=[[1, 8, 1, 1], [3, 8, 1, 2]])
    made.features[-1] = Conv2dNormActivation(8, round(20 * width), kernel_size=1)
    return made.eval()


def pretrained(args) -> nn.Module:
    """ImageNet's weights, or those of the stand-in."""
    from safetensors.torch import load_file

    torch.manual_seed(0)
    made = mobilenet(args.scale)
    if args.scale != "smoke":
        made.load_state_dict(load_file(args.models / "mobilenet_v2-imagenet" / "model.safetensors"))
    return made


def pictures(args) -> tuple[dict[str, tuple[Tensor, Tensor]], zoo.Images]:
    """Images for the probe, for the slim source, of validation and of test, upsampled."""
    held = zoo.load("digits" if args.scale == "smoke" else "cifar10", args.root, args.scale)
    probe, val, test, side = IMAGES[args.scale]
    own = TUNED[args.scale][0]
    parts = {
        "probe": tuple(t[:probe] for t in held.train),
        "slim": tuple(t[probe : probe + own] for t in held.train),
        "validation": tuple(t[:val] for t in held.val),
        "test": tuple(t[:test] for t in held.test),
    }
    return {
        name: (F.interpolate(x.expand(-1, 3, -1, -1), size=(side, side), mode="bilinear"), y)
        for name, (x, y) in parts.items()
    }, held


def slim(base: Probed, args, part: tuple[Tensor, Tensor]) -> Probed:
    """A MobileNetV2 of 3/4 of the width, cut from the base and tuned on images of its own."""
    torch.manual_seed(1)
    fresh = body(mobilenet(args.scale, 0.75))
    x = part[0][:2]
    width = fresh(x).shape[1]
    target = Probed(fresh, nn.Linear(width, 10)).eval()
    made = transplant(Mapping(trace(base, (x,)), trace(target, (x,)))).model
    steps = TUNED[args.scale][1]
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    order = torch.randperm(len(part[1]), generator=torch.Generator().manual_seed(0))
    made.train()
    for step in range(steps):
        batch = order.roll(-16 * step)[:16]
        optimizer.zero_grad()
        F.cross_entropy(made(part[0][batch]), part[1][batch]).backward()
        optimizer.step()
        schedule.step()
    return made.eval()


def sources(
    base: Probed, args, parts: dict, held: zoo.Images
) -> Iterator[tuple[str, nn.Module, dict]]:
    """(name, network, its example)."""
    yield "slim", slim(base, args, parts["slim"]), {"args": (parts["slim"][0][:2],)}
    folder = args.cache / args.scale
    for each in zoo.architectures(args.scale):
        member = zoo.member(each, held.name, folder)
        if each.name in args.members and member.path.exists():
            yield each.name, member.model(held.shape), {"args": (torch.zeros(2, *held.shape),)}


def images(desk: Desk) -> dict:
    """ImageNet's MobileNetV2 <- a slim relative, and <- members of the zoo."""
    args = desk.args
    parts, held = pictures(args)
    network = body(pretrained(args))
    x, y = parts["probe"]
    base = Probed(network, fitted(features(network, x), y)).eval()
    exam = Exam(
        *(partial(classified, x=parts[n][0], y=parts[n][1]) for n in ("validation", "test"))
    )
    start = {"validation": exam.validation(base), "test": exam.test(base)}
    names = ("probe", "validation", "test", "side")
    report = {
        "examples": dict(zip(names, IMAGES[args.scale], strict=True)),
        "base": against(start["test"], start["test"]),
        "pairs": {},
    }
    arms = (
        "matched, keep", "matched, zero", "identity, keep", "random, keep", "random, zero",
        "shrink, keep", "shrink, zero",
    )  # fmt: skip
    for name, source, own in sources(base, args, parts, held):
        merge = Merge(base, source, ({"args": (x[:2],)}, own))
        row = studied(desk, f"images, {name}", merge, exam, arms, start)
        if name == "slim":
            row["source"] = against(start["test"], exam.test(source))
        for arm in ("matched, keep", "shrink, keep"):
            row["arms"][arm]["refitted"] = desk.kept(
                f"images, {name}, {arm}, refitted",
                partial(refitted, merge, arm, FACTORS[args.scale], parts, start),
            )
        report["pairs"][name] = row
    return report


def refitted(
    merge: Merge, arm: str, factors: Sequence[float], parts: dict, start: dict[str, Rows]
) -> dict:
    """The walk with a probe fitted to each merged model; the factor of the lowest validation loss, on test."""
    tried = {}
    for factor in (0.0, *factors):
        model = merge.model(arm, factor)
        probe = fitted(features(model.body, parts["probe"][0]), parts["probe"][1])
        again = Probed(model.body, probe)
        tried[factor] = again, mean(classified(again, *parts["validation"])[0])
    best = min(tried, key=lambda factor: tried[factor][1])
    found = against(start["test"], classified(tried[best][0], *parts["test"]))
    return {"best": best, "val_loss": [loss for _, loss in tried.values()], "test": found}


def main(argv: Sequence[str] | None = None) -> None:
    torch.set_num_threads(1)
    parser = zoo.parser(__doc__.partition("\n")[0])
    parser.add_argument(
        "--models", type=Path, default=Path("models"), help="folder of the checkpoints"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=("texts", "images"), default=("texts", "images")
    )
    parser.add_argument(
        "--members",
        nargs="*",
        default=["vgg-w32-d2"],
        help="of the zoo, where trained",
    )
    parser.add_argument("--out", type=Path, default=Path("mal_checkpoints.json"))
    args = parser.parse_args(argv)
    report = results.load(args.out) if args.out.exists() else {}
    report.update(scale=args.scale, result=args.scale != "smoke", tolerance=TOLERANCE)
    for name, work in (("texts", texts), ("images", images)):
        if name in args.parts:
            report[name] = work(Desk(args))
    if args.scale == "smoke":
        print("THE MODELS ARE STAND-INS: these figures are no result")
    results.save(args.out, report)


if __name__ == "__main__":
    main()
