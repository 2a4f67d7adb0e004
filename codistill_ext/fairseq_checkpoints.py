"""(fairseq) Checkpoints of one model among several: files that are whole, and all models resume together.

fairseq copies each checkpoint to ``checkpoint_last.pt`` and ``checkpoint_best.pt`` in place, where a
kill leaves half a file. Here every file is replaced at once, and the last one lives on as
``checkpoint_previous.pt``. Models that exchange checkpoints need not be in step: one may save twice
after an exchange before its peer has saved once. Then ``checkpoint_earlier.pt`` keeps what it had
before that exchange.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq_cli import train as fairseq_train
from omegaconf import open_dict

from codistill_ext.groups import ModelGroups
from codistill_ext.resume import Saved, agree, make_current
from codistill_ext.storage import put_in_place, write_atomically

STATE_KEY = "codistill"  # in a checkpoint's extra_state
_DEFAULT_RESTORE_FILE = "checkpoint_last.pt"


class CheckpointFiles:
    """The files of one model, in its directory.

    Args:
        directory: of this model.
        suffix: fairseq's, in all its file names.
    """

    def __init__(self, directory: Path, suffix: str) -> None:
        self.last, self.previous, self.earlier = (
            directory.absolute() / f"checkpoint_{name}{suffix}.pt" for name in ("last", "previous", "earlier")
        )
        self._cut = 0  # of the state that is being saved
        self._kept: list[int] = []  # cuts of last and previous, as far as they are there

    def save(self, state: dict[str, Any], path: Path, cut: int) -> None:
        """Write a checkpoint of ``cut`` exchanges; ``copy`` then gives it other names."""
        self._cut = cut
        path = path.absolute()
        write_atomically(path, lambda file: torch.save(state, file), before_rename=lambda: self._make_room(path))

    def copy(self, source: str, target: str, overwrite: bool = True) -> bool:
        """In place of fairseq's ``PathManager.copy``."""
        path = Path(target).absolute()
        put_in_place(Path(source), path, before_rename=lambda: self._make_room(path))
        return True

    def _make_room(self, target: Path) -> None:
        """Keep the last checkpoint, which is about to be replaced."""
        if target != self.last:
            return
        if self.last.exists():
            of_last, *of_previous = self._kept or [self._cut]
            if self._cut == of_last and of_previous and of_previous != [of_last]:
                put_in_place(self.previous, self.earlier)
            put_in_place(self.last, self.previous)
        self._kept = [self._cut, *self._kept[:1]]

    def resume(self, cfg: Any, groups: ModelGroups) -> Saved:
        """Agree with the other models, and let the last checkpoint be what this one resumes from.

        Every rank of the job must call it.

        Raises:
            ValueError: no checkpoints of the models belong together.
        """
        paths = [self.last, self.previous, self.earlier]
        chosen = agree(paths, lambda path, state: describe(path, state, cfg), groups)
        make_current(chosen, paths, groups)
        self._kept = [] if chosen.path is None else [chosen.cut]
        return chosen


def cut_of(codistill_state: dict[str, Any] | None) -> int:
    """How many exchanges a model had held; 0 where nothing is exchanged."""
    exchange = (codistill_state or {}).get("exchange") or {}
    return int(exchange.get("round", 0))


def describe(path: Path, state: dict[str, Any], cfg: Any) -> Saved:
    extra = state.get("extra_state", {})
    codistill = extra.get(STATE_KEY) or {}
    updates = state["optimizer_history"][-1]["num_updates"]
    return Saved(
        path=path,
        update=codistill.get("updates", updates),
        cut=cut_of(codistill),
        finished=has_finished(updates, extra, cfg),
    )


def has_finished(updates: int, extra_state: dict[str, Any], cfg: Any) -> bool:
    """Whether a model has nothing left to do, by the options of now. fairseq would train one more update."""
    limits = cfg.optimization
    patience = (extra_state.get(STATE_KEY) or {}).get("patience", {})
    return bool(
        0 < (limits.max_update or 0) <= updates
        or 0 < cfg.checkpoint.patience <= patience.get("num_runs", 0)
        or 0 < limits.stop_time_hours * 3600 < extra_state.get("previous_training_time", 0)
        or 0 < (limits.max_epoch or 0) < extra_state.get("train_iterator", {}).get("epoch", 1)
    )


def patience_state() -> dict[str, float]:
    """Of ``--patience``, which fairseq keeps as attributes of a function and forgets."""
    return dict(vars(fairseq_train.should_stop_early))


def load_patience_state(state: dict[str, float]) -> None:
    vars(fairseq_train.should_stop_early).update(state)


def load_checkpoint(cfg: Any, trainer: Any, **options: Any) -> Any:
    """In place of ``fairseq.checkpoint_utils.load_checkpoint``: first the models agree on what to load.

    A file that --restore-file names is loaded as it is. A model that has finished loads its last
    checkpoint and does not train on.
    """
    if cfg.restore_file != _DEFAULT_RESTORE_FILE:
        return _fairseq_load_checkpoint(cfg, trainer, **options)
    chosen = trainer.files.resume(trainer.cfg, trainer.groups)
    loaded = _fairseq_load_checkpoint(cfg, trainer, **options)
    if chosen.finished and not (cfg.reset_optimizer or cfg.reset_dataloader):
        with open_dict(trainer.cfg):
            trainer.cfg.optimization.max_epoch = -1  # main looks at it next, and ends
    return loaded


_fairseq_load_checkpoint = checkpoint_utils.load_checkpoint


def at_updates_tried(validate_and_save: Callable[..., Any]) -> Callable[..., Any]:
    """Count --save-interval-updates in updates tried, which models that are in step agree on.

    When one model skips an update (overflow), fairseq's count of it falls behind its peer's, and
    their checkpoints would never be of the same update again.
    """

    def with_interval(cfg: Any, trainer: Any, *args: Any) -> Any:
        every, done, tried = cfg.checkpoint.save_interval_updates, trainer.get_num_updates(), trainer.model.updates
        if every <= 0 or tried == done or not trainer.config.active:
            return validate_and_save(cfg, trainer, *args)
        with _option(cfg.checkpoint, "save_interval_updates", done if tried % every == 0 else 0):
            return validate_and_save(cfg, trainer, *args)

    return with_interval


@contextlib.contextmanager
def _option(cfg: Any, name: str, value: Any) -> Iterator[None]:
    original = cfg[name]
    cfg[name] = value
    try:
        yield
    finally:
        cfg[name] = original
