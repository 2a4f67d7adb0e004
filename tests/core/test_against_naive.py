"""The distributed run equals a naive single-process walk through the paper's algorithm."""

import functools
from typing import Any

import pytest
import torch

from codistill_ext import CodistillConfig
from tests.core.training import ALIKE, LR, UNLIKE, batches, build, train
from tests.naive import train_naively
from tests.ranks import run_ranks

UPDATES = 20
CHECKPOINTS = {"exchange": "checkpoints", "period": 5, "lag": 4}  # which crosses in three pieces

CASES = [
    ({"models": 2}, 1),
    ({"models": 3, "divergence": "kl_student_teacher", "temperature": 2.0}, 1),
    ({"models": 3, "target": "mean", "burn_in": 4}, 1),
    ({"models": 2, "divergence": "mse", "alpha": 0.3}, 2),
    ({"models": 3, "topology": "ring", "divergence": "cross_entropy"}, 1),
    ({"models": 3, "topology": "0<-1,1<-0,2<-0"}, 1),
    ({"models": 2, "encoding": "half"}, 2),
    ({"models": 4, "encoding": "half", "target": "mean"}, 1),
    ({"models": 2, "encoding": "topk", "topk": 2}, 2),
    ({"models": 4, "encoding": "topk", "topk": 1, "topology": "ring"}, 1),
    ({"models": 3, "encoding": "topk", "topk": 3, "divergence": "kl_student_teacher", "temperature": 2.0}, 1),
    ({"models": 2, "encoding": "topk", "divergence": "cross_entropy"}, 1),
    ({"models": 2, **CHECKPOINTS}, 1),
    ({"models": 3, **CHECKPOINTS}, 1),
    ({"models": 2, **CHECKPOINTS, "data": "coordinated"}, 2),
    ({"models": 3, **CHECKPOINTS, "lag": 0, "topology": "ring"}, 1),
]


def _name(case: tuple[dict[str, Any], int]) -> str:
    return " ".join(f"{key}={value}" for key, value in case[0].items()) + f" ranks={case[1]}"


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_equals_the_naive_run(case: tuple[dict[str, Any], int]) -> None:
    _compare_runs(*case, widths=ALIKE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [({"models": 3}, 1), ({"models": 3, **CHECKPOINTS}, 1), ({"models": 4, **CHECKPOINTS, "topology": "ring"}, 1)],
    ids=_name,
)
def test_models_of_other_architectures_equal_the_naive_run(case: tuple[dict[str, Any], int]) -> None:
    _compare_runs(*case, widths=UNLIKE)


def _compare_runs(options: dict[str, Any], ranks: int, *, widths: tuple[int, ...]) -> None:
    config = CodistillConfig(**options)
    expected = train_naively(
        functools.partial(build, widths=widths),
        functools.partial(batches, coordinated=config.coordinated),
        config,
        ranks=ranks,
        updates=UPDATES,
        lr=LR,
    )
    for result in run_ranks(config.models * ranks, train, options, UPDATES, widths):
        assert any(peers for _, peers in result["terms"]) or not config.peers[result["model"]]
        _compare(result["state"], expected[result["model"]], buffers=ranks == 1)


def _compare(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], buffers: bool) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        if buffers or "running" not in name:  # with several ranks each has running statistics of its own
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
