"""Cut: edits of a model by axis class, and of what goes stale with them."""

from .blocks import Block as Block
from .blocks import blocks as blocks
from .depth import deepen as deepen
from .depth import drop_blocks as drop_blocks
from .edits import preview as preview
from .edits import tensor_of as tensor_of
from .experts import Experts as Experts
from .experts import expert_usage as expert_usage
from .experts import experts as experts
from .experts import prune_experts as prune_experts
from .importance import IMPORTANCES as IMPORTANCES
from .importance import Importance as Importance
from .importance import Ranking as Ranking
from .importance import ranking as ranking
from .permute import permute as permute
from .proof import TOLERANCE as TOLERANCE
from .proof import change as change
from .prune import prune as prune
from .refusal import SurgeryError as SurgeryError
from .refusal import SurgeryWarning as SurgeryWarning
from .rescale import EPS as EPS
from .rescale import Rms as Rms
from .rescale import rescale_norms as rescale_norms
from .rescale import rms_norms as rms_norms
from .rescale import role_places as role_places
from .rescale import scores_only as scores_only
from .vocabulary import PrunedVocabulary as PrunedVocabulary
from .vocabulary import VocabularyReport as VocabularyReport
from .vocabulary import prune_vocabulary as prune_vocabulary
from .widen import widen as widen

__all__ = [
    "EPS",
    "IMPORTANCES",
    "TOLERANCE",
    "Block",
    "Experts",
    "Importance",
    "PrunedVocabulary",
    "Ranking",
    "Rms",
    "SurgeryError",
    "SurgeryWarning",
    "VocabularyReport",
    "blocks",
    "change",
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
    "rescale_norms",
    "rms_norms",
    "role_places",
    "scores_only",
    "tensor_of",
    "widen",
]
