"""Models that would not cut the same data alike are told so."""

import pytest

from codistill_ext import CodistillConfig, ModelGroups
from codistill_ext.job.partition import check_partition
from tests.ranks import run_ranks

CONFIG = CodistillConfig(models=2, exchange="checkpoints", data="disjoint")


def _check(rank: int) -> list[str]:
    groups = ModelGroups.create(CONFIG)
    check_partition([3, 1, 2], CONFIG, groups, seed=5)
    check_partition(10 + rank, CodistillConfig(models=2, exchange="checkpoints"), groups, seed=rank)
    messages = []
    for samples, seed in ((10, rank), (10 + rank, 0), ([3, 1 + rank], 0)):
        with pytest.raises(ValueError) as error:
            check_partition(samples, CONFIG, groups, seed)
        messages.append(str(error.value))
    return messages


def test_ranks_with_other_seeds_or_data() -> None:
    expected = ["ranks 0 and 1 differ: seed: 0 and 1", "ranks 0 and 1 differ: samples: 10 and 11", "sha256"]
    for messages in run_ranks(2, _check):
        assert all(words in message for words, message in zip(expected, messages, strict=True))
