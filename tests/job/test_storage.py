"""A checkpoint is whole or not there, and a damaged one gives way to the one before."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from codistill_ext.exchange.wire.whole_files import remove_leftovers
from codistill_ext.job.storage import (
    DamagedCheckpointWarning,
    check_whole,
    load_checkpoint,
    load_whole,
    previous_path,
    save_checkpoint,
)
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
