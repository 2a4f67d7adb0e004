"""What the models of a job resume from, after a kill between any two steps of any of their saves."""

import fcntl
import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from codistill_ext.groups import ModelGroups
from codistill_ext.job.resume import (
    BEGINNING,
    Saved,
    agree,
    belong_together,
    make_current,
    take_possession,
)
from codistill_ext.job.storage import load_whole, previous_path, save_checkpoint

ALONE = ModelGroups(torch.zeros(1, 1, dtype=torch.long), rank=0, mesh=None)


def saved(cut: int, *, finished: bool = False) -> Saved:
    return Saved(path=Path(f"at{cut}"), update=cut, cut=cut, finished=finished)


def describe(path: Path, state: dict[str, int]) -> Saved:
    return Saved(path=path, update=state["update"], cut=state["cut"])


@pytest.mark.parametrize(
    ("first", "second", "cuts"),
    [
        ([saved(8), saved(6)], [saved(8), saved(6)], (8, 8)),
        ([saved(8), saved(6)], [saved(6), saved(4)], (6, 6)),
        ([saved(6)], [saved(8), saved(6)], (6, 6)),
        ([saved(2), BEGINNING], [BEGINNING], (0, 0)),  # killed in the very first save
        ([saved(8), saved(6)], [BEGINNING], None),
        ([saved(8), saved(6)], [saved(4), saved(2)], None),
        ([saved(8), saved(6)], [saved(4, finished=True), saved(2)], (8, 4)),  # model 1 stopped early
        ([saved(6), saved(4)], [saved(8, finished=True), saved(6)], (6, 6)),
        ([saved(8, finished=True)], [saved(9, finished=True)], (8, 9)),
    ],
)
def test_the_newest_checkpoints_that_belong_together(
    first: list[Saved], second: list[Saved], cuts: tuple[int, int] | None
) -> None:
    chosen = belong_together({0: first, 1: second})
    assert (chosen and (chosen[0].cut, chosen[1].cut)) == cuts


def test_damaged_files_are_named_and_the_one_before_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "checkpoint.pt"
    paths = [path, previous_path(path)]
    for update in (1, 2):
        save_checkpoint({"update": update, "cut": update}, path)
    path.write_bytes(path.read_bytes()[:-50])
    chosen = agree(paths, describe, ALONE)
    assert chosen.update == 1 and chosen.path == previous_path(path)
    assert f"damaged checkpoint ({path}: not whole" in caplog.text
    assert "the newest whole one is update 1 in checkpoint.previous.pt" in caplog.text
    make_current(chosen, paths, ALONE)
    assert [load_whole(each)["update"] for each in paths] == [1, 1]  # the next save keeps update 1
    for each in paths:
        each.write_bytes(b"")
    with pytest.raises(ValueError, match="no whole checkpoint is left: .*restore one, or begin a new run"):
        agree(paths, describe, ALONE)


def test_what_is_no_checkpoint_gives_way_like_what_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    paths = [path, previous_path(path)]
    for update in (1, 2):
        save_checkpoint({"update": update, "cut": update}, path)
    torch.save({"update": 3, "cut": 3, "model": Planted()}, path)
    assert agree(paths, describe, ALONE).update == 1
    assert f"damaged checkpoint ({path} is not a checkpoint of tensors and plain values: it holds" in caplog.text
    assert "builtins.print, which could run any code" in caplog.text and capsys.readouterr().out == ""
    torch.save([1, 2], paths[1])
    with pytest.raises(ValueError, match=r"no whole checkpoint .*: not a checkpoint of this trainer \(TypeError"):
        agree(paths, describe, ALONE)


class Planted:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this must not run",)


def test_files_beside_that_belong_to_nobody_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"update": 5, "cut": 5}, path)
    make_current(BEGINNING, [path, previous_path(path)], ALONE)
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.unused.pt"]
    assert agree([path, previous_path(path)], describe, ALONE) is BEGINNING


def test_a_process_that_still_trains_there_is_an_error(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / ".lock", held, end), daemon=True)
    other.start()
    assert held.wait(60)
    with pytest.raises(ValueError, match="another process is still training in .*: end it, or wait"):
        take_possession(tmp_path, ALONE)
    end.set()
    other.join()
    take_possession(tmp_path, ALONE)
    take_possession(tmp_path, ALONE)  # it is this process's own


def _hold(path: Path, held: Event, end: Event) -> None:
    with open(path, "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        held.set()
        end.wait(60)
