"""What the benchmark of fewer layers measures, and that its training teaches."""

from __future__ import annotations

import pytest
import torch

from examples.benchmarks.distil_text import compared, distilled, states, without


def test_pairs_do_not_ask_where_vectors_lie_and_cosines_do():
    whole = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    turned = compared(whole.roll(1, dims=1), whole)
    assert turned["pairs"] == pytest.approx(1)
    assert turned["cosine"] < 0.9
    assert compared(whole, whole)["cosine"] == pytest.approx(1)
    other = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    assert compared(other, whole)["pairs"] < 0.5


def test_fewer_layers_learn_what_the_whole_encoder_gives():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    sizes |= {"vocab_size": 30, "intermediate_size": 32, "initializer_range": 0.5}
    config = transformers.BertConfig(**sizes)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    ids = torch.randint(0, 30, (128, 8))
    texts = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    teacher = states(model, texts)
    small, gone = without(model, texts)
    assert len(gone) == 1
    assert len(small.encoder.layer) == 3

    def error():
        return float((states(small, texts) - teacher).float().square().mean())

    before = error()
    distilled(small, texts, teacher, 40, 3e-3, 0)
    assert error() < 0.7 * before
