"""A sharded job among others: it learns from their files, and they can read its own."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from codistill_ext import CodistillConfig
from tests.core.training import LR, batches, build, needs_fsdp, shard, train
from tests.naive import _forward_apart, _loss
from tests.ranks import run_ranks

pytestmark = needs_fsdp

UPDATES, RANKS = 12, 2
OPTIONS = {"models": 2, "exchange": "files", "period": 3, "lag": 1}


def _options(directory: Path, index: int) -> dict[str, Any]:
    return OPTIONS | {"dir": str(directory), "model_index": index}


def _train_naively(teacher: torch.nn.Module, options: dict[str, Any]) -> dict[str, Tensor]:
    """Model 0 with the other's last weights as its teacher, from the update on at which they can be in use."""
    config = CodistillConfig(**options)
    model = build(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    for update in range(UPDATES):
        data = [batches(update, 0, rank, coordinated=False) for rank in range(RANKS)]
        outputs = [model(data[0][0]), *(_forward_apart(model, x) for x, _ in data[1:])]
        in_use = update >= config.period + config.lag
        optimizer.zero_grad()
        _loss(0, data, [outputs], [None, teacher if in_use else None], config, update).backward()
        optimizer.step()
    return model.state_dict()


def _read(directory: Path, index: int) -> dict[str, Tensor]:
    """What stands in a job's last file: plain tensors in full, whatever wrote them."""
    return safetensors.torch.load_file(max((directory / f"model{index}").glob("*.safetensors")))


def _in_two_ways(rank: int, directory: str) -> list[dict[str, Any]]:
    return [
        train(rank, _options(Path(directory) / name, 0), UPDATES, data_parallel=how)
        for name, how in {"sharded": shard, "plain": None}.items()
    ]


def test_a_sharded_job_equals_the_naive_and_the_data_parallel_one(tmp_path: Path) -> None:
    for name in "sharded", "plain":
        teacher = train(0, _options(tmp_path / name, 1), 5)
    peer = build(1)
    peer.load_state_dict(teacher["state"])
    naive = _train_naively(peer.eval(), _options(tmp_path, 0))
    for results in run_ranks(RANKS, _in_two_ways, str(tmp_path)):
        for result in results:
            assert [peers for _, peers in result["terms"]] == [0] * 4 + [1] * 8
            for name, tensor in result["state"].items():
                if "running" not in name:
                    torch.testing.assert_close(tensor, naive[name], rtol=0, atol=1e-5)
    sharded, plain = (_read(tmp_path / name, 0) for name in ("sharded", "plain"))
    assert sharded.keys() == plain.keys()
    for name, tensor in sharded.items():
        torch.testing.assert_close(tensor, plain[name], rtol=0, atol=1e-5)


def test_a_job_of_one_process_learns_from_a_sharded_one(tmp_path: Path) -> None:
    run_ranks(RANKS, train, _options(tmp_path, 0), 3, (12, 12), shard)
    result = train(0, _options(tmp_path, 1), 5)
    assert result["terms"][-1][1] == 1
