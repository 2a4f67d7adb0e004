"""Files are there whole or not at all."""

from pathlib import Path
from typing import IO

import pytest

from codistill_ext.exchange.wire.whole_files import put_in_place, remove_leftovers, write_atomically, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    (tmp_path / ".a.txt.x.tmp").touch()
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_two_names_of_a_file_do_not_change_together(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_text(first, "old")
    put_in_place(first, second)
    write_text(first, "new")
    assert (first.read_text(), second.read_text()) == ("new", "old")
