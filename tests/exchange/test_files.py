"""Separate jobs that share a directory: what is written, what is refused, and who waits for whom."""

import logging
import os
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch

from codistill_ext.errors import PeerTimeoutError
from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.weight_file import write_weights
from codistill_ext.exchange.wire.weights import WeightPacker
from tests.exchange.jobs import PUBLISHER, READER, Job, newest, read
from tests.naive import Net
from tests.ranks import run_ranks
from tests.states import assert_same, without


def test_two_jobs_teach_each_other(tmp_path: Path) -> None:
    first, second = Job(tmp_path, 0), Job(tmp_path, 1)
    assert first.step(2) == 0 and second.step(2) == 0, "nothing has been published before"
    assert first.step(2) == 0, "read after update 4, when model 1's file of update 2 was there"
    assert first.step() == 1
    teacher = first.model.exchange.teachers[1]
    assert teacher.stamp == 2 and first.model.report()["staleness/1"] == 3.0
    assert first.model.report()["staleness_seconds/1"] >= 0.0
    assert not teacher.module.training
    file = read(newest(tmp_path, 1))
    assert file.row is not None and torch.equal(teacher.packer.pack(teacher.module), file.row)
    assert first.model.exchange.traffic.received["weights"] == newest(tmp_path, 1).stat().st_size


def test_old_files_are_pruned_and_none_is_half_written(tmp_path: Path) -> None:
    job = Job(tmp_path, 0)
    job.step(12)
    job.model.leave()
    job.model.close()
    assert [path.name for path in sorted((tmp_path / "model0").iterdir())] == [
        f"{update:010d}.safetensors" for update in (8, 10, 12)
    ]
    assert read(newest(tmp_path, 0)).finished


def test_a_run_that_never_had_a_teacher_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in 0, 1:  # the first finds no peer, the second reads what that has left
        job = Job(tmp_path, index)
        job.step(3)
        job.model.leave()
        job.model.close()
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == ["model 0"]
    assert "ended after 3 updates and never had a teacher: weights cross every 2" in caplog.text


def _damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    elif how == "flipped":
        data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_file_is_named_and_the_last_good_teacher_kept(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Job(tmp_path, 0), Job(tmp_path, 1)
    second.step(2)
    first.step(2)
    second.step(2)
    _damage(newest(tmp_path, 1), how)
    with caplog.at_level(logging.WARNING):
        assert first.step(3) == 1
    assert str(newest(tmp_path, 1)) in caplog.text and "keeps the last weights it has of model 1" in caplog.text
    assert first.model.exchange.teachers[1].stamp == 2


def _write(tmp_path: Path, module: torch.nn.Module, name: str, update: int = 2) -> Path:
    path = tmp_path / "model1" / f"{update:010d}.safetensors"
    description = ModelDescription(name, {})
    packer = WeightPacker(module)
    tensors = packer.views(packer.pack(module))
    write_weights(path, tensors, description, seed=0, finished=False, update=update)
    return path


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        (
            Net(width=13),
            "tests.naive.Net",
            "first.bias should be ((12,), torch.float32), but is ((13,), torch.float32)",
        ),
        (Net(), "os.system", "the peer is another architecture (os.system)"),
    ],
    ids=["other shapes", "unknown architecture"],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, module: torch.nn.Module, name: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = _write(tmp_path, module, name)
    job = Job(tmp_path, 0)
    with caplog.at_level(logging.WARNING):
        assert job.step(3) == 0
    assert message in caplog.text and str(path) in caplog.text


def test_a_file_of_another_architecture_that_does_not_fit_leaves_the_teacher(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Job(tmp_path, 1).step(2)
    job = Job(tmp_path, 0)
    job.step(3)
    teacher = job.model.exchange.teachers[1]
    job.model.exchange._builder._build_peer = lambda _: Net(width=20)
    _write(tmp_path, Net(width=19), "other", update=4)
    with caplog.at_level(logging.WARNING):
        assert job.step(3) == 1
    assert "first.bias should be ((20,)" in caplog.text and job.model.exchange.teachers[1] is teacher


def test_a_file_of_another_architecture_teaches_from_the_same_update_on(tmp_path: Path) -> None:
    module = Net(width=19)
    path = _write(tmp_path, module, "other")
    job = Job(tmp_path, 0, lag=1)
    job.model.exchange._builder._build_peer = lambda _: Net(width=19)
    before = torch.get_rng_state()
    job.step(2)
    state = job.state()
    assert job.step(2) == 1
    teacher = job.model.exchange.teachers[1]
    assert teacher.stamp == 2 and torch.equal(teacher.packer.pack(teacher.module), WeightPacker(module).pack(module))
    assert torch.equal(torch.get_rng_state(), before), "building it disturbed no dropout"
    assert job.model.exchange.traffic.received["weights"] == path.stat().st_size
    assert [*state["codistill"]["exchange"]["flights"][0]["arrivals"]] == [1]


def test_weights_of_another_run_are_refused_before_the_first_step(tmp_path: Path) -> None:
    Job(tmp_path, 0).step(4)
    job = Job(tmp_path, 0)
    with pytest.raises(ValueError, match="holds weights of another run.*choose another --codistill-dir"):
        job.step()
    assert job.model.updates == 0


def test_a_job_resumed_beside_the_same_peer_files_ends_with_the_same_bits(tmp_path: Path) -> None:
    peer = Job(tmp_path, 1)
    peer.step(6)
    peer.model.leave()
    peer.model.close()
    states = []
    for stops in (13,), (7, 13):
        saved = None
        for stop in stops:
            job = Job(tmp_path, 0, period=3, lag=2)
            if saved is not None:
                job.restore(saved)
            job.step(stop - job.model.updates)
            saved = job.state()
        states.append(saved)
        for path in (tmp_path / "model0").iterdir():
            path.unlink()
    assert all(torch.equal(states[0]["model"][name], states[1]["model"][name]) for name in states[0]["model"])
    assert_same(*(without(state["codistill"], ("taken_at",)) for state in states))


def test_the_staleness_policies(tmp_path: Path) -> None:
    Job(tmp_path, 1).step(2)
    dropping = Job(tmp_path, 0, stale_policy="drop", max_staleness=4)
    read_late = threading.Event()
    dropping.thread(READER).submit(read_late.wait)
    assert dropping.step(2, settle=(PUBLISHER,)) == 0
    read_late.set()
    dropping.settle()
    assert [dropping.step() for _ in range(7)] == [0, 1, 1, 1, 1, 0, 0], (
        "not waited for after update 2, older than 4 from update 7 on"
    )
    for path in (tmp_path / "model0").iterdir():
        path.unlink()
    going_on = Job(tmp_path, 0, stale_policy="go_on", max_staleness=4)
    assert going_on.step(9) == 1
    for path in (tmp_path / "model0").iterdir():
        path.unlink()
    waiting = Job(tmp_path, 0, stale_policy="wait", max_staleness=4, timeout=1.0)
    with pytest.raises(PeerTimeoutError, match="no weights of models 1 for 1 s that are at most 4 updates old"):
        waiting.step(9)
    assert waiting.model.updates == 7


def test_no_memory_for_a_teacher_is_no_fault_of_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Job(tmp_path, 0), Job(tmp_path, 1)
    first.step(2)
    full = mock.patch.object(
        second.model.exchange, "teacher_for", side_effect=torch.OutOfMemoryError("CUDA out of memory")
    )
    with full, pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        second.step(4)
    assert not caplog.records


@pytest.mark.parametrize("seen", [False, True], ids=["read at its end", "read before its end"])
def test_a_peer_that_has_finished_is_not_waited_for(tmp_path: Path, seen: bool) -> None:
    """It ends right after an exchange, so that its last file is written twice under the same name."""
    peer = Job(tmp_path, 1)
    peer.step(2)
    job = Job(tmp_path, 0, stale_policy="wait", max_staleness=4, timeout=1.0)
    if seen:
        assert job.step(4) == 1 and job.model.exchange.teachers[1].stamp == 2
    peer.model.close()
    assert job.step(12) == 1


def test_weights_that_are_here_are_used_before_newer_ones_are_waited_for(tmp_path: Path) -> None:
    Job(tmp_path, 1, period=4).step(4)
    job = Job(tmp_path, 0, period=4, lag=2, stale_policy="wait", max_staleness=4, timeout=1.0)
    job.step(7)
    assert job.model.exchange.teachers[1].stamp == 4
    peer = Job(tmp_path, 1, period=4)
    peer.model.updates = 7
    peer.model.exchange._continued = True
    peer.step()
    assert job.step(2) == 1, "after update 9 the teacher is too old, and its successor on its way"
    assert job.model.exchange.teachers[1].stamp == 8 and not job.model.exchange._flights


def _job_of_two(rank: int, directory: str, index: int) -> dict[str, torch.Tensor]:
    job = Job(Path(directory), index)
    assert (job.groups.world_size, job.groups.data_size, job.groups.model_index) == (2, 2, index)
    job.step(2)
    torch.distributed.barrier()
    job.step(3)
    job.model.leave()
    job.model.close()
    return {name: tensor.clone() for name, tensor in job.model.exchange.teachers[1 - index].module.state_dict().items()}


def test_jobs_of_different_size_teach_each_other(tmp_path: Path) -> None:
    single = Job(tmp_path, 0, encoding="half")
    single.step(2)
    single.model.leave()
    single.model.close()
    size = os.stat(newest(tmp_path, 0)).st_size
    full = Job(tmp_path / "full", 0)
    full.step(2)
    full.model.leave()
    full.model.close()
    assert size < os.stat(newest(tmp_path / "full", 0)).st_size
    teachers = run_ranks(2, _job_of_two, str(tmp_path / "full"), 1)
    for name, tensor in full.module.state_dict().items():
        assert torch.equal(teachers[0][name], tensor) and torch.equal(teachers[1][name], tensor)
