"""Walks of single pairs in fine steps with every control, and assemblies of a whole zoo chosen on validation images.

    python -m examples.paper.mal_lambda --scale small --root DIR --cache out/zoo --out out/laws

Draws the test loss over the merging factor for one base a family; sources are the next member of its family and the
first of the next family. Then assembles, for the same bases, all other members of the zoo: modules and factors are
chosen by validation accuracy, and the result is read on test images beside the base's. Controls go through the same
choice: sources whose tensors are scrambled, and sources that hold nothing (shrinking). Writes `lambda.json`.
"""

from __future__ import annotations

import time

import torch
from torch import nn

from graftlib_adapters.assembly import Curve, Search, assemble
from graftlib_adapters.assembly.connectivity import CONTROLS
from graftlib_adapters.assembly.pictures import curves_png

from ..common import results
from ..common.training import loss_and_accuracy
from . import mal, zoo

CHOSEN_ON = {"smoke": 200, "small": 500, "paper": 5000}  # validation images, for assemblies


def main() -> None:
    setup = mal.setting(
        __doc__.partition("\n")[0],
        [
            ("--minutes", {"type": float, "default": 1e9, "help": "CPU minutes for each data set"}),
            ("--others", {"type": int, "default": 1000, "help": "sources of an assembly at most"}),
        ],
    )
    setup.args.out.mkdir(parents=True, exist_ok=True)
    report: dict = {"scale": setup.scale, "walks": {}, "assemblies": {}}
    for name in setup.data:
        began = time.process_time()
        for base, source in pairs(setup.members[name]):
            report["walks"].update(walk(setup, name, base, source))
        for base in bases(setup.members[name]):
            if time.process_time() - began < 60 * setup.args.minutes:
                report["assemblies"][f"{name}: {base.name}"] = assembled(setup, name, base)
    for title, row in report["assemblies"].items():
        print(title, {arm: round(found["test gain"], 2) for arm, found in row.items()}, flush=True)
    results.save(setup.args.out / "lambda.json", report)


def bases(members: list[zoo.Member]) -> list[zoo.Member]:
    """The first member of each family."""
    first: dict[str, zoo.Member] = {}
    for member in members:
        first.setdefault(member.architecture.family, member)
    return list(first.values())


def pairs(members: list[zoo.Member]):
    """A base with the next member of its own family, and with the first of the next."""
    firsts = bases(members)
    for base, other in zip(firsts, [*firsts[1:], firsts[0]], strict=True):
        kin = [m for m in members if m.architecture.family == base.architecture.family]
        yield from ((base, source) for source in (*kin[1:2], other) if source is not base)


def walk(setup: mal.Setting, name: str, base: zoo.Member, source: zoo.Member) -> dict:
    points = [
        i / (2 * (mal.POINTS[setup.scale] - 1)) for i in range(2 * mal.POINTS[setup.scale] - 1)
    ]
    result = results.cached(
        setup.cached("lambda", name, base.name, source.name),
        lambda: mal.walked(base, source, setup.data, setup.scale, arms=CONTROLS, factors=points),
    )
    if "refused" in result:
        return {}
    curves = {}
    for arm in CONTROLS:
        found = mal.curve(result, arm, "test_loss")
        curves[arm] = Curve(found.factors, found.scores, arm, "base", arm.split(", ")[1])
    title = f"{name}: minus the test loss, {source.name} into {base.name}"
    file = setup.args.out / f"lambda-{name}-{base.name}-{source.name}.png"
    file.write_bytes(curves_png(curves, title))
    return {f"{name}: {base.name} <- {source.name}": {a: c.to_json() for a, c in curves.items()}}


def assembled(setup: mal.Setting, name: str, base: zoo.Member) -> dict:
    """What a zoo adds to a base, and what the same choice makes of sources that know nothing."""
    images = setup.data[name]
    others = [m for m in setup.members[name] if m.name != base.name][: setup.args.others]
    found = {}
    for arm, spoil in (("zoo", None), ("scrambled", scrambled), ("nothing", emptied)):
        path = setup.cached("assemblies", name, base.name, arm, str(len(others)))
        found[arm] = results.cached(
            path, lambda s=spoil: once(setup, base, [spoiled(m, images, s) for m in others], images)
        )
    return found


def once(setup: mal.Setting, base: zoo.Member, sources: list, images: zoo.Images) -> dict:
    val = tuple(t[: CHOSEN_ON[setup.scale]] for t in images.val)
    model = base.model(images.shape).to(memory_format=torch.channels_last)
    made = assemble(
        model,
        sources,
        args=(torch.zeros(2, *images.shape),),
        evaluate=lambda m: -loss_and_accuracy(m, *val)[0],
        pad="keep",
        search=Search(factors=(0.05, 0.1, 0.2, 0.4)),
    )
    before, after = (
        loss_and_accuracy(model, *images.test),
        loss_and_accuracy(made.model, *images.test),
    )
    return {
        "test gain": after[1] - before[1],
        "test loss gain": before[0] - after[0],
        "merged": len(made.record.accepted),
        "seen": len(made.record.steps),
        "base": before[1],
    }


def spoiled(member: zoo.Member, images: zoo.Images, how) -> object:
    if how is None:
        return mal.entry(member, images.shape)
    model = member.model(images.shape)
    how(model)
    return (model, (torch.zeros(2, *images.shape),))


def scrambled(model: nn.Module) -> None:
    """Every tensor's entries in a drawn order: the same sizes and scales, no knowledge."""
    random = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        order = torch.randperm(tensor.numel(), generator=random)
        tensor.copy_(tensor.flatten()[order].view(tensor.shape))


def emptied(model: nn.Module) -> None:
    """Nothing: zeros, and ones for running variances."""
    for name, tensor in model.state_dict().items():
        tensor.fill_(1 if name.endswith("running_var") else 0)


if __name__ == "__main__":
    main()
