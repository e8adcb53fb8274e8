"""A vocabulary is pruned: texts are split as before, logits on kept tokens stay, and all that knows an id follows."""

from __future__ import annotations

import json

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from graftlib import trace
from graftlib.surgery import SurgeryError, prune_vocabulary, tokens

CORPUS = [
    "the quick brown fox jumps over the lazy dog and the dog does not mind at all",
    "pack my box with five dozen liquor jugs, then pack the other boxes too",
    "how vexingly quick daft zebras jump! sphinx of black quartz, guard my vow",
    "a ship that is built to last is a ship that is built of oak, not of reeds",
    "naïve café owners paid 1,234.50 in façade repairs; übermut tut selten gut",
] * 4
TEXTS = ["the quick dog is built of oak", "pack the box, then jump over a naïve fox"]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def word_piece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        CORPUS,
        trainers.WordPieceTrainer(vocab_size=160, special_tokens=SPECIALS, show_progress=False),
    )
    ids = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ids
    )
    return backend


def plain_bpe() -> Tokenizer:
    """Words end in a suffix, and pieces inside of one begin with another: merges do not just join texts."""
    backend = Tokenizer(
        models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", continuing_subword_prefix="##")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=260,
        special_tokens=SPECIALS,
        end_of_word_suffix="</w>",
        continuing_subword_prefix="##",
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def byte_bpe() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return backend


def sentence_piece_bpe() -> Tokenizer:
    """As Llama's: a space is a letter, and a letter that is not known becomes bytes."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIALS + bytes_, show_progress=False
    )
    backend.train_from_iterator([text.replace(" ", " ▁") for text in CORPUS], trainer)
    document = json.loads(backend.to_str())  # bytes are tokens of the model, and not added ones
    document["added_tokens"] = document["added_tokens"][: len(SPECIALS)]
    return Tokenizer.from_str(json.dumps(document))


def unigram() -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    ids = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = processors.Sequence(
        [
            processors.TemplateProcessing(
                single="$A </s>", pair="$A </s> $B </s>", special_tokens=ids[1:]
            )
        ]
    )
    return backend


def word_level() -> Tokenizer:
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(
        CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIALS, show_progress=False)
    )
    return backend


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    names = dict(
        zip(
            ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"),
            SPECIALS,
            strict=True,
        )
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}


def seeded(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zeros would hide a wrong row
                nn.init.normal_(parameter)
    return model


def bert(size):
    return seeded(BertForMaskedLM, BertConfig(vocab_size=size, **SMALL, **IDS))


def roberta(size):
    return seeded(RobertaForMaskedLM, RobertaConfig(vocab_size=size, **SMALL, **IDS))


def llama(size):
    return seeded(LlamaForCausalLM, LlamaConfig(vocab_size=size, **SMALL, **IDS))


def gpt2(size):
    return seeded(
        GPT2LMHeadModel, GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, **IDS)
    )


def t5(size):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    ids = {**IDS, "decoder_start_token_id": 1}
    return seeded(T5ForConditionalGeneration, T5Config(vocab_size=size, **sizes, **ids))


def bart(size):
    sizes = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))
    }
    ids = {**IDS, "decoder_start_token_id": 2, "forced_eos_token_id": 2}
    model = seeded(
        BartForConditionalGeneration, BartConfig(vocab_size=size, d_model=16, **sizes, **ids)
    )
    model.final_logits_bias.normal_(generator=torch.Generator().manual_seed(1))
    return model


# A tokenizer of each kind, each with a model that has its rows elsewhere: a bias behind a tied head, an untied head,
# a tied one, one shared by three modules, a buffer.
KINDS = {
    "WordPiece": (word_piece, bert),
    "BPE": (plain_bpe, bart),
    "byte-level BPE": (byte_bpe, roberta),
    "SentencePiece BPE": (sentence_piece_bpe, llama),
    "Unigram": (unigram, t5),
    "WordLevel": (word_level, gpt2),
}


def logits(model, ids):
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        return model.double()(**inputs).logits


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    backend, make = KINDS[request.param]
    tokenizer = fast(backend())
    model = make(len(tokenizer) + 3)  # rows that fill up a multiple
    return model, tokenizer, prune_vocabulary(model, tokenizer, texts=TEXTS)


def test_texts_of_kept_tokens_are_split_as_before(case):
    _, tokenizer, pruned = case
    assert len(pruned.index) < len(tokenizer)
    for text in [*TEXTS, TEXTS[0] + " " + TEXTS[1], "the oak"]:
        old, new = tokenizer(text)["input_ids"], pruned.tokenizer(text)["input_ids"]
        if {*old} <= {*pruned.index.tolist()}:
            assert pruned.index[new].tolist() == old
            assert pruned.tokenizer.decode(new) == tokenizer.decode(old)
    assert {*pruned.tokenizer.get_vocab().values()} == {*range(len(pruned.index))}


def test_logits_on_kept_tokens_are_equal(case):
    model, _, pruned = case
    new = pruned.tokenizer(TEXTS[1], return_tensors="pt")["input_ids"]
    expected = logits(model, pruned.index[new])[..., pruned.index]
    torch.testing.assert_close(logits(pruned.model, new), expected, rtol=1e-9, atol=1e-9)
    wrong = logits(pruned.model, new.flip(1))
    assert not torch.allclose(wrong, expected, atol=1e-4)


def test_ids_of_special_tokens_follow(case):
    model, tokenizer, pruned = case
    for name in ("bos_token_id", "pad_token_id", "eos_token_id", "mask_token_id"):
        assert pruned.index[getattr(pruned.tokenizer, name)] == getattr(tokenizer, name)
    for holder in ("config", "generation_config"):
        old, new = getattr(model, holder, None), getattr(pruned.model, holder, None)
        for name in (
            "pad_token_id",
            "eos_token_id",
            "decoder_start_token_id",
            "forced_eos_token_id",
        ):
            if getattr(old, name, None) is not None:
                assert pruned.index[getattr(new, name)] == getattr(old, name)
    assert pruned.model.config.vocab_size == len(pruned.index)
    assert pruned.model.get_input_embeddings().num_embeddings == len(pruned.index)


def test_special_tokens_behind_the_others_get_other_ids():
    """As GPT-2's end of text: configs of the copy follow, those of the model stay."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(CORPUS, trainers.WordLevelTrainer(show_progress=False))
    backend.add_special_tokens(SPECIALS)
    tokenizer = fast(backend)
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    assert min(ids.values()) > 50
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    more = {**ids, "decoder_start_token_id": ids["pad_token_id"]}
    config = T5Config(vocab_size=len(tokenizer), **sizes, **more)
    model = seeded(T5ForConditionalGeneration, config)
    model.generation_config.eos_token_id = [ids["eos_token_id"], ids["bos_token_id"]]
    pruned = prune_vocabulary(model, tokenizer, texts=TEXTS)
    for name, old in more.items():
        assert pruned.index[getattr(pruned.model.config, name)] == old
        assert getattr(pruned.model.decoder.config, name) == getattr(pruned.model.config, name)
        assert getattr(model.config, name) == old
    assert pruned.index[pruned.model.generation_config.eos_token_id].tolist() == [
        ids["eos_token_id"],
        ids["bos_token_id"],
    ]
    assert pruned.tokenizer.pad_token_id == pruned.model.config.pad_token_id
    again = prune_vocabulary(model, tokenizer, texts=TEXTS, inplace=True)
    assert again.model.config.to_dict() == pruned.model.config.to_dict()


def test_saved_and_loaded(case, tmp_path):
    model, _, pruned = case
    pruned.save(tmp_path / "slim")
    auto = AutoModelForMaskedLM if "Masked" in type(model).__name__ else AutoModelForCausalLM
    auto = AutoModel if model.config.is_encoder_decoder else auto
    again = (type(model) if auto is AutoModel else auto).from_pretrained(tmp_path / "slim").eval()
    words = AutoTokenizer.from_pretrained(tmp_path / "slim")
    ids = words(TEXTS[0], return_tensors="pt")["input_ids"]
    assert ids.tolist()[0] == pruned.tokenizer(TEXTS[0])["input_ids"]
    torch.testing.assert_close(logits(again, ids), logits(pruned.model, ids))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.sampled_from([*" ".join(CORPUS).split(), "unseen", "kühn", "日本"]),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(sorted(KINDS)),
)
def test_any_words_are_split_as_before(words, kind):
    backend = BACKENDS.setdefault(kind, KINDS[kind][0]())
    text = " ".join(words)
    split = backend.encode(text).ids
    ids = sorted(tokens.needed(backend, split))
    smaller = tokens.rebuilt(backend, ids)
    assert not tokens.first_difference([split], smaller, torch.tensor(ids), [text])


BACKENDS: dict[str, Tokenizer] = {}


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_without_what_the_tokens_need_a_text_is_split_otherwise(kind, monkeypatch):
    backend, make = KINDS[kind]
    tokenizer = fast(backend())
    model = make(len(tokenizer))
    monkeypatch.setitem(tokens._NEEDED, kind, lambda model, kept, numbers: set())
    if kind == "Unigram":
        # The least score and the single letters set the price of an unknown one.
        rebuilt = tokens.rebuilt
        monkeypatch.setattr(
            "graftlib.surgery.vocabulary.rebuilt", lambda t, ids: scored(rebuilt(t, ids))
        )
    with pytest.raises(SurgeryError, match="split otherwise") as refusal:
        prune_vocabulary(model, tokenizer, texts=TEXTS)
    assert "text 0, token" in str(refusal.value)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def scored(tokenizer):
    """Other scores: not what pruning does."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document["model"]["vocab"] = [
        [token, -(len(token) ** 2.0)] for token, _ in document["model"]["vocab"]
    ]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(document))
    return tokenizer


class Languages(PreTrainedTokenizerFast):
    """Ids in attributes, as tokenizers of many languages have them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        codes = ["<en>", "<ro>"]
        self.add_special_tokens({"additional_special_tokens": codes})
        self.lang_code_to_id = {code: self.convert_tokens_to_ids(code) for code in codes}
        self.id_to_lang_code = {number: code for code, number in self.lang_code_to_id.items()}
        self.cur_lang_code = self.lang_code_to_id["<ro>"]
        self.prefix_tokens = [self.cur_lang_code]
        self.own_words = {"zebras": self.convert_tokens_to_ids("zebras"), "other": 3}


def test_ids_in_attributes_of_a_tokenizer_follow():
    """What generation is forced to begin with is read there: the token of a language, and no other one."""
    tokenizer = Languages(tokenizer_object=word_level(), unk_token="<unk>", pad_token="<pad>")
    model = gpt2(len(tokenizer))
    model.generation_config.lang_to_id = dict(tokenizer.lang_code_to_id)
    pruned = prune_vocabulary(model, tokenizer, texts=TEXTS)
    new = pruned.tokenizer
    due = {code: new.convert_tokens_to_ids(code) for code in ("<en>", "<ro>")}
    assert due != tokenizer.lang_code_to_id
    assert new.lang_code_to_id == due == pruned.model.generation_config.lang_to_id
    assert new.id_to_lang_code == {number: code for code, number in due.items()}
    assert new.prefix_tokens == [new.cur_lang_code] == [due["<ro>"]]
    assert new.own_words == {"other": 3}
    assert new.pad_token_type_id == tokenizer.pad_token_type_id
    assert tokenizer.lang_code_to_id["<ro>"] == tokenizer.cur_lang_code > due["<ro>"]


def test_named_tokens_are_kept_and_unknown_ones_refused():
    tokenizer = fast(word_level())
    model = gpt2(len(tokenizer))
    pruned = prune_vocabulary(model, tokenizer, tokens=["zebras", tokenizer.get_vocab()["oak"]])
    assert {*pruned.tokenizer.get_vocab()} == {"zebras", "oak", *SPECIALS}
    with pytest.raises(SurgeryError, match="no token 'zebra'") as refusal:
        prune_vocabulary(model, tokenizer, tokens=["zebra"])
    assert "'zebras'" in str(refusal.value)


def test_inplace_edits_the_model_itself():
    tokenizer = fast(word_piece())
    model = bert(len(tokenizer))
    pruned = prune_vocabulary(model, tokenizer, texts=TEXTS, inplace=True)
    assert pruned.model is model
    assert model.cls.predictions.decoder.weight is model.get_input_embeddings().weight
    assert model.cls.predictions.decoder.out_features == len(pruned.index)
    assert model.cls.predictions.bias.shape == (len(pruned.index),)


def test_a_classifier_with_as_many_classes_as_tokens_keeps_them():
    tokenizer = fast(word_level())
    size = len(tokenizer)
    config = BertConfig(vocab_size=size, num_labels=size, **SMALL | {"hidden_size": 16}, **IDS)
    pruned = prune_vocabulary(seeded(BertForSequenceClassification, config), tokenizer, texts=TEXTS)
    assert pruned.model.classifier.out_features == size
    assert pruned.model.config.vocab_size == len(pruned.index)


def test_a_stream_as_wide_as_the_vocabulary_keeps_its_width():
    tokenizer = fast(word_level())
    size = len(tokenizer)
    config = BertConfig(
        vocab_size=size, **SMALL | {"hidden_size": size, "num_attention_heads": 1}, **IDS
    )
    pruned = prune_vocabulary(seeded(BertModel, config), tokenizer, texts=TEXTS)
    assert pruned.report.parameters == ("embeddings.word_embeddings.weight",)
    assert pruned.model.embeddings.word_embeddings.weight.shape == (len(pruned.index), size)


def test_positions_counted_from_the_id_of_padding_are_seen():
    """RoBERTa's positions begin behind the id of padding: that id must stay."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=word_level(), pad_token="the", unk_token="<unk>"
    )
    tokenizer._tokenizer.add_special_tokens(["<mask>"])
    pad = tokenizer.pad_token_id
    assert pad > len(SPECIALS) - 1
    config = RobertaConfig(
        vocab_size=len(tokenizer), **SMALL, pad_token_id=pad, max_position_embeddings=40
    )
    model = seeded(RobertaForMaskedLM, config)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document["added_tokens"] = []  # nothing holds the tokens in front of it
    bare = Tokenizer.from_str(json.dumps(document))
    with pytest.raises(SurgeryError, match="outputs on kept tokens would change") as refusal:
        prune_vocabulary(model, bare, tokens=["oak"])
    assert "tokens=range" in str(refusal.value)
    pruned = prune_vocabulary(model, bare, tokens=["oak", *range(pad)])
    assert pruned.model.config.pad_token_id == pad


def test_a_model_of_ones_own_by_its_graph():
    class Tagger(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.words, self.positions = nn.Embedding(size, 8), nn.Embedding(16, 8)
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, size)

        def forward(self, ids):
            places = torch.arange(ids.shape[1], device=ids.device)
            return self.head(self.norm(self.words(ids) + self.positions(places)))

    backend = word_level()
    model = seeded(Tagger, backend.get_vocab_size())
    graph = trace(
        model, (torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(0)),)
    )
    pruned = prune_vocabulary(graph, backend, texts=TEXTS)
    assert pruned.report.parameters == ("words.weight", "head.weight", "head.bias")
    ids = torch.tensor([pruned.tokenizer.encode(TEXTS[0]).ids])
    torch.testing.assert_close(pruned.model(ids), model(pruned.index[ids])[..., pruned.index])
    assert isinstance(pruned.tokenizer, tokenizers.Tokenizer)
    with pytest.raises(SurgeryError, match="no save_pretrained"):
        pruned.save("anywhere")
    with pytest.raises(SurgeryError, match="no config that says what it takes"):
        prune_vocabulary(model, backend, texts=TEXTS)


def test_positions_that_are_given_are_not_taken_for_words():
    tokenizer = fast(word_level())
    model = seeded(BertModel, BertConfig(vocab_size=len(tokenizer), **SMALL, **IDS))
    ids = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))
    graph = trace(model, (), {"input_ids": ids, "position_ids": torch.arange(6)[None]})
    with pytest.raises(SurgeryError, match="tables of several lengths"):
        prune_vocabulary(graph, tokenizer, texts=TEXTS)


def test_fewer_rows_than_tokens_are_refused():
    tokenizer = fast(word_level())
    with pytest.raises(SurgeryError, match="no table"):
        prune_vocabulary(bert(len(tokenizer) - 1), tokenizer, texts=TEXTS)


def test_lists_of_tokens_that_are_never_given_lose_those_that_go():
    tokenizer = fast(word_level())
    model = gpt2(len(tokenizer))
    model.generation_config.suppress_tokens = [2, tokenizer.get_vocab()["zebras"]]
    pruned = prune_vocabulary(model, tokenizer, texts=TEXTS)
    assert pruned.model.generation_config.suppress_tokens == [2]
    model.generation_config.bad_words_ids = [[7]]
    with pytest.raises(SurgeryError, match="bad_words_ids"):
        prune_vocabulary(model, tokenizer, texts=TEXTS)


def test_a_model_without_values():
    tokenizer = fast(word_piece())
    with torch.device("meta"):
        model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **SMALL, **IDS)).eval()
    pruned = prune_vocabulary(model, tokenizer, texts=TEXTS)
    assert pruned.model.cls.predictions.bias.shape == (len(pruned.index),)
    assert pruned.model.cls.predictions.bias.is_meta


@pytest.mark.parametrize(
    ("texts", "named", "what"),
    [
        ("one text", (), "texts is one text"),
        ([3], (), "3 is no text"),
        (["half \ud800"], (), "is no text"),
        ([], (), "nothing says which tokens"),
        (None, [True], "no token True"),
    ],
)
def test_arguments(texts, named, what):
    tokenizer = fast(word_level())
    with pytest.raises(SurgeryError, match=what):
        prune_vocabulary(gpt2(len(tokenizer)), tokenizer, texts=texts, tokens=named)


def test_no_fast_tokenizer():
    with pytest.raises(SurgeryError, match="no fast tokenizer"):
        prune_vocabulary(gpt2(9), object(), texts=TEXTS)


def test_the_report_is_readable(case):
    text = str(case[2].report)
    assert "tokens ->" in text
    assert "texts are split as before" in text
