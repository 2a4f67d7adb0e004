"""A loop that never calls ``after_update`` is an error, and one that accumulates gradients for long is not."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups
from codistill_ext.errors import CoordinationError
from codistill_ext.watch import UpdateWatch
from tests.core.training import LR, batches, build
from tests.ranks import RankError, run_ranks

TWO = torch.arange(2).view(2, 1)


def _first_of_two() -> ModelGroups:
    return ModelGroups(TWO, rank=0, mesh=None, apart=None)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> ModelGroups:
    monkeypatch.setattr(torch.distributed, "new_group", lambda **_: None)
    return _first_of_two()


def _step(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1e-3)


def test_weights_that_stand_are_accumulation_however_far_the_peer_is(groups: ModelGroups) -> None:
    module = build(0)
    watch = UpdateWatch(module)
    for there in range(1000):
        with torch.no_grad():  # an adversarial step and its way back, or averaged weights for validation
            for parameter in module.parameters():
                step = torch.full_like(parameter, 0.1)
                parameter.add_(step).sub_(step)
        watch.check(groups, 0, {1: there})


def test_weights_that_move_are_no_proof_while_the_peer_stands_too(groups: ModelGroups) -> None:
    module = build(0)
    watch = UpdateWatch(module)
    for _ in range(99):
        _step(module)
        watch.check(groups, 0, {1: 500})
    with pytest.raises(CoordinationError, match="after 100 mini-batches, though its weights have changed"):
        watch.check(groups, 0, {1: 500})


def test_both_ranks_and_updates_are_named(groups: ModelGroups) -> None:
    module = build(0)
    watch = UpdateWatch(module)
    with pytest.raises(CoordinationError) as error:
        for there in range(500, 600):
            watch.check(groups, 20, {1: there})
            _step(module)
    assert "model 0 (rank 0) is still at update 20 after 20 mini-batches" in str(error.value)
    assert "model 1 (rank 1) is at update 519. Call model.after_update()" in str(error.value)


def _loop(rank: int, options: dict[str, Any], batches_an_update: list[int], updates: int) -> int:
    """Model ``rank`` makes an update of so many mini-batches; 0 forgets ``after_update``."""
    config = CodistillConfig(models=2, timeout=20.0, **options)
    model = CodistillParallel(build(rank), ModelGroups.create(config), config)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    every = batches_an_update[rank]
    for index in range(updates):
        x, y = batches(index, rank, 0, coordinated=config.coordinated)
        logits = model(x)
        (F.cross_entropy(logits, y) + model.codistill(x, logits).loss).backward()
        if every == 0 or (index + 1) % every == 0:
            optimizer.step()
            optimizer.zero_grad()
            if every:
                model.after_update()
    model.close()
    return model.updates


def test_a_forgotten_after_update_beside_a_peer_is_an_error() -> None:
    with pytest.raises(RankError) as error:
        run_ranks(2, _loop, {}, [1, 0], 30)
    text = error.value.errors[1]
    assert "CoordinationError: model 1 (rank 1) is still at update 0 after 20 mini-batches" in text
    assert "model 0 (rank 0) is at update 19" in text


def test_other_numbers_of_micro_batches_are_not() -> None:
    assert run_ranks(2, _loop, {}, [1, 40], 40) == [40, 1]


def test_forgotten_where_weights_cross() -> None:
    with pytest.raises(RankError) as error:
        run_ranks(2, _loop, {"exchange": "checkpoints", "period": 50}, [0, 0], 101)
    for rank in range(2):
        assert f"model {rank} (rank {rank}) is still at update 0 after 100 mini-batches" in error.value.errors[rank]
        assert "none ever would" in error.value.errors[rank]
