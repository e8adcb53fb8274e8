"""Edits of a model by axis class, block, expert or token; what goes stale with them follows."""

from .blocks import Block, blocks
from .depth import deepen, drop_blocks
from .edits import Preview, preview
from .experts import Experts, expert_usage, experts, prune_experts
from .importance import IMPORTANCES, Importance, Ranking, ranking
from .permute import permute
from .prune import prune
from .refusal import SurgeryError, SurgeryWarning
from .vocabulary import PrunedVocabulary, VocabularyReport, prune_vocabulary
from .widen import widen

__all__ = [
    "IMPORTANCES",
    "Block",
    "Experts",
    "Importance",
    "Preview",
    "PrunedVocabulary",
    "Ranking",
    "SurgeryError",
    "SurgeryWarning",
    "VocabularyReport",
    "blocks",
    "deepen",
    "drop_blocks",
    "expert_usage",
    "experts",
    "permute",
    "preview",
    "prune",
    "prune_experts",
    "prune_vocabulary",
    "ranking",
    "widen",
]
