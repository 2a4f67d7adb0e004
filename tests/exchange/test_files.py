"""Separate jobs that share a directory: what is written, what is refused, and who waits for whom."""

import json
import logging
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups
from codistill_ext.errors import PeerTimeoutError
from codistill_ext.exchange.wire import weight_file
from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.weight_file import UnusableFileError, read_weights, write_weights
from tests.core.training import LR, batches, build
from tests.naive import Net
from tests.ranks import run_ranks
from tests.states import assert_same, without


class Job:
    """One job of a model, in this process, that is stepped by hand."""

    def __init__(self, directory: Path, index: int, **options: Any) -> None:
        settings = {"models": 2, "exchange": "files", "period": 2, "lag": 0, "timeout": 5.0} | options
        self.config = CodistillConfig(dir=str(directory), model_index=index, **settings)
        self.groups = ModelGroups.create(self.config)
        self.module = build(index)
        self.model = CodistillParallel(self.module, self.groups, self.config)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=0.9)

    def step(self, count: int = 1) -> int:
        """Train ``count`` updates; how many peers taught in the last one."""
        for _ in range(count):
            x, y = batches(self.model.updates, self.groups.model_index, self.groups.data_rank, coordinated=False)
            logits = self.model(x)
            term = self.model.codistill(x, logits)
            self.optimizer.zero_grad()
            (F.cross_entropy(logits, y) + term.loss).backward()
            self.optimizer.step()
            self.model.after_update()
            self.settle()
        return term.peers

    def settle(self) -> None:
        """Let the thread finish, so that a test does not depend on its speed."""
        self.model.exchange._worker.submit(lambda: None).result()

    def state(self) -> dict[str, Any]:
        model = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return {
            "model": model,
            "optimizer": self.optimizer.state_dict(),
            "codistill": self.model.codistill_state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.model.load_codistill_state_dict(state["codistill"])


def newest(directory: Path, index: int) -> Path:
    return sorted((directory / f"model{index}").glob("*.safetensors"))[-1]


def test_two_jobs_teach_each_other(tmp_path: Path) -> None:
    first, second = Job(tmp_path, 0), Job(tmp_path, 1)
    assert first.step(2) == 0 and second.step(2) == 0, "nothing has been published before"
    assert first.step(2) == 0, "read after update 4, when model 1's file of update 2 was there"
    assert first.step() == 1
    teacher = first.model.exchange.teachers[1]
    assert teacher.stamp == 2 and first.model.report()["staleness/1"] == 3.0
    assert first.model.report()["staleness_seconds/1"] >= 0.0
    assert not teacher.module.training
    file = read_weights(newest(tmp_path, 1))
    torch.testing.assert_close(teacher.module.norm.running_mean, file.tensors["norm.running_mean"])
    assert "third.weight" not in file.tensors or "second.weight" not in file.tensors, "tied weights cross once"
    assert first.model.exchange.traffic.received["weights"] == newest(tmp_path, 1).stat().st_size


def test_old_files_are_pruned_and_none_is_half_written(tmp_path: Path) -> None:
    job = Job(tmp_path, 0)
    job.step(12)
    job.model.leave()
    job.model.close()
    assert [path.name for path in sorted((tmp_path / "model0").iterdir())] == [
        f"{update:010d}.safetensors" for update in (8, 10, 12)
    ]
    assert read_weights(newest(tmp_path, 0)).finished


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
    elif how == "empty":
        data.clear()
    elif how == "pickled":
        torch.save({"a": torch.zeros(3)}, path)
        return
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "pickled"])
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


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """As they cross, the tied ones once."""
    return {key: value for key, value in module.state_dict().items() if key != "third.weight"}


def _write(tmp_path: Path, module: torch.nn.Module, name: str, update: int = 2) -> Path:
    path = tmp_path / "model1" / f"{update:010d}.safetensors"
    description = ModelDescription(name, {})
    tensors = _tensors(module)
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


def _sealed(path: Path, header: dict[str, Any], module: torch.nn.Module) -> None:
    """A file whose checksum is right, whatever its header says."""
    tensors = _tensors(module)
    header |= {"version": weight_file.FORMAT_VERSION, "description": '{"name": "tests.naive.Net", "values": {}}'}
    header["sha256"] = weight_file._checksum(header, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, path, metadata={"codistill": json.dumps(header)})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("update", math.inf, "update in its header should be of type int, but is inf"),
        ("update", -2, "its header says update -2, unlike its name"),
        ("update", 10**400, "unlike its name"),
        ("update", True, "update in its header should be of type int, but is True"),
        ("taken_at", math.nan, "taken_at in its header is nan"),
        ("taken_at", "now", "taken_at in its header should be of type float, but is 'now'"),
        ("finished", "false", "finished in its header should be of type bool, but is 'false'"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(tmp_path: Path, field: str, value: Any, message: str) -> None:
    path = tmp_path / "model1/0000000002.safetensors"
    true = {"update": 2, "taken_at": 1.5, "finished": False}
    _sealed(path, dict(true), Net())
    assert read_weights(path).update == 2
    _sealed(path, true | {field: value}, Net())
    with pytest.raises(UnusableFileError, match=re.escape(message)):
        read_weights(path)


def test_a_header_changed_behind_its_checksum_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, Net(), "tests.naive.Net")
    path.write_bytes(path.read_bytes().replace(b'finished\\": false', b'finished\\":  true'))
    with pytest.raises(UnusableFileError, match="its checksum does not fit its contents"):
        read_weights(path)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    module = Net()
    torch.nn.init.constant_(module.last.bias, math.nan)
    with pytest.raises(UnusableFileError, match="last.bias has values that are not numbers"):
        read_weights(_write(tmp_path, module, "tests.naive.Net"))


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


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path, Net(), "tests.naive.Net")
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["codistill"]) | {"version": weight_file.FORMAT_VERSION + 1}
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata={"codistill": json.dumps(header)})
    with pytest.raises(
        UnusableFileError, match=r"0000000002\.safetensors: its format version is \d, this program reads"
    ):
        read_weights(path)


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
    assert [dropping.step() for _ in range(9)] == [0, 0, 0, 1, 1, 1, 1, 0, 0], (
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
