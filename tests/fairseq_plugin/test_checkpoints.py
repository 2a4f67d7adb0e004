"""A model's checkpoint files as fairseq writes them, cut short anywhere, and when models have finished."""

import argparse
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from omegaconf import OmegaConf

from codistill_ext.fairseq_plugin.checkpoints import (
    CheckpointFiles,
    at_updates_tried,
    has_finished,
    load_plateau_state,
    plateau_state,
    refused,
)
from codistill_ext.job.resume import Saved, belong_together, whole_checkpoints
from codistill_ext.job.storage import StorageError, load_whole
from tests.exchange import filesystems
from tests.faults.kills import every_cut_short


def describe(path: Path, state: dict[str, int]) -> Saved:
    return Saved(path=path, update=state["update"], cut=state["cut"])


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
        chosen = belong_together({0: ahead.found(), 1: [Saved(path=Path("at0"), update=0, cut=0)]})
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


def test_a_plateau_is_as_long_after_a_resume() -> None:
    def schedule() -> SimpleNamespace:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        return SimpleNamespace(lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=3))

    def rates(one: SimpleNamespace, epochs: int) -> list[float]:
        found = []
        for _ in range(epochs):
            one.lr_scheduler.step(1.0)
            found.append(one.lr_scheduler.optimizer.param_groups[0]["lr"])
        return found

    whole, first, second = schedule(), schedule(), schedule()
    expected = rates(whole, 6)
    before = rates(first, 3)
    second.lr_scheduler.best = first.lr_scheduler.best  # fairseq keeps that
    load_plateau_state(second, plateau_state(first))
    assert before + rates(second, 3) == expected and expected[-1] < 1
    assert plateau_state(SimpleNamespace()) == {}


def test_a_full_disk_leaves_fairseqs_last_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with filesystems.small(disk):
        model = Model(disk)
        model.save(2, cut=2)
        with pytest.raises(StorageError, match=r"cannot write .*checkpoint_1_4\.pt: .* full \(4\.0 MB are needed"):
            model.files.save({"x": torch.zeros(1_000_000)}, disk / "checkpoint_1_4.pt", 4)
        assert [one.update for one in model.found()] == [2, 0]
        assert sorted(path.name for path in disk.iterdir()) == [f"checkpoint_{n}.pt" for n in ("1_2", "best", "last")]


def test_a_stock_checkpoint_is_told_from_a_planted_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"args": argparse.Namespace(arch="transformer")}, path)
    assert "start with `python -m translation.safe_load train`" in refused(path, pickle.UnpicklingError())
    torch.save({"args": argparse.Namespace(), "model": PosixPath("x")}, path)
    assert "it holds argparse.Namespace, pathlib.PosixPath, which could run" in refused(path, pickle.UnpicklingError())
