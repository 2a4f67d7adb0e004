"""Checkpoints of sharded models: resumed to the same bits, or with another number of ranks to the same weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups
from codistill_ext.job.sharded import load_sharded, save_sharded
from tests.core.training import batches, build, needs_fsdp, shard, whole
from tests.ranks import RankError, run_ranks
from tests.states import assert_same, without

pytestmark = needs_fsdp

CHECKPOINTS = {"models": 2, "exchange": "checkpoints", "period": 5, "lag": 3}


class Run:
    """A run as a user would write it, with noise that the random state decides."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.config = CodistillConfig(**options)
        self.groups = ModelGroups.create(self.config)
        self.model = CodistillParallel(build(self.groups.model_index), self.groups, self.config, data_parallel=shard)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)

    def train(self, updates: int) -> None:
        for update in range(self.model.updates, updates):
            place = self.groups.model_index, self.groups.data_rank
            x, y = batches(update, *place, coordinated=self.config.coordinated)
            logits = self.model(x)
            noise = 0.1 * torch.randn(len(x), 5)
            loss = F.cross_entropy(logits + noise, y) + self.model.codistill(x, logits).loss
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.model.after_update()

    def state(self) -> dict[str, Any]:
        return _here(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "codistill": self.model.codistill_state_dict(),
                "random": torch.get_rng_state(),
            }
        )


def _here(value: Any) -> Any:
    """A copy with the parts that this rank holds."""
    if isinstance(value, Tensor):
        return (value.to_local() if isinstance(value, DTensor) else value).clone()
    if isinstance(value, dict):
        return {key: _here(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_here(item) for item in value]
    return value


def _resumes(rank: int, directory: str, options: dict[str, Any]) -> list[str]:
    through = Run(options)
    assert load_sharded(Path(directory), through.model, through.optimizer) is None, "nothing is there yet"
    for update in 2, 5, 7:
        through.train(update)
        save_sharded(Path(directory), through.model, through.optimizer, {"position": 42})
    through.train(14)
    torch.manual_seed(12345)
    resumed = Run(options)
    assert load_sharded(Path(directory), resumed.model, resumed.optimizer) == {"position": 42}
    assert resumed.model.updates == 7
    resumed.train(14)
    assert_same(*(without(run.state(), ("taken_at",)) for run in (through, resumed)))
    for run in through, resumed:
        run.model.close()
    return sorted(path.name for path in (Path(directory) / f"model{through.groups.model_index}").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("options", [CHECKPOINTS, {"models": 2}], ids=["weights in flight", "predictions"])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, options: dict[str, Any]) -> None:
    names = run_ranks(4, _resumes, str(tmp_path), options)
    assert names == [["0000000005", "0000000007"]] * 4, "the last two are kept, and nothing half-written"


def _goes_back(rank: int, directory: str) -> list[int]:
    """The job died before model 1 had saved the last time."""
    run = Run({"models": 2})
    for update in 2, 4:
        run.train(update)
        save_sharded(Path(directory), run.model, run.optimizer, {"position": update})
    run.groups.gather(None)
    if rank == 3:
        shutil.rmtree(Path(directory) / "model1" / "0000000004")
    run.groups.gather(None)
    again = Run({"models": 2})
    extra = load_sharded(Path(directory), again.model, again.optimizer)
    for one in run, again:
        one.model.close()
    assert extra is not None
    return [again.model.updates, extra["position"]]


def test_models_go_on_from_the_newest_update_that_all_have_saved(tmp_path: Path) -> None:
    assert run_ranks(4, _goes_back, str(tmp_path)) == [[2, 2]] * 4


def _saves(rank: int, directory: str) -> dict[str, Any]:
    run = Run(CHECKPOINTS)
    run.train(11)
    save_sharded(Path(directory), run.model, run.optimizer)
    found = _weights(run)
    run.model.close()
    return found


def _weights(run: Run) -> dict[str, Any]:
    teacher = run.model.exchange.teachers[1 - run.groups.model_index]
    coupling = run.model.codistill_state_dict()["exchange"]
    (flight,) = coupling["flights"]
    (arrival,) = flight["arrivals"].values()
    return {
        "model": run.groups.model_index,
        "student": whole(run.model.state_dict()),
        "stamp": teacher.stamp,
        "teacher": whole(teacher.module.state_dict()),
        "flight": whole(arrival["weights"]),
        "moments": whole({str(i): s["exp_avg"] for i, s in enumerate(run.optimizer.state_dict()["state"].values())}),
    }


def _goes_on(rank: int, directory: str) -> dict[str, Any]:
    run = Run(CHECKPOINTS)
    with pytest.raises(ValueError, match=r"another number of ranks a model \(2 then, 1 now\)"):
        load_sharded(Path(directory), run.model, run.optimizer)
    load_sharded(Path(directory), run.model, run.optimizer, other_ranks=True)
    found = _weights(run)
    run.train(14)
    run.model.close()
    return found


@pytest.mark.slow
def test_with_another_number_of_ranks_the_same_weights_go_on(tmp_path: Path) -> None:
    saved = {found["model"]: found for found in run_ranks(4, _saves, str(tmp_path))}
    for found in run_ranks(2, _goes_on, str(tmp_path)):
        assert_same(found, saved[found["model"]])


def _other_options(rank: int, directory: str) -> None:
    run = Run(CHECKPOINTS | {"alpha": 0.5})
    load_sharded(Path(directory), run.model, run.optimizer)


def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path) -> None:
    run_ranks(2, _saves_soon, str(tmp_path))
    with pytest.raises(RankError, match=r"other codistillation options \(alpha: 1\.0 then, 0\.5 now\)"):
        run_ranks(2, _other_options, str(tmp_path))


def _saves_soon(rank: int, directory: str) -> None:
    run = Run(CHECKPOINTS)
    save_sharded(Path(directory), run.model, run.optimizer)
    run.model.close()
