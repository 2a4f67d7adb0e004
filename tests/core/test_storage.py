"""Files are whole or not there, and a damaged checkpoint gives way to the one before."""

from pathlib import Path

import pytest
import torch

from codistill_ext.storage import (
    DamagedCheckpointWarning,
    load_checkpoint,
    previous_path,
    save_checkpoint,
    write_atomically,
    write_text,
)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_previous(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint.pth"
    for update in range(3):
        save_checkpoint({"update": update, "x": torch.full((100,), float(update))}, path)
    assert load_checkpoint(path)["update"] == 2
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[: {"truncated": 200, "flipped": len(data), "empty": 0}[damage]])
    with pytest.warns(DamagedCheckpointWarning, match=r"checkpoint\.pth.*using checkpoint\.previous\.pth"):
        assert load_checkpoint(path)["update"] == 1
    previous_path(path).write_bytes(b"")
    with pytest.raises(RuntimeError, match="no whole checkpoint"):
        load_checkpoint(path)


def test_no_class_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"path": Path("x")}, path)
    with pytest.raises(RuntimeError, match="no whole checkpoint"):
        load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "nothing.pth")
