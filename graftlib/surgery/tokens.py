"""A fast tokenizer with fewer tokens, by its JSON (the library `tokenizers`).

In: a tokenizer and the ids to keep. Out: the ids with all that these need, and a tokenizer whose ids are dense and in
the old order. Always true: a text whose tokens are all kept is split into the same tokens, as what competed with them
only became fewer; `first_difference` checks it on given texts. Needed are, beside the tokens:

- added tokens, and all that the post-processor, the padding and the model of the tokenizer name;
- the characters of the kept tokens (of byte-level ones all bytes), so that other words can still be spelled;
- for BPE what is merged on the way to a kept token; for Unigram the token of the least score, which sets the cost of an
  unknown character.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, pairwise, zip_longest
from typing import Any

from torch import Tensor

from ..errors import shown
from .refusal import SurgeryError

__all__ = ["backend_of", "encoded", "first_difference", "needed", "rebuilt"]

_BATCH = 256  # texts
# Attributes of tokenizers that are ids.
_OF_TOKENS = re.compile(r"(.*_)?(token_(ids?|index)|(prefix|suffix)_tokens|cur_lang(_code)?(_id)?)")


def backend_of(tokenizer: Any) -> Any:
    """The `tokenizers.Tokenizer` of a fast tokenizer of Hugging Face, or the tokenizer itself.

    Raises:
        SurgeryError: it has none, or one of a kind that is not known.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not (hasattr(backend, "to_str") and hasattr(backend, "encode_batch_fast")):
        raise SurgeryError(
            f"{type(tokenizer).__name__} is no fast tokenizer.",
            why="its vocabulary is edited as the JSON of the library `tokenizers`",
            fix="load it with AutoTokenizer.from_pretrained, or convert it to a tokenizer.json",
        )
    kind = type(backend.model).__name__
    if kind not in _NEEDED:
        raise SurgeryError(
            f"a vocabulary of type {kind} is not known; known: {', '.join(_NEEDED)}."
        )
    return backend


def encoded(backend: Any, texts: Iterable[str]) -> Iterator[list[int]]:
    """The ids of each text, special tokens with them, neither cut short nor padded."""
    plain = type(backend).from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    source = iter(texts)
    while batch := list(islice(source, _BATCH)):
        for each in plain.encode_batch_fast(batch):
            yield each.ids


def first_difference(
    ids: Iterable[Sequence[int]], new: Any, index: Tensor, texts: Iterable[str]
) -> str:
    """Where another tokenizer first splits a text otherwise, in words; empty where it does not.

    Args:
        ids: of each text, as it was split.
        new: the other one, a backend.
        index: (n,) the old id of each new one.
        texts: to split.
    """
    place = {old: i for i, old in enumerate(index.tolist())}
    for number, (old, got) in enumerate(zip(ids, encoded(new, texts), strict=True)):
        due = [place[each] for each in old]
        if due != got:
            pairs = zip_longest(due, got)
            at = next(i for i, (was, now) in enumerate(pairs) if was != now)
            was, now = (
                shown(new.id_to_token(each[at])) if at < len(each) else "nothing"
                for each in (due, got)
            )
            return f"text {number}, token {at}: {was} became {now}"
    return ""


def needed(backend: Any, ids: Iterable[int]) -> set[int]:
    """The ids with all that these need, as above."""
    document = json.loads(backend.to_str())
    model = document["model"]
    keep = {*ids}

    def note(number: int) -> int:
        keep.add(number)
        return number

    _change_ids(document, note)
    numbers = _numbers(model)
    if model.get("unk_token") in numbers:
        keep.add(numbers[model["unk_token"]])
    added = {each["id"] for each in document["added_tokens"]}
    tokens = {token for token, number in numbers.items() if number in keep - added}
    tokens |= _alphabet(document, tokens, numbers)
    tokens |= _NEEDED[model["type"]](model, tokens, numbers)
    return keep | {numbers[token] for token in tokens}


def rebuilt(tokenizer: Any, ids: Sequence[int]) -> Any:
    """A copy of a tokenizer with these ids alone, numbered as they stand: token ``ids[i]`` gets the id i.

    Raises:
        SurgeryError: the library gives the tokens other ids.
    """
    old = backend_of(tokenizer)
    document = json.loads(old.to_str())
    model, place = document["model"], {number: i for i, number in enumerate(ids)}
    document["added_tokens"] = [each for each in document["added_tokens"] if each["id"] in place]
    _change_ids(document, lambda number: place[number])
    tokens = {token: place[n] for token, n in _numbers(model).items() if n in place}
    if model["type"] == "Unigram":
        model["vocab"] = [each for each in model["vocab"] if each[0] in tokens]
    else:
        model["vocab"] = tokens
    if model["type"] == "BPE":
        model["merges"] = [
            [one, other]
            for one, other in map(_pair, model["merges"])
            if {one, other, _merged(model, one, other)} <= tokens.keys()
        ]
    new = type(old).from_str(json.dumps(document))
    due = {token: place[number] for token, number in old.get_vocab().items() if number in place}
    if new.get_vocab() != due:
        other = next(token for token in due if new.token_to_id(token) != due[token])
        raise SurgeryError(
            f"the tokenizer gives {shown(other)} the id {new.token_to_id(other)}, not {due[other]}.",
            why="an added token stands among the tokens of the model, or two tokens have one id",
            fix="add tokens behind those of the model",
        )
    if tokenizer is old:
        return new
    twin = copy.deepcopy(tokenizer)
    twin._tokenizer = new
    _follow(twin, old.token_to_id, place)
    for name, value in (("_vocab", model["vocab"]), ("_merges", model.get("merges"))):
        if name in vars(twin):  # what some classes keep for their slow forms
            setattr(twin, name, value)
    return twin


def _follow(
    tokenizer: Any, number_of: Callable[[str], int | None], place: Mapping[int, int]
) -> None:
    """New ids in the attributes of a tokenizer, in place: ``lang_code_to_id``, ``cur_lang_code``, ``prefix_tokens``.

    Of a dict the pairs of a token and its id, either way; those of tokens that go are left out.
    """
    fields = vars(tokenizer)
    for name, value in [*fields.items()]:
        if type(value) is dict:
            pairs = [_followed(*pair, number_of, place) for pair in value.items()]
            fields[name] = dict(pair for pair in pairs if pair is not None)
        elif _OF_TOKENS.fullmatch(name):
            every = value if isinstance(value, (list, tuple)) else [value]
            if all(type(number) is int and number in place for number in every):
                news = [place[number] for number in every]
                fields[name] = type(value)(news) if every is value else news[0]


def _followed(
    key: Any, value: Any, number_of: Callable[[str], int | None], place: Mapping[int, int]
) -> tuple[Any, Any] | None:
    """An entry of a dict with the new id, where it is a token and its id; None where the token goes."""
    token, number = (value, key) if isinstance(value, str) else (key, value)
    if type(token) is not str or type(number) is not int or number_of(token) != number:
        return key, value
    if number not in place:
        return None
    return (place[number], token) if token is value else (token, place[number])


# --- the JSON ---------------------------------------------------------------------------------------------------------


def _numbers(model: Any) -> dict[str, int]:
    """Token -> id."""
    if model["type"] == "Unigram":
        return {token: number for number, (token, _) in enumerate(model["vocab"])}
    numbers: dict[str, int] = model["vocab"]
    return numbers


def _change_ids(document: Any, change: Callable[[int], int]) -> None:
    """Change every id that stands in a document beside its vocabulary, in place."""
    for each in document["added_tokens"]:
        each["id"] = change(each["id"])
    if document["padding"]:
        document["padding"]["pad_id"] = change(document["padding"]["pad_id"])
    if document["model"].get("unk_id") is not None:
        document["model"]["unk_id"] = change(document["model"]["unk_id"])
    for each in _parts(document["post_processor"]):
        for word in ("sep", "cls"):  # BertProcessing, RobertaProcessing
            if word in each:
                each[word][1] = change(each[word][1])
        for special in (each.get("special_tokens") or {}).values():  # TemplateProcessing
            special["ids"] = [change(number) for number in special["ids"]]


def _parts(step: Any) -> Iterator[Any]:
    """A step of a tokenizer, with those inside of a sequence."""
    if not step:
        return
    yield step
    for name in ("processors", "pretokenizers", "normalizers"):
        for each in step.get(name, ()):
            yield from _parts(each)


# --- what tokens need -------------------------------------------------------------------------------------------------


def _alphabet(document: Any, tokens: Iterable[str], numbers: dict[str, int]) -> set[str]:
    """The tokens of single characters: of all bytes, or of those characters that `tokens` are made of."""
    from tokenizers.pre_tokenizers import ByteLevel

    model = document["model"]
    steps = chain(_parts(document["pre_tokenizer"]), _parts(document["normalizer"]))
    by_bytes = any(each["type"] == "ByteLevel" for each in steps)
    characters = set(ByteLevel.alphabet()) if by_bytes else {c for token in tokens for c in token}
    prefix, suffix = _ends(model)
    forms = {f"{p}{c}{s}" for c in characters for p in {"", prefix} for s in {"", suffix}}
    if model.get("byte_fallback"):
        forms |= {f"<0x{byte:02X}>" for byte in range(256)}
    return forms & numbers.keys() if model["type"] != "WordLevel" else set()


def _ends(model: Any) -> tuple[str, str]:
    """What stands before a token inside of a word, and behind one at its end."""
    return model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""


def _nothing(model: Any, tokens: set[str], numbers: dict[str, int]) -> set[str]:
    """The longest match is the longest of fewer, too."""
    return set()


def _least(model: Any, tokens: set[str], numbers: dict[str, int]) -> set[str]:
    return {min(model["vocab"], key=lambda each: each[1])[0]}


def _built(model: Any, tokens: set[str], numbers: dict[str, int]) -> set[str]:
    """What stands on the way from characters to each token: every merge on it takes two kept tokens."""
    rank = {pair: place for place, pair in enumerate(map(_pair, model["merges"]))}
    prefix, suffix = _ends(model)
    way: set[str] = set()
    for token in tokens:
        inside = bool(prefix) and token.startswith(prefix)
        body = [*token[len(prefix) * inside : len(token) - len(suffix) * token.endswith(suffix)]]
        if not body:
            continue
        symbols = [c if i == 0 and not inside else prefix + c for i, c in enumerate(body)]
        symbols[-1] += suffix if token.endswith(suffix) else ""
        passed = {*symbols}
        while len(symbols) > 1:
            pairs = [(rank.get(pair), i) for i, pair in enumerate(pairwise(symbols))]
            known = [(place, i) for place, i in pairs if place is not None]
            if not known:
                break
            _, i = min(known)
            symbols[i : i + 2] = [_merged(model, *symbols[i : i + 2])]
            passed.add(symbols[i])
        if symbols == [token]:  # else a byte, or a whole word that is never merged
            way |= passed
    return way & numbers.keys()


def _pair(merge: Any) -> tuple[str, str]:
    one, other = merge.split(" ") if isinstance(merge, str) else merge
    return one, other


def _merged(model: Any, one: str, other: str) -> str:
    return one + other[len(_ends(model)[0]) :]


_NEEDED: dict[str, Callable[[Any, set[str], dict[str, int]], set[str]]] = {
    "BPE": _built,
    "WordPiece": _nothing,
    "Unigram": _least,
    "WordLevel": _nothing,
}
