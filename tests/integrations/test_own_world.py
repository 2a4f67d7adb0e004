"""A host's default process group is its model's, and the coupling's is the whole job's."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from codistill_ext import CodistillConfig
from codistill_ext.integrations.checkpoints import newest_common
from codistill_ext.integrations.own_world import join
from codistill_ext.job.storage import save_checkpoint
from tests.ranks import RankError, run_ranks


def _what_a_host_sees(rank: int, models: int, placement: str) -> dict[str, Any]:
    world = join(CodistillConfig(models=models, placement=placement))
    total = torch.tensor([rank])
    dist.all_reduce(total)
    lead = torch.tensor([rank])
    dist.broadcast(lead, src=0)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, rank)
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1, bias=False))
    ddp(torch.tensor([[float(rank)]])).backward()
    with world.whole_job():
        whole = dist.get_rank(), dist.get_world_size()
    return {
        "own": (dist.get_rank(), dist.get_world_size()),
        "whole": whole,
        "total": total.item(),
        "lead": lead.item(),
        "everyone": everyone,
        "gradient": next(ddp.parameters()).grad.item(),
    }


@pytest.mark.parametrize(
    ("models", "placement", "table"),
    [
        (2, "contiguous", [[0, 1], [2, 3]]),
        (2, "interleaved", [[0, 2], [1, 3]]),
        (4, "contiguous", [[0], [1], [2], [3]]),
    ],
)
def test_a_host_sees_the_ranks_of_its_model_alone(models: int, placement: str, table: list[list[int]]) -> None:
    results = run_ranks(4, _what_a_host_sees, models, placement)
    for ranks in table:
        for place, rank in enumerate(ranks):
            assert results[rank] == {
                "own": (place, len(ranks)),
                "whole": (rank, 4),
                "total": sum(ranks),
                "lead": ranks[0],
                "everyone": ranks,
                "gradient": sum(ranks) / len(ranks),
            }


def _joins_twice(rank: int) -> None:
    join(CodistillConfig(models=2))
    join(CodistillConfig(models=2))


def test_a_second_world_is_refused() -> None:
    with pytest.raises(RankError, match="call join once"):
        run_ranks(4, _joins_twice)


def _newest(rank: int, run: str) -> str:
    world = join(CodistillConfig(models=2))
    with world.whole_job():
        return str(newest_common(Path(run), "codistill.pt", world.groups))


def _save(run: Path, model: int, update: int, *, models: int = 2) -> Path:
    path = run / f"model{model}" / f"checkpoint-{update}" / "codistill.pt"
    path.parent.mkdir(parents=True)
    save_checkpoint({"updates": update, "config": {"models": models}}, path)
    return path


def test_models_resume_from_an_update_that_all_have_whole(tmp_path: Path) -> None:
    assert run_ranks(2, _newest, str(tmp_path)) == ["None", "None"]
    for update in (10, 20, 30):
        _save(tmp_path, 0, update)
    _save(tmp_path, 1, 10)
    damaged = _save(tmp_path, 1, 20)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (tmp_path / "model1" / "checkpoint-30").mkdir()  # killed before its last file
    found = run_ranks(2, _newest, str(tmp_path))
    assert found == [str(tmp_path / f"model{model}" / "checkpoint-10") for model in range(2)]


def test_a_model_that_had_ended_goes_with_any_later_update(tmp_path: Path) -> None:
    _save(tmp_path, 0, 30)
    ended = _save(tmp_path, 1, 20)
    ended.with_name("trainer_state.json").write_text('{"global_step": 20, "max_steps": 20}')
    assert [Path(path).name for path in run_ranks(2, _newest, str(tmp_path))] == ["checkpoint-30", "checkpoint-20"]


def test_a_run_of_other_models_is_refused(tmp_path: Path) -> None:
    for model in range(2):
        _save(tmp_path, model, 10, models=3)
    with pytest.raises(RankError, match="a run of 3 models, but there are 2 now"):
        run_ranks(2, _newest, str(tmp_path))
