"""A shared directory that is slow, stuck, full, gone or hostile: it is named, and training goes on."""

import contextlib
import dataclasses
import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codistill_ext.errors import Mistake, PeerTimeoutError
from codistill_ext.exchange import files
from codistill_ext.exchange.wire import foreign_files, lead, shared_directory, whole_files
from codistill_ext.exchange.wire.foreign_files import ForeignFile
from tests.exchange import filesystems
from tests.exchange.jobs import PUBLISHER, READER, Job, newest, read
from tests.exchange.odd_files import ODD
from tests.ranks import run_ranks


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in files, lead:
        monkeypatch.setattr(module, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(files, "_QUIET_S", 0.0)
    monkeypatch.setattr(shared_directory, "_PAUSES_S", (0.0, 0.0))


def lose_patience(patch: pytest.MonkeyPatch) -> None:
    for name in "_PATIENCE_S", "_LAST_PATIENCE_S":
        patch.setattr(files, name, 0.02)


class Gate:
    """Stands in for a disk that hangs: a call waits in it until it opens."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            self.open.wait()
            return function(*args, **kwargs)

        return call


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def taught(directory: Path, **options: Any) -> tuple[Job, Job]:
    """Two jobs after three and two updates; the first has its teacher from the second."""
    first, second = Job(directory, 0, **options), Job(directory, 1, **options)
    second.step(2)
    first.step(3)
    assert first.model.exchange.teachers[1].stamp == 2
    return first, second


def wait_until_it_hangs(job: Job, thread: str) -> None:
    while job.thread(thread).hangs_in() is None:
        time.sleep(0.001)


@pytest.mark.parametrize(("make", "message"), ODD.values(), ids=ODD)
def test_whatever_a_peer_has_there_is_named_once_and_its_good_files_are_read(
    tmp_path: Path, make: Callable[[Path], None], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = taught(tmp_path / "shared")
    odd = tmp_path / "shared/model1/9999999999.safetensors"
    make(odd)
    assert first.step(2) == 1 and first.model.exchange.teachers[1].stamp == 2
    second.step(2)
    assert first.step(2) == 1 and first.model.exchange.teachers[1].stamp == 4
    said = [text for text in caplog.messages if str(odd) in text]
    assert len(said) == 1 and message in said[0] and "keeps the last weights it has of model 1" in said[0]


def test_a_link_in_place_of_a_peers_directory_is_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Job(tmp_path / "elsewhere", 1).step(2)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/model1").symlink_to(tmp_path / "elsewhere/model1")
    job = Job(tmp_path / "shared", 0)
    assert job.step(5) == 0
    assert caplog.text.count("shared/model1: it should be a directory, but is a symbolic link") == 1


def test_while_a_read_hangs_training_goes_on_and_can_be_saved(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = taught(tmp_path)
    second.step(2)
    with monkeypatch.context() as patch:
        lose_patience(patch)
        patch.setattr(ForeignFile, "read_into", gate.before(ForeignFile.read_into))
        first.step(settle=())
        assert gate.reached.wait(60)
        assert first.step(4, settle=()) == 1 and first.model.exchange.teachers[1].stamp == 2
        state = first.state()
        exchange = state["codistill"]["exchange"]
        assert exchange["flights"] == [] and exchange["seen"][1][0] == "0000000002.safetensors"
    hanging = re.escape(f"reading {newest(tmp_path, 1)} has not come to an end for 0 s")
    assert re.search(f"model 0 .*goes on training: {hanging}", caplog.text)
    gate.open.set()
    first.settle()
    assert first.step() == 1 and first.model.exchange.teachers[1].stamp == 4, "it is used when it has come after all"
    resumed = Job(tmp_path, 0)
    resumed.restore(state)
    assert resumed.step(3) == 1 and resumed.model.exchange.teachers[1].stamp == 4, "what was not saved is read again"


def test_a_read_that_hangs_is_waited_for_as_long_as_the_policy_says(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = taught(tmp_path, max_staleness=4)
    second.step(2)
    first.model.exchange.config = dataclasses.replace(first.config, timeout=0.2)
    monkeypatch.setattr(ForeignFile, "read_into", gate.before(ForeignFile.read_into))
    hanging = re.escape(f"reading {newest(tmp_path, 1)} has not come to an end")
    with pytest.raises(PeerTimeoutError, match=f"no weights of models 1 for 0.2 s .* 4 updates old .*{hanging}"):
        first.step(6, settle=())
    assert first.model.updates == 7


def test_a_write_that_hangs_stops_neither_training_nor_saving_nor_the_end(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = taught(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(whole_files.os, "fsync", gate.before(os.fsync))
        first.step(settle=())
        assert gate.reached.wait(60)
    second.step(2)
    assert first.step(3, settle=(READER,)) == 1
    assert first.model.exchange.teachers[1].stamp == 4, "reading is another thread's"
    lose_patience(monkeypatch)
    first.state()
    first.model.leave()
    first.model.close()
    writing = re.escape(f"writing {tmp_path}/model0/0000000004.safetensors has not come to an end")
    for text in "publishes nothing at update 6:", "goes on training:", "ends, though":
        assert re.search(f"model 0 .*{text} {writing}", caplog.text)
    gate.open.set()
    assert first.thread(PUBLISHER).close()
    assert read(newest(tmp_path, 0)).finished, "a process that is still there does what was left"


def test_a_directory_that_does_not_answer_at_the_start_is_an_error(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", gate.before(Path.mkdir))
    with pytest.raises(PeerTimeoutError, match=r"model 0 .*cannot begin: making .*/model0 has not .*--codistill-dir"):
        Job(tmp_path, 0, timeout=0.1)


def test_a_directory_that_cannot_be_made_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        Mistake, match=r"--codistill-dir .*/file cannot be used \(.*Not a directory.*\): choose a directory"
    ):
        Job(tmp_path / "file", 0)


def failing(function: Callable[..., Any], times: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal times
        times -= 1
        if times >= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("times", [1, 3], ids=["tried again at once", "and at the next exchange"])
def test_a_read_that_failed_is_tried_again(
    tmp_path: Path, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = taught(tmp_path)
    second.step(2)
    monkeypatch.setattr(foreign_files.os, "readv", failing(os.readv, times))
    first.step(2)
    assert first.model.exchange.teachers[1].stamp == (4 if times == 1 else 2)
    first.step(2)
    assert first.model.exchange.teachers[1].stamp == 4
    assert f"{newest(tmp_path, 1)}: [Errno 5] Input/output error; it is tried again in 0 s" in caplog.text
    given_up = f"keeps the last weights it has of model 1: {newest(tmp_path, 1)}: [Errno 5] Input/output error"
    assert (given_up in caplog.text) == (times == 3)


@pytest.mark.parametrize("times", [1, 3], ids=["tried again at once", "and at the next exchange"])
def test_a_write_that_failed_is_tried_again(
    tmp_path: Path, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(tmp_path, 0)
    monkeypatch.setattr(whole_files.os, "fsync", failing(os.fsync, times))
    job.step(4)
    assert sorted(path.stem[-1] for path in (tmp_path / "model0").iterdir()) == (["2", "4"] if times == 1 else ["4"])
    assert "0000000002.safetensors: [Errno 5] Input/output error; it is tried again in 0 s" in caplog.text
    given_up = f"could not publish its weights of update 2 in {tmp_path}/model0 ([Errno 5] Input/output error)"
    assert (f"{given_up}: it tries again with the next" in caplog.text) == (times == 3)


def test_the_last_publication_that_fails_says_what_that_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(tmp_path, 0)
    job.step(3)
    monkeypatch.setattr(whole_files.os, "fsync", failing(os.fsync, 3))
    job.model.leave()
    job.model.close()
    assert "could not publish its weights of update 3" in caplog.text
    assert "its peers will not know that it has finished" in caplog.text
    assert not read(newest(tmp_path, 0)).finished


def test_a_directory_removed_under_the_run_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = taught(tmp_path / "shared")
    shutil.rmtree(tmp_path / "shared")
    first.step()
    assert f"{tmp_path}/shared/model0 has vanished and is made again" in caplog.text
    second.step(2)
    assert first.step(3) == 1 and first.model.exchange.teachers[1].stamp == 4
    first.model.leave()
    first.model.close()
    assert read(newest(tmp_path / "shared", 0)).finished


def test_what_a_killed_writer_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / "model0/.0000000002.safetensors.x.tmp"
    left.parent.mkdir()
    left.touch()
    Job(tmp_path, 0)
    assert not left.exists()


def test_on_a_full_disk_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with filesystems.small(tmp_path):
        job = Job(tmp_path, 0)
        job.step(2)
        filler = tmp_path / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        job.step(2)
        full = f"could not publish its weights of update 4 in {tmp_path}/model0 ([Errno 28] No space left on device)"
        assert f"{full}: it tries again with the next" in caplog.text
        assert [path.stem[-1] for path in (tmp_path / "model0").iterdir()] == ["2"], "nothing half-written is left"
        filler.unlink()
        job.step(2)
        assert read(newest(tmp_path, 0)).update == 6
        job.model.close()


def test_while_a_peers_file_system_does_not_answer_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = taught(tmp_path)
    second.step(2)
    with filesystems.stuck(tmp_path / "model1"), monkeypatch.context() as patch:
        lose_patience(patch)
        first.step(settle=(PUBLISHER,))
        wait_until_it_hangs(first, READER)
        assert first.step(4, settle=(PUBLISHER,)) == 1
        assert f"goes on training: looking into {tmp_path}/model1 has not come to an end" in caplog.text
        assert newest(tmp_path, 0).stem[-1] == "8", "publishing is another thread's"
        first.state()
    first.settle()
    assert f"{tmp_path}/model1: [Errno 107]" in caplog.text and "it is tried again in 0 s" in caplog.text
    first.step(3)
    assert first.model.exchange.teachers[1].stamp == 4, "the file system is back"


def test_while_ones_own_file_system_does_not_answer_training_goes_on_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(tmp_path, 0)
    job.step(2)
    with filesystems.stuck(tmp_path / "model0"):
        lose_patience(monkeypatch)
        job.step(2, settle=())
        wait_until_it_hangs(job, PUBLISHER)
        job.step(3, settle=())
        job.state()
        job.model.leave()
        job.model.close()
    assert job.thread(PUBLISHER).close()
    assert f"ends, though writing {tmp_path}/model0/0000000004.safetensors has not come to an end" in caplog.text


def test_on_a_frozen_disk_training_goes_on_and_what_was_to_be_written_is_there_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    with filesystems.on_a_disk(shared, tmp_path / "image"):
        job = Job(shared, 0)
        job.step(2)
        with filesystems.frozen(shared):
            job.step(2, settle=())
            wait_until_it_hangs(job, PUBLISHER)
            job.step(2, settle=())
            assert f"goes on training: writing {shared}/model0/0000000004.safetensors has not" in caplog.text
            assert "publishes nothing at update 6" in caplog.text
        job.settle()
        assert read(newest(shared, 0)).update == 4
        job.step(2)
        job.model.leave()
        job.model.close()
        assert read(newest(shared, 0)).update == 8 and read(newest(shared, 0)).finished


def _two_ranks(rank: int, directory: str) -> list[int | None]:
    """The teacher's stamp after each update, while the first rank's read hangs for some of them."""
    files._PATIENCE_S = 0.02
    gate = Gate()
    job = Job(Path(directory), 0)
    stamps = []
    for update in range(1, 8):
        if rank == 0 and update == 2:
            ForeignFile.read_into = gate.before(ForeignFile.read_into)  # type: ignore[method-assign]
        if rank == 0 and update == 6:
            gate.open.set()
            job.settle()
        job.step(settle=())
        teacher = job.model.exchange.teachers.get(1)
        stamps.append(teacher.stamp if teacher else None)
        job.model.exchange.state_dict()
    job.model.leave()
    job.model.close()
    return stamps


def test_the_ranks_of_a_job_use_what_was_late_from_the_same_update_on(tmp_path: Path) -> None:
    Job(tmp_path, 1).step(2)
    assert run_ranks(2, _two_ranks, str(tmp_path)) == [[None] * 5 + [2, 2]] * 2


def test_one_rank_alone_cannot_use_the_directory(tmp_path: Path) -> None:
    """All ranks hear of it."""
    (tmp_path / "file").touch()
    with pytest.raises(AssertionError, match="(?s)rank 0: .*cannot be used.*rank 1: .*cannot be used"):
        run_ranks(2, _begin, str(tmp_path / "file"))


def _begin(rank: int, directory: str) -> None:
    Job(Path(directory), 0)
