"""graftlib_adapters: the methods that move knowledge between models, each one module on top of graftlib."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .assembly import Search as Search  # which merges assemble tries
    from .assembly import Solver as Solver  # how it and lmc align units
    from .assembly import ZooEntry as ZooEntry  # a model of a zoo, read when its turn comes
    from .assembly import (
        assemble as assemble,  # layers of many models merged into one, without training
    )
    from .assembly import lmc as lmc  # how far one model can be merged into another
    from .assembly import (
        transplant as transplant,  # a fresh model from the weights of a trained one
    )
    from .mergenet import MergeNet as MergeNet  # attention between low-rank codes of the weights
    from .mlp import MLPAdapter as MLPAdapter  # the paper's first, simple form
    from .pull import AlignedPull as AlignedPull  # towards a source in the target's order of units
    from .sharing import ParameterSharing as ParameterSharing  # one shared block, nothing to learn

# Imported when first used, so that the commands' help is quick.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "assembly": ["Search", "Solver", "ZooEntry", "assemble", "lmc", "transplant"],
        "mergenet": ["MergeNet"],
        "mlp": ["MLPAdapter"],
        "pull": ["AlignedPull"],
        "sharing": ["ParameterSharing"],
    },
)

__all__ = [
    "AlignedPull",
    "MLPAdapter",
    "MergeNet",
    "ParameterSharing",
    "Search",
    "Solver",
    "ZooEntry",
    "assemble",
    "lmc",
    "transplant",
]
