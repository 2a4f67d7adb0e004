"""What the models of a job resume from, after a kill between any two steps of any of their saves."""

import fcntl
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from omegaconf import OmegaConf

from codistill_ext.fairseq_checkpoints import CheckpointFiles, at_updates_tried, has_finished
from codistill_ext.groups import ModelGroups
from codistill_ext.resume import (
    BEGINNING,
    Saved,
    agree,
    belong_together,
    make_current,
    take_possession,
    whole_checkpoints,
)
from codistill_ext.storage import load_whole, previous_path, save_checkpoint
from tests.faults.kills import every_cut_short

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


def test_files_beside_that_belong_to_nobody_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"update": 5, "cut": 5}, path)
    make_current(BEGINNING, [path, previous_path(path)], ALONE)
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.unused.pt"]
    assert agree([path, previous_path(path)], describe, ALONE) is BEGINNING


def test_a_process_that_still_trains_there_is_an_error(tmp_path: Path) -> None:
    with open(tmp_path / ".lock", "a") as file:
        other = multiprocessing.get_context("fork").Process(target=_hold, args=(file.name, os.getpid()), daemon=True)
        other.start()
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
    with pytest.raises(ValueError, match="another process is still training in .*: end it, or wait"):
        take_possession(tmp_path, ALONE)
    other.kill()
    other.join()
    take_possession(tmp_path, ALONE)
    take_possession(tmp_path, ALONE)  # it is this process's own


def _hold(name: str, parent: int) -> None:
    with open(name, "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        Path(name).with_name("held").touch()
        while os.getppid() == parent:
            time.sleep(0.1)


class Model:
    """One model's files as fairseq treats them: a name of the update, then best and last as copies of it."""

    def __init__(self, directory: Path) -> None:
        self.files = CheckpointFiles(directory, "")
        self.directory = directory

    def save(self, update: int, cut: int) -> None:
        first = self.directory / f"checkpoint_1_{update}.pt"
        self.files.save({"update": update, "cut": cut}, first, cut)
        for name in ("best", "last"):
            self.files.copy(str(first), str(self.directory / f"checkpoint_{name}.pt"))

    def found(self) -> list[Saved]:
        return whole_checkpoints([self.files.last, self.files.previous, self.files.earlier], describe)


def test_fairseqs_files_are_whole_wherever_a_save_is_cut_short(tmp_path: Path) -> None:
    def prepare() -> Callable[[], None]:
        shutil.rmtree(tmp_path, ignore_errors=True)
        model = Model(tmp_path)
        for update in (2, 4):
            model.save(update, cut=update)
        return lambda: model.save(6, cut=6)

    seen = set()
    for _ in every_cut_short(prepare):
        seen.add(tuple(one.update for one in Model(tmp_path).found()))
        assert load_whole(tmp_path / "checkpoint_best.pt")["update"] in (4, 6)
    assert seen == {(4, 2), (4, 4), (6, 4)}


def test_a_model_that_runs_ahead_keeps_what_its_peer_has(tmp_path: Path) -> None:
    """Model 1 is slow: model 0 saves three times after exchange 1, model 1 has not saved since exchange 0."""
    ahead, behind = Model(tmp_path / "0"), Model(tmp_path / "1")
    for update, cut in ((5, 0), (10, 0), (15, 1), (20, 1), (25, 1)):
        ahead.save(update, cut)
        chosen = belong_together({0: ahead.found(), 1: [saved(0)]})
        assert chosen is not None and chosen[0].update == min(update, 10)
    behind.save(15, 1)
    chosen = belong_together({0: ahead.found(), 1: behind.found()})
    assert chosen is not None and (chosen[0].update, chosen[1].update) == (25, 15)
    ahead.save(30, 2)
    chosen = belong_together({0: ahead.found(), 1: behind.found()})
    assert chosen is not None and (chosen[0].update, chosen[1].update) == (25, 15)


def test_models_that_skip_updates_save_at_the_same_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model 1 skips its third update (overflow): both still save after 4 and 8 attempts."""

    def attempts_saved(skipped: set[int], validate_after: int = 0) -> list[int]:
        cfg = OmegaConf.create(
            {"checkpoint": {"save_interval_updates": 4}, "dataset": {"validate_after_updates": validate_after}}
        )
        saved_at: list[int] = []

        def save(cfg: Any, trainer: Any, task: None, epoch_itr: None) -> None:  # as fairseq decides
            every, done = cfg.checkpoint.save_interval_updates, trainer.get_num_updates()
            if every > 0 and done > 0 and done % every == 0 and done >= validate_after:
                saved_at.append(trainer.model.updates)

        def save_directly(_cfg: Any, trainer: Any, _epoch_itr: None, _loss: None) -> None:
            saved_at.append(trainer.model.updates)

        monkeypatch.setattr(checkpoint_utils, "save_checkpoint", save_directly)

        for tried in range(1, 10):
            done = tried - len([attempt for attempt in skipped if attempt <= tried])
            trainer = SimpleNamespace(
                model=SimpleNamespace(updates=tried),
                config=SimpleNamespace(active=True),
                get_num_updates=lambda n=done: n,
            )
            at_updates_tried(save)(cfg, trainer, None, None)
        assert cfg.checkpoint.save_interval_updates == 4
        return saved_at

    assert attempts_saved(set()) == attempts_saved({3}) == attempts_saved({3, 4}) == [4, 8]
    assert attempts_saved(set(range(1, 7))) == [4, 8], "also before its first update"
    assert attempts_saved(set(), 6) == attempts_saved({1, 2, 3}, 6) == [8]


@pytest.mark.parametrize(
    ("limits", "finished"),
    [
        ({}, False),
        ({"max_update": 10}, True),
        ({"max_update": 11}, False),
        ({"max_epoch": 2}, True),
        ({"max_epoch": 3}, False),
        ({"stop_time_hours": 0.5}, True),
        ({"stop_min_lr": 1e-4}, True),
        ({"stop_min_lr": 1e-5}, False),
        ({"patience": 3}, True),
        ({"patience": 4}, False),
    ],
)
def test_what_has_finished_by_the_options_of_now(limits: dict[str, float], finished: bool) -> None:
    optimization = {"max_update": 0, "max_epoch": 0, "stop_time_hours": 0, "stop_min_lr": -1.0} | limits
    cfg = OmegaConf.create({"optimization": optimization, "checkpoint": {"patience": limits.get("patience", -1)}})
    codistill = {"patience": {"num_runs": 3}, "lr": 5e-5}
    extra = {"codistill": codistill, "previous_training_time": 2000, "train_iterator": {"epoch": 3}}
    assert has_finished(10, extra, cfg) == finished
