"""How knowledge gets from a peer to this model: one file a way, ``base.py`` says what they promise.

May import ``wire/`` and the method's words; ``parallel.py`` alone builds an exchange.
"""

from torch import nn

from codistill_ext.config import CodistillConfig
from codistill_ext.exchange.base import Batch, Exchange
from codistill_ext.exchange.building import TeacherBuilder
from codistill_ext.exchange.checkpoints import CheckpointExchange
from codistill_ext.exchange.files import FileExchange
from codistill_ext.exchange.predictions import PredictionExchange
from codistill_ext.exchange.wire.description import ModelDescription, PeerBuilder, copies_only, describe_class
from codistill_ext.groups import ModelGroups

__all__ = [
    "Batch",
    "Exchange",
    "ModelDescription",
    "PeerBuilder",
    "TeacherBuilder",
    "build_exchange",
    "copies_only",
    "describe_class",
]


def build_exchange(
    module: nn.Module,
    groups: ModelGroups,
    config: CodistillConfig,
    description: ModelDescription,
    builder: TeacherBuilder,
) -> Exchange | None:
    """The exchange that the options ask for, or None where nothing crosses. All ranks must call it."""
    if not config.active:
        return None
    if config.exchange == "predictions":
        return PredictionExchange(groups, config)
    kind = CheckpointExchange if config.exchange == "checkpoints" else FileExchange
    return kind(module, groups, config, description, builder)
