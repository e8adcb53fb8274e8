"""The models that `coverage.py` looks at: random weights from tiny configurations, nothing is downloaded.

In: a family and a name. Out: (model in eval mode, args, kwargs), as `build` gives them.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn


def _words(text: str) -> list[str]:
    return text.split()


Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

# torchvision ---------------------------------------------------------------------------------------------------


def torchvision_names() -> list[str]:
    """All but the quantised ones (their weights are integers, which no permutation class describes)."""
    import torchvision

    return [name for name in torchvision.models.list_models() if not name.startswith("quantized")]


def _torchvision(name: str) -> Built:
    import torchvision

    builder = torchvision.models.get_model_builder(name)
    room = builder.__module__.removeprefix("torchvision.models.").partition(".")[0]
    options: dict[str, Any] = {}
    size = 64
    if room == "detection":
        return _detector(builder, name)
    if room == "segmentation":
        return builder(weights=None, weights_backbone=None).eval(), (_image(1, 64),), {}
    if room == "optical_flow":
        return builder().eval(), (_image(1, 128), _image(1, 128)), {"num_flow_updates": 2}
    if room == "video":
        size, frames = (224, 16) if name == "s3d" else (64, 4)
        if "mvit" in name:
            return _mvit(builder), (torch.randn(1, 3, 8, size, size),), {}
        return builder().eval(), (torch.randn(1, 3, frames, size, size),), {}
    if name in ("googlenet", "inception_v3"):
        options, size = {"init_weights": False}, 64 if name == "googlenet" else 96
    if name.startswith("vit_"):
        options, size = (
            {"image_size": 64 if "14" not in name else 56},
            64 if "14" not in name else 56,
        )
    if name == "maxvit_t":
        options, size = {"input_size": (224, 224)}, 224
    return builder(**options).eval(), (_image(2, size),), {}


def _mvit(builder: Callable[..., nn.Module]) -> nn.Module:
    """For clips of 8 frames of 64 pixels, which its builders do not offer: its position tables follow the clip."""
    from torchvision.models.video import mvit

    whole = mvit._mvit
    small = {"spatial_size": (64, 64), "temporal_size": 8}
    with mock.patch.object(mvit, "_mvit", lambda **given: whole(**(given | small))):
        return builder().eval()


def _detector(builder: Callable[..., nn.Module], name: str) -> Built:
    """All modules as they are; it scales its images to fewer pixels, and keeps fewer proposals."""
    options: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 5}
    if not name.startswith("ssd"):
        options |= {"min_size": 128, "max_size": 192}
    if "rcnn" in name:
        options |= {"rpn_post_nms_top_n_test": 60, "box_detections_per_img": 20}
    return builder(**options).eval(), ([torch.rand(3, 96, 96), torch.rand(3, 96, 96)],), {}


def _image(batch: int, size: int, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size)


# Hugging Face --------------------------------------------------------------------------------------------------

# Set where the configuration knows the word.
TINY = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 1,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_labels": 5,
    "type_vocab_size": 2,
    "image_size": 32,
    "patch_size": 8,
    "embedding_size": 16,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
CAUSAL = _words(
    """
    gpt2 llama mistral qwen2 qwen3 gemma gemma2 gpt_neox bloom opt gptj gpt_neo phi phi3 falcon
    mpt stablelm olmo olmo2 cohere mixtral qwen2_moe qwen3_moe mamba mamba2 rwkv codegen
    gpt_bigcode starcoder2 persimmon granite glm helium nemotron biogpt xglm smollm3
    gpt_neox_japanese ctrl diffllama exaone4 arcee ernie4_5 bitnet seed_oss granitemoe olmoe
    jetmoe openai-gpt
    """
)
SEQUENCE = _words(
    """
    bert distilbert roberta albert electra deberta deberta-v2 squeezebert mobilebert fnet
    camembert xlm xlm-roberta longformer ernie nystromformer mpnet layoutlm convbert xlnet funnel
    big_bird roformer rembert yoso mra megatron-bert ibert modernbert esm data2vec-text
    roberta-prelayernorm xmod
    """
)
SEQ2SEQ = _words(
    """
    t5 mt5 bart marian pegasus m2m_100 mbart blenderbot blenderbot-small led umt5 fsmt plbart
    switch_transformers
    """
)
IMAGE = _words(
    """
    vit deit beit dinov2 swin swinv2 convnext convnextv2 resnet regnet mobilenet_v1 mobilenet_v2
    efficientnet bit pvt pvt_v2 cvt poolformer focalnet vit_msn levit mobilevit data2vec-vision
    segformer ijepa hiera swiftformer dinov2_with_registers
    """
)
AUDIO = _words(
    """
    wav2vec2 hubert wavlm unispeech unispeech-sat sew data2vec-audio
    """
)
OTHER = _words(
    """
    whisper clip siglip speech_to_text audio-spectrogram-transformer videomae timesformer
    """
)
_CONV_AUDIO = {
    "conv_dim": (16, 16),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 12,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}
_STAGES = {"num_stages": 2, "hidden_sizes": [16, 32], "depths": [1, 1]}
OVERRIDES: dict[str, dict[str, Any]] = {
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4, "num_attention_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "rwkv": {"attention_hidden_size": 32},
    "mamba2": {
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "expand": 2,
        "state_size": 8,
        "chunk_size": 4,
    },
    "ctrl": {"dff": 48},
    "jetmoe": {"num_key_value_heads": 2, "kv_channels": 8},
    "persimmon": {"num_key_value_heads": 4},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "distilbert": {"hidden_dim": 48},
    "squeezebert": {
        "embedding_size": 32,
        "q_groups": 2,
        "k_groups": 2,
        "v_groups": 2,
        "intermediate_groups": 2,
        "output_groups": 2,
    },
    "mobilebert": {"intra_bottleneck_size": 16, "true_hidden_size": 16},
    "xlnet": {"d_inner": 48, "d_head": 8},
    "xlm": {"emb_dim": 32, "n_heads": 4, "n_layers": 2},
    "funnel": {"d_head": 8, "d_inner": 48, "block_sizes": [1, 1], "num_decoder_layers": 1},
    "longformer": {"attention_window": 4},
    "big_bird": {"attention_type": "original_full"},
    "nystromformer": {"num_landmarks": 3, "segment_means_seq_len": 9, "embedding_size": 32},
    "mpnet": {"embedding_size": 32},
    "convbert": {"embedding_size": 16},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "megatron-bert": {},
    "esm": {"vocab_size": 40, "pad_token_id": 1, "mask_token_id": 4, "token_dropout": False},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "modernbert": {"global_attn_every_n_layers": 2},
    "t5": {"d_kv": 8, "d_ff": 48, "num_layers": 2},
    "mt5": {"d_kv": 8, "d_ff": 48, "num_layers": 2},
    "umt5": {"d_kv": 8, "d_ff": 48, "num_layers": 2},
    "switch_transformers": {
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
    },
    "fsmt": {"langs": ["en", "de"], "src_vocab_size": 40, "tgt_vocab_size": 40},
    "led": {
        "attention_window": 4,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    "swin": {
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    },
    "swinv2": {
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    },
    "convnext": {**_STAGES, "patch_size": 4},
    "convnextv2": {**_STAGES, "patch_size": 4},
    "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]},
    "regnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8},
    "bit": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "num_groups": 4},
    "pvt": {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sequence_reduction_ratios": [2, 1],
        "hidden_sizes": [16, 32],
        "patch_sizes": [4, 2],
        "strides": [4, 2],
        "num_attention_heads": [2, 4],
        "mlp_ratios": [2, 2],
    },
    "pvt_v2": {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [16, 32],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [2, 4],
        "mlp_ratios": [2, 2],
    },
    "cvt": {
        "embed_dim": [16, 32, 32],
        "num_heads": [1, 2, 4],
        "depth": [1, 2, 3],
        "image_size": 64,
    },
    "poolformer": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "patch_size": 16},
    "focalnet": {
        "patch_size": 4,
        "embed_dim": 16,
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "focal_levels": [2, 2],
        "focal_windows": [3, 3],
    },
    "levit": {
        "image_size": 64,
        "hidden_sizes": [16, 32, 48],
        "num_attention_heads": [2, 4, 6],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "patch_size": 16,
    },
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [16, 16, 24, 24, 24, 32, 64],
        "patch_size": 2,
        "num_attention_heads": 2,
    },
    "efficientnet": {
        "image_size": 64,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "hidden_dim": 320,
    },
    "mobilenet_v1": {"image_size": 64},
    "mobilenet_v2": {"image_size": 64},
    "hiera": {
        "embed_dim": 16,
        "image_size": [64, 64],
        "patch_size": [7, 7],
        "patch_stride": [4, 4],
        "patch_padding": [3, 3],
        "depths": [1, 1],
        "num_heads": [1, 2],
        "num_query_pool": 1,
        "query_stride": [2, 2],
        "masked_unit_size": [8, 8],
        "masked_unit_attention": [True, False],
        "embed_dim_multiplier": 2.0,
    },
    "swiftformer": {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [16, 16, 32, 32]},
    "segformer": {
        "num_encoder_blocks": 2,
        "depths": [1, 1],
        "sr_ratios": [2, 1],
        "hidden_sizes": [16, 32],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "num_attention_heads": [2, 4],
        "mlp_ratios": [2, 2],
        "decoder_hidden_size": 16,
    },
    **dict.fromkeys(AUDIO, _CONV_AUDIO),
    "sew": {**_CONV_AUDIO, "squeeze_factor": 2},
    "data2vec-audio": {**_CONV_AUDIO, "conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2},
    "whisper": {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16},
    "speech_to_text": {
        "input_feat_per_channel": 8,
        "input_channels": 1,
        "conv_channels": 16,
        "max_source_positions": 64,
        "max_target_positions": 16,
    },
    "audio-spectrogram-transformer": {
        "max_length": 32,
        "num_mel_bins": 16,
        "patch_size": 8,
        "frequency_stride": 8,
        "time_stride": 8,
    },
    "videomae": {"num_frames": 4, "tubelet_size": 2},
    "timesformer": {"num_frames": 2},
}

# Words that the configuration seems to know, and does not.
UNKNOWN = {
    "xlnet": ("max_position_embeddings",),
    "falcon": ("head_dim",),
    "swin": ("num_attention_heads",),
    "swinv2": ("num_attention_heads",),
    "cvt": ("num_attention_heads",),
}


def hf_names() -> list[str]:
    """Model types that the installed transformers knows."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return [
        n
        for n in [*SEQUENCE, *CAUSAL, *SEQ2SEQ, *IMAGE, *AUDIO, *OTHER]
        if n in CONFIG_MAPPING_NAMES
    ]


class TaskHead(nn.Module):
    """Gives what the task's head gives, and not the hidden states that lie beside it.

    A hidden state that is given back has a fixed order by right; a user of the head does not ask for it.
    """

    HEADS = ("logits", "start_logits", "end_logits", "logits_per_image", "prediction_logits")

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The head's tensors by name."""
        out = self.model(**inputs, return_dict=True)
        heads = {key: out[key] for key in self.HEADS if out.get(key) is not None}
        return heads or dict(out)


def _hf(name: str) -> Built:
    import transformers

    transformers.logging.set_verbosity_error()
    config = _config(transformers.AutoConfig, name)
    ids = torch.randint(3, 12, (2, 8 if name in ("longformer", "led", "mamba2") else 9))
    image = _image(2, _side(config))
    if name in CAUSAL:
        made, inputs = transformers.AutoModelForCausalLM, {"input_ids": ids}
    elif name in SEQUENCE:
        made, inputs = transformers.AutoModelForSequenceClassification, {"input_ids": ids}
        inputs["attention_mask"] = torch.ones_like(ids)
    elif name in SEQ2SEQ:
        if name == "switch_transformers":  # as many tokens as reach every expert
            ids = torch.randint(3, 12, (8, 24))
        made, inputs = (
            transformers.AutoModelForSeq2SeqLM,
            {"input_ids": ids, "decoder_input_ids": ids[:, :5]},
        )
    elif name == "segformer":
        made, inputs = transformers.AutoModelForSemanticSegmentation, {"pixel_values": image}
    elif name in IMAGE:
        made, inputs = transformers.AutoModelForImageClassification, {"pixel_values": image}
    elif name in AUDIO:
        made, inputs = transformers.AutoModelForCTC, {"input_values": torch.randn(2, 400)}
    elif name == "whisper":
        made = transformers.AutoModelForSpeechSeq2Seq
        inputs = {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": ids}
    elif name == "speech_to_text":
        made = transformers.AutoModelForSpeechSeq2Seq
        inputs = {"input_features": torch.randn(2, 20, 8), "decoder_input_ids": ids}
    elif name == "audio-spectrogram-transformer":
        made, inputs = (
            transformers.AutoModelForAudioClassification,
            {"input_values": torch.randn(2, 32, 16)},
        )
    elif name in ("videomae", "timesformer"):
        made = transformers.AutoModelForVideoClassification
        inputs = {"pixel_values": torch.randn(2, config.num_frames, 3, 32, 32)}
    else:
        made, inputs = transformers.AutoModel, {"input_ids": ids, "pixel_values": image}
    return TaskHead(made.from_config(config)).eval(), (), inputs


# Heads, in this order; what has none of them is taken without a head.
HEADS = (
    "AutoModelForSequenceClassification",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageClassification",
    "AutoModelForSemanticSegmentation",
    "AutoModelForAudioClassification",
    "AutoModelForCTC",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModelForImageTextToText",
    "AutoModelForVideoClassification",
    "AutoModel",
)


def hf_all_names() -> list[str]:
    """Every model type of the installed transformers; those with a configuration of their own first."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return [*dict.fromkeys([*hf_names(), *sorted(CONFIG_MAPPING_NAMES)])]


def _hf_any(name: str) -> Built:
    """Any type: a configuration made small word by word, the first head that it has, inputs by the forward pass."""
    if name in hf_names():
        return _hf(name)
    import inspect

    import transformers

    transformers.logging.set_verbosity_error()
    config = _shrunk(transformers.AutoConfig, name)
    made = next(
        getattr(transformers, head)
        for head in HEADS
        if type(config) in getattr(transformers, head)._model_mapping
    )
    model = made.from_config(config).eval()
    if sum(p.numel() for p in model.parameters()) > 50e6:
        raise ValueError("its tiny configuration is not tiny")
    words = set(inspect.signature(model.forward).parameters)
    main = model.main_input_name
    ids = torch.randint(3, 12, (2, 8))
    text, vision = (getattr(config, f"{kind}_config", None) for kind in ("text", "vision"))
    image = _image(
        2, _side(vision or config), int(getattr(vision or config, "num_channels", 3) or 3)
    )
    known: dict[str, Any] = {
        "input_ids": ids,
        "pixel_values": image,
        "input_values": torch.randn(2, 400),
        "input_features": torch.randn(2, int(getattr(config, "num_mel_bins", 8) or 8), 20),
    }
    inputs = {main: known[main]} if main in known else {}
    if text is not None and "input_ids" in words:
        inputs["input_ids"] = ids
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in words:
        inputs["decoder_input_ids"] = ids[:, :5]
    return TaskHead(model).eval(), (), inputs


def _shrunk(auto: Any, name: str) -> Any:
    """The default configuration with every known size made small, in the configurations inside it too."""
    default = auto.for_model(name)
    small: dict[str, Any] = {}
    for key, value in default.to_dict().items():
        if isinstance(value, dict) and key.endswith("_config") and "model_type" in value:
            known = {word: n for word, n in TINY.items() if value.get(word) is not None}
            small[key] = {"model_type": value["model_type"], **known}
        elif key in TINY and value is not None and isinstance(value, int):
            small[key] = TINY[key]
        elif key in ("num_layers", "n_layer", "n_layers", "depth", "num_decoder_layers"):
            small[key] = 2 if isinstance(value, int) else value
    return auto.for_model(name, **small)


def _side(config: Any) -> int:
    size = getattr(config, "image_size", 32) or 32
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _config(auto: Any, name: str) -> Any:
    if name in ("clip", "siglip"):
        text = {k: v for k, v in TINY.items() if k not in ("use_cache", "head_dim")} | {
            "max_position_embeddings": 16
        }
        return auto.for_model(name, text_config=text, vision_config=dict(text), projection_dim=16)
    default = auto.for_model(name)
    known = {key: value for key, value in TINY.items() if _knows(default, key)}
    if name in IMAGE:
        for word in ("embedding_size", "vocab_size", "num_key_value_heads", "head_dim"):
            known.pop(word, None)
    for word in UNKNOWN.get(name, ()):
        known.pop(word, None)
    changed = OVERRIDES.get(name, {})
    for words in (
        ("depths", "num_hidden_layers"),
        ("block_sizes", "num_hidden_layers"),
        ("hidden_sizes", "hidden_size"),
        ("embed_dim", "hidden_size"),
        ("layer_types", "layer_types"),
    ):
        if words[0] in changed:
            known.pop(words[1], None)
    config = auto.for_model(name, **{**known, **changed})
    config.architectures = config.architectures or []
    return config


def _knows(config: Any, key: str) -> bool:
    try:
        return getattr(config, key) is not None or key in (
            "pad_token_id",
            "num_key_value_heads",
            "head_dim",
        )
    except (AttributeError, NotImplementedError):
        return False


# timm ----------------------------------------------------------------------------------------------------------


def timm_names(count: int = 220) -> list[str]:
    """For each module of timm's, its smallest architectures (by the words in their names), up to `count` in all."""
    import timm

    rooms: dict[str, list[str]] = {}
    for name in timm.list_models():
        rooms.setdefault(timm.models._registry._model_to_module[name], []).append(name)
    ranked = {room: sorted(names, key=_weight) for room, names in rooms.items()}
    picked: list[str] = []
    for turn in range(12):
        picked += [names[turn] for names in ranked.values() if len(names) > turn]
    return picked[:count]


def timm_all_names() -> list[str]:
    """Every architecture below 100 million parameters, the small ones of each module first."""
    import timm

    first = timm_names(10_000)
    return [*dict.fromkeys([*first, *timm.list_models()])]


def _timm_any(name: str) -> Built:
    import timm

    with torch.device("meta"):
        count = sum(p.numel() for p in timm.create_model(name, num_classes=10).parameters())
    if count >= 100e6:
        raise ValueError(f"{count / 1e6:.0f} M parameters: not below 100 M")
    return _timm(name)


SMALL = (
    "test",
    "atto",
    "femto",
    "pico",
    "nano",
    "xxs",
    "xx_small",
    "tiny",
    "x_small",
    "xs",
    "_s",
    "small",
    "b0",
    "10",
    "14",
    "18",
    "26",
    "32",
    "34",
    "mini",
)
LARGE = (
    "huge",
    "giant",
    "gigantic",
    "large",
    "xlarge",
    "xx",
    "_l",
    "_h",
    "_g",
    "101",
    "152",
    "200",
    "269",
    "base",
    "384",
    "448",
    "512",
    "b5",
    "b6",
    "b7",
    "b8",
    "_e",
    "enormous",
    "so400m",
    "so150m",
    "_xl",
    "1b",
    "7b",
    "2b",
    "x64",
    "_160",
    "_320",
    "f6",
    "f7",
    "f5",
)


def _weight(name: str) -> tuple[int, int, str]:
    large = sum(word in name for word in LARGE)
    small = next((i for i, word in enumerate(SMALL) if word in name), len(SMALL))
    return large, small, name


# Convolutions without padding leave too few of 128 pixels for the statistics of a norm; halos want whole blocks.
SIDES = {"inception": 192, "halo": 256}


def _timm(name: str) -> Built:
    import timm

    model = timm.create_model(name, num_classes=10).eval()
    channels, side, _ = model.default_cfg.get("input_size", (3, 224, 224))
    if not model.default_cfg.get("fixed_input_size", False):
        side = min(side, next((n for word, n in SIDES.items() if word in name), 128))
        side -= side % _patch(model)
    return model, (_image(1, side, channels),), {}


def _patch(model: nn.Module) -> int:
    size = next((m.patch_size for m in model.modules() if hasattr(m, "patch_size")), 1)
    return int(size[0] if isinstance(size, (list, tuple)) else size)


# all -----------------------------------------------------------------------------------------------------------

FAMILIES: Mapping[str, tuple[Callable[[], list[str]], Callable[[str], Built]]] = {
    "torchvision": (torchvision_names, _torchvision),
    "hf": (hf_names, _hf),
    "timm": (timm_names, _timm),
    "hf_all": (hf_all_names, _hf_any),
    "timm_all": (timm_all_names, _timm_any),
}
NIGHTLY = {
    "torchvision": _words(
        """
        resnet18 mobilenet_v2 shufflenet_v2_x0_5 densenet121 vit_b_16 swin_t
        regnet_y_400mf lraspp_mobilenet_v3_large ssdlite320_mobilenet_v3_large raft_small
        """
    ),
    "hf": _words(
        """
        bert gpt2 llama bloom gpt_neox t5 vit swin deberta-v2 mixtral wav2vec2 mamba xmod
        switch_transformers whisper
        """
    ),
    "timm": _words(
        """
        resnet10t levit_128s mobilevit_xxs ghostnet_050 xcit_nano_12_p16_224 test_vit
        eca_botnext26ts_256 sequencer2d_s
        """
    ),
}


def room(family: str, name: str) -> str:
    """What kind of model it is: medians are told for each kind."""
    if family == "torchvision":
        import torchvision

        builder = torchvision.models.get_model_builder(name)
        words = builder.__module__.removeprefix("torchvision.models.").split(".")
        known = ("detection", "segmentation", "optical_flow", "video")
        return words[0] if words[0] in known else "classification"
    if family.startswith("hf"):
        return "two towers" if name in ("clip", "siglip") else "task head"
    return "classification"


def build(family: str, name: str) -> Built:
    """A model with random weights, in eval mode, and its inputs."""
    importlib.import_module("transformers" if family.startswith("hf") else family.partition("_")[0])
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FAMILIES[family][1](name)
