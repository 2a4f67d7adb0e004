"""A checkpoint is whole or not there, and a damaged one gives way to the one before."""

import errno
import io
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codistill_ext.exchange.wire import whole_files
from codistill_ext.exchange.wire.whole_files import remove_leftovers
from codistill_ext.job.storage import (
    DamagedCheckpointWarning,
    StorageError,
    check_whole,
    load_checkpoint,
    load_plain,
    load_whole,
    previous_path,
    save_checkpoint,
    writing,
)
from tests.exchange import filesystems
from tests.faults.kills import every_cut_short


def state(update: int) -> dict[str, object]:
    return {"update": update, "x": torch.full((100,), float(update))}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_previous(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint.pth"
    for update in range(3):
        save_checkpoint(state(update), path)
    assert load_checkpoint(path)["update"] == 2
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[data.index(torch.full((100,), 2.0).numpy().tobytes()) + 50] ^= 1
    path.write_bytes(data[: {"truncated": 200, "flipped": len(data), "empty": 0}[damage]])
    with pytest.warns(DamagedCheckpointWarning, match=r"checkpoint\.pth.*using checkpoint\.previous\.pth"):
        assert load_checkpoint(path)["update"] == 1
    previous_path(path).write_bytes(b"")
    with pytest.raises(RuntimeError, match="no whole checkpoint"):
        load_checkpoint(path)


def test_any_flipped_bit_and_any_missing_end_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(state(1), path)
    whole = path.read_bytes()
    found = 0
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            loaded = load_whole(path)
        except Exception:
            found += 1
        else:  # padding between the records, and what the archive holds twice
            assert loaded["update"] == 1 and torch.equal(loaded["x"], torch.ones(100))
    assert found > len(whole) / 3 / 3
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not whole"):
            check_whole(path)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_killed_anywhere_in_a_save_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", _no_links)
    before = tmp_path / "before"
    for update in (1, 2):
        save_checkpoint(state(update), before / "checkpoint.pt")
    seen = []

    def prepare() -> Callable[[], None]:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(before, tmp_path / "run")
        return lambda: save_checkpoint(state(3), tmp_path / "run/checkpoint.pt")

    for _ in every_cut_short(prepare):
        path = tmp_path / "run/checkpoint.pt"
        here, previous = load_whole(path)["update"], load_whole(previous_path(path))["update"]
        assert (here, previous) in [(2, 1), (2, 2), (3, 2)]
        seen.append((here, previous))
        save_checkpoint(state(3), path)  # as the resumed run does
        assert load_checkpoint(path)["update"] == 3
        remove_leftovers(path.parent)
        assert sorted(p.name for p in path.parent.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert set(seen) == {(2, 1), (2, 2), (3, 2)}


def _no_links(source: Path, target: Path) -> None:
    raise OSError("not supported")


def test_no_class_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"path": Path("x")}, path)
    with pytest.raises(RuntimeError, match="no whole checkpoint"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "nothing.pth")


class Planted:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this must not run",)


def test_what_holds_code_is_named_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Planted()}, tmp_path / "planted.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"model": Planted()}))
    (tmp_path / "empty.pt").touch()
    torch.save(state(1), tmp_path / "cut.pt")
    os.truncate(tmp_path / "cut.pt", 700)
    for name, message in (
        (
            "planted",
            r"planted\.pt is not a checkpoint of tensors and plain values: it holds builtins\.print",
        ),
        ("pickle", r"pickle\.pt is not a checkpoint: it is no whole file of torch\.save, and nothing of it was loaded"),
        ("empty", r"empty\.pt is not a checkpoint"),
        ("cut", r"cut\.pt is damaged, or no checkpoint \(.*zip archive"),
    ):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=message) as error:
            warnings.simplefilter("ignore")  # torch's, about the protocol
            load_plain(tmp_path / f"{name}.pt")
        assert "weights_only" not in str(error.value)
    assert capsys.readouterr().out == ""


class Full(io.RawIOBase):
    """A file on a disk that has room for so many bytes."""

    def __init__(self, name: Path, room: int) -> None:
        self._file = open(name, "wb", buffering=0)
        self._room = room

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def write(self, data: Any) -> int:
        self._room -= memoryview(data).nbytes
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)


@pytest.mark.parametrize("room", [0, 100, 1100, 1500])
def test_a_full_disk_is_a_sentence_and_the_old_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Wherever the write fails: in a record, in torch's end of the archive, or in the flush."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(state(1), path)
    monkeypatch.setattr(whole_files, "open", lambda name, _: io.BufferedWriter(Full(name, room)), raising=False)
    with pytest.raises(StorageError, match="the disk is full") as error:
        save_checkpoint({"x": torch.zeros(300_000)}, path)
    message = str(error.value)
    assert message.startswith(f"cannot write {path}: the disk is full (1.2 MB are needed and ")
    assert "MB are free there); checkpoints that were saved before are whole: make room" in message
    monkeypatch.undo()
    assert load_checkpoint(path)["update"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with filesystems.small(disk):
        path = disk / "model0/checkpoint.pt"
        save_checkpoint({"x": torch.ones(100_000)}, path)
        before = path.read_bytes()
        message = r"cannot write .*: the disk is full \(2\.0 MB are needed and 1\.7 MB are free there\)"
        with pytest.raises(StorageError, match=message):
            save_checkpoint({"x": torch.ones(500_000)}, path)
        assert path.read_bytes() == before and [each.name for each in path.parent.iterdir()] == ["checkpoint.pt"]
        with pytest.raises(StorageError, match=r"cannot write .*/a\.pt \(.*File exists.*: mend that"):
            save_checkpoint(state(1), path / "a.pt")


def test_other_errors_of_saving_are_not_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ours"), writing(tmp_path / "x"):
        raise RuntimeError("ours")
