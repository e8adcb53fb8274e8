"""`prune_vocabulary`: a tokenizer with fewer tokens, and the model with the rows of these tokens.

In: a model, its tokenizer, texts or tokens. Out: both again, smaller, and which old id each new one was. Which rows
they are is read from the graph: of tables that ids of the input look up, of tensors that are tied to them, of what the
axis class of their rows lies on, and of output layers with one feature for each row.
Always true: texts are split into the same tokens as before, and on kept tokens the outputs are those of before; both
were run, the models in double precision, before anything is written.
Elsewhere: what a tokenizer needs beside the tokens that one names (`tokens`).
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..arguments import check
from ..disk import destination, make_folder, place_all, scratch_folder, unwritable
from ..errors import nearest, shown
from ..graph import LayerGraph, trace
from ..graph.axes import AxisClass, axis_classes
from ..graph.axes.trial import Trial, difference, without_numbers
from ..graph.caches import copy_to_edit, drop_caches
from ..graph.ops import arguments, does, name_of, spec
from ..graph.reads import find_reads
from ..graph.structure import unwrap
from ..graph.tensors import replaced, tensor_leaves
from ..graph.walk import inputs, reach
from ..reports import Report
from .config import config_state, refresh_config
from .edits import Rows, tensor_of
from .proof import TOLERANCE, fill, run_trial, trial_of, unproven
from .refusal import SurgeryError
from .stale import cut_rows
from .tokens import backend_of, encoded, first_difference, needed, rebuilt

__all__ = ["PrunedVocabulary", "VocabularyReport", "prune_vocabulary"]

# Fields and attributes that hold ids: of tokens that the model works with, and lists of tokens that it never gives.
_IDS = re.compile(r"(.*_)?token_(ids?|index)|padding_idx")
_HALF = re.compile("[\ud800-\udfff]")
_LISTS = ("suppress_tokens", "begin_suppress_tokens")
_MAPS = re.compile(r"(text_decoder_)?(lang|task)_to_(code_)?id")  # of Whisper, SeamlessM4T
_UNKNOWN = ("forced_decoder_ids", "bad_words_ids", "force_words_ids", "sequence_bias")


@dataclass(frozen=True)
class VocabularyReport(Report):
    """What became of a vocabulary.

    Attributes:
        tokens: how many rows there were, and are.
        bytes: of the model's parameters, before and after.
        parameters: FQNs of the tensors that lost rows.
        texts: how many were split by both tokenizers, into the same tokens.
        error: the largest difference of the outputs on kept tokens, relative to the largest number, in doubles.
    """

    tokens: tuple[int, int]
    bytes: tuple[int, int]
    parameters: tuple[str, ...]
    texts: int
    error: float

    def __str__(self) -> str:
        share = 1 - self.bytes[1] / self.bytes[0]
        return "\n".join(
            [
                f"{self.tokens[0]:,} tokens -> {self.tokens[1]:,}",
                f"{self.bytes[0]:,} bytes of parameters -> {self.bytes[1]:,} (-{share:.1%})",
                f"rows of {', '.join(self.parameters)}",
                f"{self.texts:,} texts are split as before; outputs change by {self.error:.0e}",
            ]
        )


@dataclass(frozen=True, eq=False)
class PrunedVocabulary(Report):
    """A model and its tokenizer after `prune_vocabulary`.

    Attributes:
        model: the edited one.
        tokenizer: of the kind that was given.
        index: (n,) int64 on the CPU: the old id of each new one, ascending.
        report: what was done; ``print`` it.
    """

    model: nn.Module
    tokenizer: Any
    index: Tensor
    report: VocabularyReport

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write both as Hugging Face does, for ``AutoModel`` and ``AutoTokenizer``: all files, or none.

        Raises:
            SurgeryError: one of them has no ``save_pretrained``, or the folder cannot be written.
        """
        writers: tuple[Any, ...] = (self.model, self.tokenizer)
        for each in writers:
            if not hasattr(each, "save_pretrained"):
                raise SurgeryError(
                    f"{type(each).__name__} has no save_pretrained.",
                    fix="save result.model.state_dict(), result.tokenizer and result.index in your own form",
                )
        home = make_folder(folder, error=SurgeryError)
        try:
            with scratch_folder(home / "config.json") as scratch:
                for writer in writers:
                    writer.save_pretrained(scratch)
                files = sorted(path for path in scratch.rglob("*") if path.is_file())
                places = [home / path.relative_to(scratch) for path in files]
                for place in places:
                    make_folder(place.parent, error=SurgeryError)
                moves = [destination(place, error=SurgeryError) for place in places]
                place_all([*zip(files, moves, strict=True)])
        except OSError as refusal:
            raise unwritable(folder, refusal, SurgeryError) from refusal

    def __str__(self) -> str:
        return str(self.report)


def prune_vocabulary(
    model: nn.Module | LayerGraph,
    tokenizer: Any,
    *,
    texts: Iterable[str] | None = None,
    tokens: Iterable[str | int] = (),
    inplace: bool = False,
) -> PrunedVocabulary:
    """Keep the tokens that texts are made of, or that are named, and the rows of a model that belong to them.

    Special and added tokens stay, tokens that a config names, and what the kept ones need so that texts are split as
    before (see `graftlib.surgery.tokens`); new ids are dense and in the old order. Rows behind the last token of the
    tokenizer, which fill some models up to a multiple, go. Kinds: BPE, also of bytes and as SentencePiece has it,
    WordPiece, Unigram, WordLevel. Words that the texts do not have are spelled with the kept tokens.

    Args:
        model: a Hugging Face model that takes ids alone; or the graph of any model, traced with ids.
        tokenizer: a fast tokenizer of Hugging Face, or a `tokenizers.Tokenizer`; not changed.
        texts: whose tokens are kept; read twice, so an iterator is held as a list.
        tokens: further ones to keep, by name or by id.
        inplace: edit the model itself; otherwise a copy is made.

    Returns:
        the model, the tokenizer, which old id each new one was, and a report. Attributes that say a number of tokens
        or an id follow, and so do the config and the generation config of a Hugging Face model.

    Raises:
        SurgeryError: an argument is not what it should be; a token is unknown; no table, or tables of several lengths,
            are looked up with ids; a text would be split otherwise; or the outputs on kept tokens would change. The
            model is as it was.

    Warns:
        SurgeryWarning: the config of a Hugging Face model cannot say the new size.
    """
    check(
        SurgeryError,
        model=(model, (nn.Module, LayerGraph)),
        texts=(texts, (Iterable, type(None))),
        tokens=(tokens, (Iterable,)),
        inplace=(inplace, bool),
    )
    backend = backend_of(tokenizer)
    named = _named(backend, tokens)
    texts = _as_texts(texts)
    if not texts and not named:
        raise SurgeryError("nothing says which tokens to keep.", fix="give texts=[…] or tokens=[…]")
    split = [array("l", ids) for ids in encoded(backend, texts)]
    used = {number for ids in split for number in ids}

    graph = model if isinstance(model, LayerGraph) else _traced(model, sorted(used | named))
    original = unwrap(graph.model, SurgeryError)
    table = _table(graph, max(backend.get_vocab().values()) + 1)
    keep = used | named | {*(getattr(tokenizer, "all_special_ids", None) or ())}
    keep |= _ids_of(original, table.size)
    index = torch.tensor(sorted(needed(backend, keep)), device="cpu")
    smaller = rebuilt(tokenizer, index.tolist())
    if other := first_difference(split, backend_of(smaller), index, texts):
        raise SurgeryError(
            "a text would be split otherwise.",
            where={"first": other},
            why="this tokenizer does not choose among tokens as its kind does",
            fix="keep the tokens that it names with tokens=[…]",
        )

    rows: Rows = dict.fromkeys(table.places, index)
    before = sum(p.numel() * p.element_size() for p in original.parameters())

    def edit(edited: nn.Module) -> nn.Module:
        _follow_ids(edited, {old: new for new, old in enumerate(index.tolist())}, table.size)
        state = config_state(edited, graph)
        cut_rows(edited, rows)
        _follow_size(edited, table.size, len(index))
        refresh_config(edited, state, {}, stacklevel=4)
        return edited

    pruned = edit(copy_to_edit(original, graph, SurgeryError))
    error = _prove(graph, original, pruned, rows, index, table.ids)
    if inplace:
        drop_caches(original, graph, SurgeryError)
        pruned = edit(original)
    after = sum(p.numel() * p.element_size() for p in pruned.parameters())
    names = tuple(dict.fromkeys(fqn for fqn, _ in table.places))
    report = VocabularyReport((table.size, len(index)), (before, after), names, len(texts), error)
    return PrunedVocabulary(pruned, smaller, index, report)


def _as_texts(texts: Iterable[str] | None) -> list[str]:
    if isinstance(texts, str):
        raise SurgeryError("texts is one text.", fix="give a list of texts: texts=[…]")
    every = [] if texts is None else list(texts)
    if other := next((each for each in every if not isinstance(each, str)), None):
        raise SurgeryError(f"{shown(other)} is no text.", fix="give strings")
    if other := next((each for each in every if _HALF.search(each)), None):
        raise SurgeryError(
            f"{shown(other)} is no text.",
            why="it holds half of a surrogate pair, which no tokenizer takes",
            fix="read the file with errors='replace'",
        )
    return every


def _named(backend: Any, tokens: Iterable[str | int]) -> set[int]:
    """The ids of tokens that are given by name or by id."""
    ids = backend.get_vocab()
    known, named = set(ids.values()), set()
    for each in [tokens] if isinstance(tokens, str) else tokens:
        number = ids.get(each) if isinstance(each, str) else each
        if isinstance(each, bool) or number not in known:
            raise SurgeryError(
                f"the tokenizer has no token {shown(each)}.",
                near=lambda: nearest(str(each), [*ids]),  # noqa: B023
                fix="name tokens as in tokenizer.get_vocab(), or their ids",
            )
        named.add(int(number))
    return named


def _traced(model: nn.Module, ids: Sequence[int]) -> LayerGraph:
    """The graph of a Hugging Face model on some ids."""
    config: Any = getattr(model, "config", None)
    if config is None:
        raise SurgeryError(
            f"{type(model).__name__} has no config that says what it takes.",
            fix="trace it with ids of tokens, and give the graph: prune_vocabulary(trace(model, (ids,)), tokenizer, …)",
        )
    row = torch.tensor([ids[i % len(ids)] for i in range(16)], device="cpu").view(2, 8)
    example = {getattr(model, "main_input_name", "input_ids"): row}
    if getattr(config, "is_encoder_decoder", False):
        example["decoder_input_ids"] = row
    return trace(model, (), example)


# --- the rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """What is looked up with ids of tokens.

    Attributes:
        places: (FQN, axis) of every axis with a place for each token.
        size: how many places that are.
        ids: names of the inputs that are ids.
    """

    places: tuple[tuple[str, int], ...]
    size: int
    ids: frozenset[str]


def _table(graph: LayerGraph, least: int) -> _Table:
    """The vocabulary of a graph: tables of `least` rows or more; segments have fewer."""
    every: set[str] = set()
    sizes: dict[str, int] = {}
    dims = 0
    for node in graph.ops.nodes:
        if node.op != "call_function" or spec(node).kind != "embedding":
            continue
        table, index = arguments(node).get("weight"), arguments(node).get("indices")
        if table is None or index is None or table.op != "get_attr":
            continue
        sources = [index, *(reach([index], inputs, _moves) if _moves(index) else ())]
        ids = {str(each.target) for each in sources if each.op == "placeholder"}
        length = int(table.meta["val"].shape[0])
        if ids and length >= least:
            every |= ids
            sizes[str(table.target)], dims = length, index.meta["val"].ndim
    if len({*sizes.values()}) != 1:
        listed = ", ".join(f"'{fqn}' of {n} rows" for fqn, n in sizes.items())
        raise SurgeryError(
            f"'{graph.name}' looks up {'tables of several lengths' if sizes else 'no table'} with its inputs.",
            where={"tables": listed or "none", "tokens": least},
            why="the rows of tokens are those that ids of the input look up, as many as the tokenizer has or more",
            fix="trace with ids of tokens and without positions: trace(model, (), {'input_ids': ids}); for fewer rows "
            "than tokens model.resize_token_embeddings(len(tokenizer)) first",
        )
    size = next(iter(sizes.values()))
    places = dict.fromkeys((fqn, 0) for fqn in sizes)
    for each in axis_classes(graph):
        members = [(m.fqn, m.axis) for m in each.members]
        if each.size == size and (places.keys() & members or _gives(graph, each, dims)):
            places |= dict.fromkeys(members)
    return _Table(tuple(_once(graph.model, places)), size, frozenset(every))


def _moves(node: fx.Node) -> bool:
    moved = does(node) == "moves" or name_of(node) in ("masked_fill", "where", "to", "_to_copy")
    return node.op == "call_function" and moved


def _gives(graph: LayerGraph, each: AxisClass, dims: int) -> bool:
    """Whether a class is what output layers give for each token, and nothing reads it."""
    known = {p.fqn: p.axes for p in graph.parameters()}
    mine = [m for m in each.members if m.fqn in known]
    reads = find_reads(graph.ops, {m.fqn for m in mine})
    shapes = [tuple(one.node.meta["val"].shape) for every in reads.values() for one in every]
    tokens = any(len(shape) == dims + 1 and shape[-1] == each.size for shape in shapes)
    made = all(known[m.fqn][m.axis] == "out" for m in mine)
    return each.frozen_by == "the output" and made and tokens


def _once(model: nn.Module, places: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Without further names of the same tensor."""
    first = {(id(tensor_of(model, fqn)), axis): (fqn, axis) for fqn, axis in reversed([*places])}
    return [place for place in places if place in first.values()]


# --- ids and sizes that modules and configs hold ----------------------------------------------------------------------


def _holders(model: nn.Module, size: int) -> Iterator[dict[str, Any]]:
    """The fields of every config and module, each once; not of tables of another length."""
    seen: set[int] = set()
    queue: list[Any] = [
        each
        for module in model.modules()
        for each in (module, *(vars(module).get(n) for n in ("config", "generation_config")))
    ]
    for each in queue:  # grows while it is walked
        if each is None or id(each) in seen or not hasattr(each, "__dict__"):
            continue
        seen.add(id(each))
        if vars(each).get("num_embeddings", size) == size:
            yield vars(each)
        if not isinstance(each, nn.Module):
            queue += [inner for inner in vars(each).values() if hasattr(inner, "to_dict")]


def _id_fields(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        known = _MAPS if isinstance(value, dict) else _IDS
        every = _every(value)
        if (
            (known.fullmatch(name) or name in _LISTS)
            and every
            and all(type(n) is int for n in every)
        ):
            yield name, value


def _every(value: Any) -> list[Any]:
    """The numbers that a field holds: one, those of a list, those that a dict maps names to."""
    if isinstance(value, dict):
        return [*value.values()]
    return [*value] if isinstance(value, (list, tuple)) else [value]


def _ids_of(model: nn.Module, size: int) -> set[int]:
    """The ids that configs and modules name, but for those of tokens that the model never gives."""
    ids: set[int] = set()
    for fields in _holders(model, size):
        for name in _UNKNOWN:
            if fields.get(name):
                raise SurgeryError(
                    f"'{name}' of the generation config holds ids of tokens, and is not followed here.",
                    fix=f"model.generation_config.{name} = None, and set it anew for the new ids",
                )
        for name, value in _id_fields(fields):
            if name not in _LISTS:
                ids |= {*_every(value)}
    return {number for number in ids if 0 <= number < size}


def _follow_ids(model: nn.Module, place: Mapping[int, int], size: int) -> None:
    """New ids in configs and modules, in place; in lists of tokens that are never given, those that are there."""
    for fields in _holders(model, size):
        for name, value in [*_id_fields(fields)]:
            if name in _LISTS:
                fields[name] = [place[number] for number in value if number in place]
            elif isinstance(value, dict):
                fields[name] = {word: place.get(number, number) for word, number in value.items()}
            elif isinstance(value, (list, tuple)):
                fields[name] = type(value)(place.get(number, number) for number in value)
            else:
                fields[name] = place.get(value, value)


def _follow_size(model: nn.Module, old: int, new: int) -> None:
    for module in model.modules():
        if type(vars(module).get("vocab_size")) is int and module.vocab_size == old:
            module.vocab_size = new  # type: ignore[assignment]


# --- the proof --------------------------------------------------------------------------------------------------------


def _prove(
    graph: LayerGraph,
    model: nn.Module,
    edited: nn.Module,
    rows: Rows,
    index: Tensor,
    named: Container[str],
) -> float:
    """How far the outputs on kept tokens move; raises where they do, or where that would not show."""
    example = graph.example
    leaves = tensor_leaves(example)
    inputs_of = [str(node.target) for node in graph.ops.nodes if node.op == "placeholder"]
    ids = {i for i, name in enumerate(inputs_of) if name in named}
    new = [_kept(leaf, index) if i in ids else leaf for i, leaf in enumerate(leaves)]

    def trial(of: nn.Module, change: Callable[[Tensor], Tensor]) -> Trial:
        values = [change(leaf) if i in ids else leaf for i, leaf in enumerate(new)]
        return trial_of(graph, of, example=replaced(example, values))

    unknown = [fqn for fqn, value in edited.named_parameters() if value.is_meta]
    before = trial(model, lambda leaf: index[leaf])
    outputs = run_trial(before, graph)

    def results(change: Callable[[Tensor], Tensor]) -> list[Tensor]:
        after = trial(edited, change)
        fill(after.model, before.model, rows, unknown)
        return run_trial(after, graph)

    mine = results(lambda leaf: leaf)
    error = difference([_selected(a, b, index) for a, b in zip(outputs, mine, strict=True)], mine)
    if error > TOLERANCE:
        raise SurgeryError(
            "the outputs on kept tokens would change.",
            where={"relative change": f"{error:.1e}"},
            why="the code computes with ids of tokens, as where positions are counted from the id of padding",
            fix="keep the tokens in front of that id as well, so that it stays: tokens=range(…)",
        )
    shifted = results(lambda leaf: (leaf + 1) % len(index))
    if without_numbers(mine) or difference(mine, shifted) <= 100 * TOLERANCE:
        raise unproven(
            f"nothing proves that '{graph.name}' gives the same for kept tokens.",
            "its outputs do not depend on the ids of the traced input",
        )
    return error


def _kept(ids: Tensor, index: Tensor) -> Tensor:
    """New ids in the place of old ones; of tokens that went, and where there are no values, some others."""
    random = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(index), ids.shape, generator=random, device="cpu")
    if ids.is_meta:
        return drawn.to(ids.dtype)
    place = torch.searchsorted(index, ids.long()).clamp(max=len(index) - 1)
    return torch.where(index[place] == ids, place, drawn).to(ids.dtype)


def _selected(old: Tensor, new: Tensor, index: Tensor) -> Tensor:
    """The kept tokens of an output that has a place for each."""
    if old.ndim == new.ndim:
        for axis, (one, other) in enumerate(zip(old.shape, new.shape, strict=True)):
            if one != other == len(index):
                old = old.index_select(axis, index)
    return old
