"""Models that are sharded with FSDP2, two ranks each: the same numbers as without, by every exchange."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from codistill_ext import CodistillConfig
from tests.core.training import ALIKE, LR, UNLIKE, batches, build, needs_fsdp, shard, train
from tests.naive import train_naively
from tests.ranks import run_ranks

pytestmark = needs_fsdp

UPDATES = 20
CHECKPOINTS = {"models": 2, "exchange": "checkpoints", "period": 5, "lag": 2}
CASES: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({"models": 2}, ALIKE),
    ({"models": 2, "encoding": "topk", "topk": 2}, ALIKE),
    (CHECKPOINTS, ALIKE),
    ({**CHECKPOINTS, "data": "coordinated", "lag": 0}, UNLIKE),
]


def _train_all(rank: int) -> list[list[dict[str, Any]]]:
    return [[train(rank, options, UPDATES, widths, how) for how in (shard, None)] for options, widths in CASES]


def _compare(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """All but running statistics, of which each rank has its own."""
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        if "running" not in name:
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_sharded_runs_equal_the_naive_and_the_data_parallel_runs() -> None:
    results = run_ranks(4, _train_all)
    for case, (options, widths) in enumerate(CASES):
        config = CodistillConfig(**options)
        naive = train_naively(
            functools.partial(build, widths=widths),
            functools.partial(batches, coordinated=config.coordinated),
            config,
            ranks=2,
            updates=UPDATES,
            lr=LR,
        )
        for result in results:
            sharded, plain = result[case]
            _compare(sharded["state"], naive[sharded["model"]])
            _compare(sharded["state"], plain["state"])
            assert [peers for _, peers in sharded["terms"]] == [peers for _, peers in plain["terms"]]
            assert sharded["terms"][-1][1] == 1
