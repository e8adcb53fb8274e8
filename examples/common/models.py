"""Models with random weights and example inputs for them, made when they are asked for; what a pass costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Built", "Logits", "macs", "text", "vision"]

Built = tuple[nn.Module, tuple[Any, ...]]


class Logits(nn.Module):
    """A language model as a function of words to logits: other tools take neither keywords nor records."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: Tensor, answer: Tensor | None = None) -> Tensor:
        """(rows, tokens) int64, and of an encoder with a decoder the tokens of that one -> logits."""
        more = {} if answer is None else {"decoder_input_ids": answer}
        logits: Tensor = self.model(input_ids=words, **more).logits
        return logits


def vision(name: str, side: int = 224, batch: int = 1, **settings: Any) -> Callable[[], Built]:
    """A model of torchvision, or of timm as ``timm:NAME``, with square images."""

    def make() -> Built:
        if name.startswith("timm:"):
            import timm

            model = timm.create_model(name.removeprefix("timm:"), pretrained=False, **settings)
        else:
            from torchvision import models

            model = models.get_model(name, weights=None, **settings)
        return model, (torch.randn(batch, 3, side, side),)

    return make


def text(kind: str, words: tuple[int, int, int, int], **sizes: Any) -> Callable[[], Built]:
    """A class of transformers with a configuration of these sizes.

    Args:
        kind: the class.
        words: the least token, the one past the last, rows, tokens in a row.
        sizes: of the configuration, else its defaults.
    """

    def make() -> Built:
        import transformers

        made = getattr(transformers, kind)
        low, high, *shape = words
        return made(made.config_class(**sizes)), (torch.randint(low, high, shape),)

    return make


def macs(model: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Multiply-accumulates of a pass, as PyTorch counts them, those of attention included."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:  # it counts attention taken apart
        model(*args, **kwargs)
    return counter.get_total_flops() // 2
