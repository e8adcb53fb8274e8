"""graftlib_adapters: the methods that move knowledge between models, each one module on top of graftlib."""

from .mergenet import MergeNet as MergeNet  # attention between low-rank codes of the weights
from .mlp import MLPAdapter as MLPAdapter  # the paper's first, simple form
from .sharing import ParameterSharing as ParameterSharing  # one shared block, nothing to learn
