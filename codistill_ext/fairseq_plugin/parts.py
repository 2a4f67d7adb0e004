"""(fairseq) The part of the training sentences that one model has with disjoint data."""

import logging
from typing import Any

import numpy as np
from fairseq.data import BaseWrapperDataset, FairseqDataset

from codistill_ext.config import CodistillConfig
from codistill_ext.groups import ModelGroups
from codistill_ext.sampling import own_part

logger = logging.getLogger(__name__)


class OwnPart(BaseWrapperDataset):
    """A dataset of which only some sentences are put into batches; all keep their indices."""

    def __init__(self, dataset: FairseqDataset, indices: Any) -> None:
        super().__init__(dataset)
        self._is_mine = np.zeros(len(dataset), dtype=bool)
        self._is_mine[indices] = True

    def ordered_indices(self) -> Any:
        indices = self.dataset.ordered_indices()
        return indices[self._is_mine[indices]]


def part_of(dataset: FairseqDataset, config: CodistillConfig, groups: ModelGroups, seed: int) -> OwnPart:
    """This model's part; ``seed`` is the job's, so that all models cut alike."""
    indices = own_part(len(dataset), config, groups, seed)
    logger.info(f"{groups.name} trains on {len(indices)} of {len(dataset)} sentences, which no other model sees")
    return OwnPart(dataset, indices.numpy())
