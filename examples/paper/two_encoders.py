"""A model with an encoder for pictures, one for texts, and a fusion that lets the text look at the picture.

In: pictures, questions, captions. Out: logits of the answers, and embeddings of pictures and captions. Always true:
both encoders are of the same blocks, so every matrix of one has its like in the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

__all__ = ["WORDS", "TwoEncoders"]

WORDS = 20
"""Tokens of a question or a caption."""


class TwoEncoders(nn.Module):
    """A vision encoder, a text encoder, a fusion that lets the text look at the picture, and three heads.

    Args:
        vocabulary, answers: how many words and answers there are.
        shape: of a picture, (channels, height, width).
        width, layers, heads: of both encoders.
        patch: side of a patch in pixels.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        answers: int,
        shape: tuple[int, ...],
        width: int,
        layers: int,
        heads: int,
        patch: int,
    ) -> None:
        super().__init__()
        channels, height, wide = shape
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.vision_places = nn.Parameter(
            0.02 * torch.randn(height // patch * (wide // patch), width)
        )
        self.vision = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.words = nn.Embedding(vocabulary, width, padding_idx=0)
        self.text_places = nn.Parameter(0.02 * torch.randn(WORDS, width))
        self.text = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.fusion = nn.ModuleList(
            Block(width, heads, crossed=True) for _ in range(max(1, layers // 2))
        )
        self.vision_head = nn.Linear(width, width)
        self.text_head = nn.Linear(width, width)
        self.answer = nn.Linear(width, answers)

    def forward(
        self, pictures: Tensor, questions: Tensor, captions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures (n, channels, h, w), and (n, words) twice.

        Returns:
            The answers' logits (n, answers), and the embeddings (n, width) of the pictures and of the captions.
        """
        seen = self.see(pictures)
        read = self.read(questions)
        for block in self.fusion:
            read = block(read, seen)
        return self.answer(read.mean(1)), self.embed_picture(seen), self.embed_text(captions)

    def see(self, pictures: Tensor) -> Tensor:
        """(n, patches, width)."""
        seen = self.patches(pictures).flatten(2).transpose(1, 2) + self.vision_places
        for block in self.vision:
            seen = block(seen, seen)
        return seen

    def read(self, words: Tensor) -> Tensor:
        """(n, words, width)."""
        read = self.words(words) + self.text_places
        for block in self.text:
            read = block(read, read)
        return read

    def embed_picture(self, seen: Tensor) -> Tensor:
        """(n, width), of length one, from what `see` gave."""
        return normalize(self.vision_head(seen.mean(1)), dim=1)

    def embed_text(self, words: Tensor) -> Tensor:
        """(n, width), of length one."""
        return normalize(self.text_head(self.read(words).mean(1)), dim=1)


class Block(nn.Module):
    """Attention to `others`, and a feed-forward, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, *, crossed: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.other_norm = nn.LayerNorm(width) if crossed else None
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor, others: Tensor) -> Tensor:
        """(n, tokens, width) and (n, others, width) -> (n, tokens, width)."""
        asked = self.norm(tokens)
        given = self.norm(others) if self.other_norm is None else self.other_norm(others)
        mixed = nn.functional.scaled_dot_product_attention(
            self._split(self.query(asked)),
            self._split(self.key(given)),
            self._split(self.value(given)),
        )
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        return tokens + self.feed(tokens)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
