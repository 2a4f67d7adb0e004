"""What is said before a forward pass changes when messages travel, and no number."""

import contextlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups
from codistill_ext.exchange.wire.announcements import Positions, _trues_first, _unravelled
from codistill_ext.exchange.wire.channel import Channel
from tests.core.training import LR, batches, build
from tests.ranks import RankError, run_ranks

UPDATES, MICRO = 3, 3


def _train(rank: int, options: dict[str, Any], how: str) -> dict[str, Any]:
    """Train with ``how``: plain, announced, or micro-batches of which the next one is computed meanwhile."""
    config = CodistillConfig(**options, timeout=60.0)
    groups = ModelGroups.create(config)
    model = CodistillParallel(build(groups.model_index), groups, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    order = _record_order(model)
    divergences = []
    for update in range(UPDATES):
        waiting: list[Any] = []

        def finish(waiting: list[Any] = waiting) -> None:
            loss, term = waiting.pop(0)
            found = term()
            divergences.append(found.divergence.item())
            (loss + found.loss).backward()

        optimizer.zero_grad()
        for micro in range(MICRO):
            last = micro == MICRO - 1  # DistributedDataParallel averages in it: no forward pass may come between
            with contextlib.nullcontext() if last else model.no_sync():
                x, y = batches(MICRO * update + micro, groups.model_index, groups.data_rank, coordinated=True)
                mask = y != 0
                if how != "plain" and rank != 1:  # one that never announces gets along with those that do
                    model.announce(x, mask=mask)
                    order.append("announced")
                logits = model(x)
                order.append("forward")
                waiting.append((F.cross_entropy(logits, y), model.begin_codistill(x, logits, mask=mask)))
                while len(waiting) > (how == "overlapping" and micro < MICRO - 2):
                    finish()
        optimizer.step()
        model.after_update()
    model.close()
    return {"state": model.state_dict(), "divergences": divergences, "order": order}


def _record_order(model: CodistillParallel) -> list[str]:
    order: list[str] = []
    channel: Channel = model.exchange.channel
    post = channel.post

    def recorded(header: Any) -> Any:
        order.append("header")
        return post(header)

    channel.post = recorded
    return order


OPTIONS = {"models": 2, "encoding": "topk", "topk": 2}


def test_announced_and_overlapping_micro_batches_train_to_the_same_bits() -> None:
    plain, announced, overlapping = (
        run_ranks(4, _train, OPTIONS, how) for how in ("plain", "announced", "overlapping")
    )
    for rank, expected in enumerate(plain):
        for found in announced[rank], overlapping[rank]:
            assert found["divergences"] == expected["divergences"]
            assert all(torch.equal(found["state"][name], tensor) for name, tensor in expected["state"].items())
    per_batch = ["announced", "forward", "header"] + ["header", "announced", "forward"] * (MICRO * UPDATES - 1)
    assert announced[0]["order"] == per_batch, "from the second on, when the outputs are known, before the forward pass"
    assert announced[1]["order"] == plain[1]["order"] == ["forward", "header"] * (MICRO * UPDATES)


def _misuse(rank: int, how: str) -> None:
    config = CodistillConfig(models=2, timeout=20.0)
    groups = ModelGroups.create(config)
    model = CodistillParallel(build(groups.model_index), groups, config)
    x, _ = batches(0, 0, 0, coordinated=True)
    model.codistill(x, model(x))  # tells how many outputs there are
    model.after_update()
    model.announce(x, rows=len(x) - (how == "rows"))
    if how == "twice":
        model.announce(x, rows=len(x))
    if how == "leave":
        model.leave()
    other = x + 1 if how == "inputs" else x
    model.codistill(other, model(other))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("rows", r"announced another mini-batch .* rows=5, .* and 6 rows of 5 outputs"),
        ("inputs", "announced another mini-batch than the one whose term is asked for at update 1"),
        ("twice", "announced two mini-batches at update 1"),
        ("leave", "ends at update 1 after a mini-batch that it announced"),
    ],
)
def test_an_announcement_that_is_not_kept_is_named(how: str, message: str) -> None:
    with pytest.raises(RankError, match=message):
        run_ranks(2, _misuse, how)


def _other_data(rank: int) -> float:
    config = CodistillConfig(models=2, timeout=20.0)
    groups = ModelGroups.create(config)
    model = CodistillParallel(build(groups.model_index), groups, config)
    x, _ = batches(0, 0, 0, coordinated=True)
    for update in range(3):
        x = x + (update == 2) * rank * 1e-3  # the planted mismatch
        model.announce(x, rows=len(x))
        model.codistill(x, model(x))
        model.after_update()
    return 0.0


def test_a_mismatch_is_named_also_if_it_was_announced() -> None:
    with pytest.raises(RankError, match=r"read different mini-batches at update 2 .*6 rows with fingerprint"):
        run_ranks(2, _other_data)


def test_positions_are_those_of_the_mask() -> None:
    mask = torch.tensor([[True, False, True], [False, False, True]])
    logits = torch.randn(2, 3, 4, requires_grad=True)
    positions = Positions(mask)
    assert positions.count == 3 and positions.is_here
    rows = positions.rows_of(logits)
    assert torch.equal(rows, logits[mask])
    weights = torch.randn(3, 4)
    (expected,) = torch.autograd.grad((logits[mask] * weights).sum(), logits)
    (found,) = torch.autograd.grad((rows * weights).sum(), logits)
    assert torch.equal(found, expected)
    # As on a device, where nobody waits to know how many there are.
    order = _trues_first(mask.reshape(-1))[: positions.count]
    found_places, places = _unravelled(order, mask.shape), mask.nonzero(as_tuple=True)
    assert all(torch.equal(found, expected) for found, expected in zip(found_places, places, strict=True))
