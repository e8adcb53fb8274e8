"""Experts are dropped: what is left is the model whose routers never choose them."""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from graftlib import trace
from graftlib.surgery import SurgeryError, SurgeryWarning, expert_usage, experts, prune_experts

IDS = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "use_cache": False,
}


def seeded(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    return model


def mixtral():
    return seeded(MixtralForCausalLM, MixtralConfig(**SIZES, num_local_experts=6))


def qwen():
    sizes = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    # The shared expert has as many neurons as there are experts.
    return seeded(
        Qwen2MoeForCausalLM, Qwen2MoeConfig(**SIZES, **sizes, shared_expert_intermediate_size=6)
    )


def gpt_oss():
    sizes = {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 8}
    return seeded(
        GptOssForCausalLM, GptOssConfig(**SIZES, **sizes, layer_types=["full_attention"] * 2)
    )


def deepseek(groups=1):
    sizes = {
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "first_k_dense_replace": 1,
    }
    ranks = {
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 4,
    }
    return seeded(
        DeepseekV3ForCausalLM,
        DeepseekV3Config(**SIZES, **sizes, **ranks, n_group=groups, topk_group=1),
    )


def switch():
    sizes = {
        "vocab_size": 50,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 2,
        "num_decoder_layers": 2,
    }
    config = SwitchTransformersConfig(
        **sizes,
        num_heads=2,
        num_experts=6,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
    )
    return seeded(SwitchTransformersForConditionalGeneration, config)


class ListOfExperts(nn.Module):
    """A hand-written layer: a linear router with a bias beside a list of modules."""

    def __init__(self, count=5, top_k=2):
        super().__init__()
        self.num_experts, self.top_k = count, top_k
        self.router = nn.Linear(8, count)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        shares, chosen = self.router(x).softmax(-1).topk(self.top_k)
        every = torch.stack([expert(x) for expert in self.experts], -2)
        picked = every.gather(-2, chosen[..., None].expand(*chosen.shape, 8))
        return self.head(torch.relu((shares[..., None] * picked).sum(-2)) + x)


def own():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ListOfExperts().eval()


FAMILIES = {
    "mixtral": mixtral,
    "qwen": qwen,
    "gpt_oss": gpt_oss,
    "deepseek": deepseek,
    "switch": switch,
    "own": own,
}


def example(model):
    if isinstance(model, ListOfExperts):
        return (torch.randn(12, 8, generator=torch.Generator().manual_seed(0)),), {}
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    return (), {"input_ids": IDS, **more}


def output(model):
    args, kwargs = example(model)
    with torch.no_grad():
        result = model(*args, **kwargs)
    return result if isinstance(result, torch.Tensor) else result.logits


def kept_of(model):
    return [0, 2, 4] if isinstance(model, ListOfExperts) else [0, 2, 3, 5]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request):
    model = FAMILIES[request.param]()
    graph = trace(model, *example(model))
    return (
        model,
        graph,
        prune_experts(
            graph,
            [0, 2, 3, 5][: 4 if model is not None else 0] if request.param != "own" else [0, 2, 4],
        ),
    )


def test_all_layers_of_experts_are_found(case):
    model, graph, _ = case
    layers = experts(graph)
    assert [each.count for each in layers] == [5 if isinstance(model, ListOfExperts) else 6] * len(
        layers
    )
    assert {each.top_k for each in layers} == {1 if "Switch" in type(model).__name__ else 2}
    assert len(layers) == (
        1 if isinstance(model, ListOfExperts) or "Deepseek" in type(model).__name__ else 2
    )


def test_the_others_are_never_chosen(case):
    """The law, with other means: the router's rows of the dropped experts are taken out of the choice by hand."""
    model, graph, pruned = case
    kept = kept_of(model)
    layers = {id(model.get_parameter(each.router)): each for each in experts(graph)}

    class Masked(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            weight = args[1] if func is F.linear else None
            if weight is not None and id(weight) in layers:
                gone = [i for i in range(layers[id(weight)].count) if i not in kept]
                result[..., gone] = float("-inf")
            return result

    with Masked():
        expected = output(model)
    torch.testing.assert_close(output(pruned), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, output(model), atol=1e-3)


def test_attributes_and_config_follow(case, tmp_path):
    model, _, pruned = case
    if isinstance(model, ListOfExperts):
        assert (len(pruned.experts), pruned.num_experts, pruned.router.out_features) == (3, 3, 3)
        return
    pruned.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(output(again), output(pruned), rtol=1e-4, atol=1e-4)
    counts = {
        n
        for n in ("num_experts", "num_local_experts", "n_routed_experts")
        if hasattr(model.config, n)
    }
    assert all(
        getattr(pruned.config, name) == 4 and getattr(model.config, name) == 6 for name in counts
    )


def test_the_most_used_are_kept():
    model = own()
    graph = trace(model, *example(model))
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    mean = model.router(x).softmax(-1).mean(0).double().detach()
    rated = expert_usage(graph, [x[:10], x[10:]])
    torch.testing.assert_close(rated[""], mean, rtol=1e-5, atol=1e-6)
    best = sorted(mean.topk(3).indices.tolist())
    pruned = prune_experts(graph, 3, [x])
    assert torch.equal(pruned.router.weight, model.router.weight[best])
    assert torch.equal(prune_experts(graph, 0.6, [x]).router.weight, pruned.router.weight)


def test_layers_by_name_keep_others_as_they_are():
    model = mixtral()
    graph = trace(model, *example(model))
    with pytest.warns(SurgeryWarning, match="cannot say what was edited"):
        pruned = prune_experts(graph, {"model.layers.1.mlp": [1, 4, 5]})
    gates = [layer.mlp.gate.weight.shape[0] for layer in pruned.model.layers]
    assert gates == [6, 3]
    assert pruned.model.layers[0].mlp.experts.num_experts == 6
    assert pruned.model.layers[1].mlp.experts.num_experts == 3
    assert output(pruned).isfinite().all()


def test_a_router_of_a_lower_precision():
    model = mixtral().bfloat16()
    graph = trace(model, *example(model))
    rated = expert_usage(graph, [{"input_ids": IDS}])
    assert all(each.sum() == pytest.approx(1) for each in rated.values())
    pruned = prune_experts(graph, 4, [{"input_ids": IDS}])
    assert pruned.model.layers[0].mlp.gate.weight.dtype is torch.bfloat16


def test_inplace_and_a_second_model():
    model, other = own(), own()
    graph = trace(model, *example(model))
    assert prune_experts(graph, [1, 2], model=other, inplace=True) is other
    assert len(other.experts) == 2
    assert len(model.experts) == 5
    gone = ("experts.2", "experts.3", "experts.4")
    assert [*other.state_dict()] == [n for n in model.state_dict() if not n.startswith(gone)]


def test_wrong_rows_are_seen(monkeypatch):
    model = own()
    graph = trace(model, *example(model))
    right = experts(graph)
    module = importlib.import_module("graftlib.surgery.experts")
    monkeypatch.setattr(
        module, "rearrange", lambda edited, order: setattr(edited, "experts", edited.experts[2:])
    )
    with pytest.raises(SurgeryError, match="not the one in which they are never chosen"):
        prune_experts(graph, [0, 1, 2])
    assert right[0].container == "experts"


def test_experts_in_groups_are_refused():
    model = deepseek(groups=2)
    graph = trace(model, *example(model))
    with pytest.raises(SurgeryError):
        prune_experts(graph, [0, 1, 2, 3])
    assert model.config.n_routed_experts == 6


@pytest.mark.parametrize(
    ("keep", "data", "what"),
    [
        (1, [torch.zeros(1, 8)], "1 cannot be kept"),
        (6, [torch.zeros(1, 8)], "6 cannot be kept"),
        ([0, 5], None, "cannot be kept"),
        ([0], None, "cannot be kept"),
        (3, None, "nothing says which experts"),
        ({"layers.*": 3}, [torch.zeros(1, 8)], "hits no layer"),
        ("all", None, "no list of units"),
        (1.5, [torch.zeros(1, 8)], "keep=1.5"),
    ],
)
def test_arguments(keep, data, what):
    model = own()
    with pytest.raises(SurgeryError, match=what):
        prune_experts(trace(model, *example(model)), keep, data)


def test_a_model_without_experts():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(SurgeryError, match="no experts"):
        prune_experts(trace(model, torch.zeros(1, 4)), [0])


def test_nothing_warns_without_a_reason():
    model = own()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune_experts(trace(model, *example(model)), [0, 1, 2, 3])


def test_auto_class_loads(tmp_path):
    model = mixtral()
    pruned = prune_experts(trace(model, *example(model)), 3, [{"input_ids": IDS}])
    pruned.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.num_local_experts == 3
