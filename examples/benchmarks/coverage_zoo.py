"""The models that `coverage.py` looks at: random weights from tiny configurations, nothing is downloaded.

In: a family and a name. Out: (model in eval mode, args, kwargs), as `build` gives them.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from torch import Tensor, nn

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

WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
CAUSAL, SEQUENCE, SEQ2SEQ, IMAGE, AUDIO, OTHER = (
    WORDS["types"][kind].split()
    for kind in ("causal", "sequence", "seq2seq", "image", "audio", "other")
)


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
        for head in WORDS["heads"].split()
        if type(config) in getattr(transformers, head)._model_mapping
    )
    with contextlib.suppress(RuntimeError, NotImplementedError), torch.device("meta"):
        if sum(p.numel() for p in made.from_config(config).parameters()) > 50e6:
            raise ValueError("its tiny configuration is not tiny")
    model = made.from_config(config).eval()
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
    every = {word: value for word, value in known.items() if word in words}
    return TaskHead(model).eval(), (), inputs if _runs(model, inputs) else every | inputs


def _runs(model: nn.Module, inputs: dict[str, Tensor]) -> bool:
    try:
        with torch.no_grad():
            model(**inputs)
    except Exception:
        return False
    return True


def _shrunk(auto: Any, name: str) -> Any:
    """The default configuration with every known size made small, in the configurations inside it too."""
    default = auto.for_model(name)
    small: dict[str, Any] = _tiny(default.to_dict())
    for key, value in default.to_dict().items():
        if isinstance(value, dict) and key.endswith("_config") and "model_type" in value:
            small[key] = {"model_type": value["model_type"], **_tiny(value)}
        elif key in ("num_layers", "n_layer", "n_layers", "depth", "num_decoder_layers"):
            small[key] = 2 if isinstance(value, int) else value
    return auto.for_model(name, **small)


def _tiny(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The known words of one configuration, small."""
    small = {word: n for word, n in WORDS["tiny"].items() if isinstance(fields.get(word), int)}
    for key, value in fields.items():
        if isinstance(value, dict) and "mrope_section" in value:
            small[key] = value | {"mrope_section": [2, 1, 1]}  # of heads of eight
    if "pad_token_id" in fields:
        small["pad_token_id"] = 0  # classifiers of several texts ask for one
    if (
        fields.get("qk_rope_head_dim") is not None
    ):  # latent attention: every head has keys of its own
        small |= {"qk_rope_head_dim": 8, "num_key_value_heads": small["num_attention_heads"]}
    return small


def _side(config: Any) -> int:
    size = getattr(config, "image_size", 32) or 32
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _config(auto: Any, name: str) -> Any:
    if name in ("clip", "siglip"):
        text = {k: v for k, v in WORDS["tiny"].items() if k not in ("use_cache", "head_dim")} | {
            "max_position_embeddings": 16
        }
        return auto.for_model(name, text_config=text, vision_config=dict(text), projection_dim=16)
    default = auto.for_model(name)
    known = {key: value for key, value in WORDS["tiny"].items() if _knows(default, key)}
    if name in IMAGE:
        for word in ("embedding_size", "vocab_size", "num_key_value_heads", "head_dim"):
            known.pop(word, None)
    for word in WORDS["unknown"].get(name, ()):
        known.pop(word, None)
    changed = WORDS["overrides"].get(name, {})
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


SMALL, LARGE = WORDS["small"].split(), WORDS["large"].split()


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
NIGHTLY = {family: names.split() for family, names in WORDS["nightly"].items()}


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
