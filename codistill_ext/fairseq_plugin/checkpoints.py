"""(fairseq) Checkpoints of one model among several: files that are whole, and all models resume together.

fairseq copies each checkpoint to ``checkpoint_last.pt`` and ``checkpoint_best.pt`` in place, where a
kill leaves half a file. Here every file is replaced at once, and the last one lives on as
``checkpoint_previous.pt``. Models that exchange checkpoints need not be in step: one may save twice
after an exchange before its peer has saved once. Then ``checkpoint_earlier.pt`` keeps what it had
before that exchange.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq_cli import train as fairseq_train
from omegaconf import open_dict

from codistill_ext.errors import Mistake
from codistill_ext.exchange.wire.whole_files import put_in_place
from codistill_ext.groups import ModelGroups
from codistill_ext.job.failures import mistakes
from codistill_ext.job.resume import Saved, agree, make_current
from codistill_ext.job.storage import foreign_names, save_whole, unreadable, writing

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
        save_whole(state, path, before_rename=lambda: self._make_room(path))

    def copy(self, source: str, target: str, overwrite: bool = True) -> bool:
        """In place of fairseq's ``PathManager.copy``."""
        path = Path(target).absolute()
        with writing(path, lambda: Path(source).stat().st_size):  # a file system without links has it copied
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

    @mistakes()
    def resume(self, cfg: Any, groups: ModelGroups) -> Saved:
        """Agree with the other models, and let the last checkpoint be what this one resumes from.

        Every rank of the job must call it.

        Raises:
            Mistake: no checkpoints of the models belong together.
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
        models=codistill["config"]["models"] if codistill else None,
    )


def has_finished(updates: int, extra_state: dict[str, Any], cfg: Any) -> bool:
    """Whether a model has nothing left to do, by the options of now. fairseq would train one more update."""
    limits = cfg.optimization
    codistill = extra_state.get(STATE_KEY) or {}
    patience = codistill.get("patience", {})
    return bool(
        0 < (limits.max_update or 0) <= updates
        or 0 < cfg.checkpoint.patience <= patience.get("num_runs", 0)
        or codistill.get("lr", math.inf) <= limits.stop_min_lr
        or 0 < limits.stop_time_hours * 3600 < extra_state.get("previous_training_time", 0)
        or 0 < (limits.max_epoch or 0) < extra_state.get("train_iterator", {}).get("epoch", 1)
    )


def patience_state() -> dict[str, float]:
    """Of ``--patience``, which fairseq keeps as attributes of a function and forgets."""
    return dict(vars(fairseq_train.should_stop_early))


def load_patience_state(state: dict[str, float]) -> None:
    vars(fairseq_train.should_stop_early).update(state)


def plateau_state(schedule: Any) -> dict[str, int]:
    """Of ``--lr-scheduler reduce_lr_on_plateau``, what fairseq forgets."""
    inner = getattr(schedule, "lr_scheduler", None)
    if not isinstance(inner, torch.optim.lr_scheduler.ReduceLROnPlateau):
        return {}
    return {"num_bad_epochs": inner.num_bad_epochs, "cooldown_counter": inner.cooldown_counter}


def load_plateau_state(schedule: Any, state: dict[str, int]) -> None:
    if state:
        vars(schedule.lr_scheduler).update(state)


def precision_state(optimizer: Any) -> dict[str, Any]:
    """Of --fp16, --bf16 and --amp, what fairseq forgets: master weights, and when the loss scale last changed.

    It keeps the model alone, in 16 bits, and would continue from master weights made of that.
    """
    masters = [master.detach() for master in _masters(optimizer)]
    state: dict[str, Any] = {"optimizer": type(optimizer).__name__, "masters": masters}
    scaler = getattr(optimizer, "scaler", None)
    if scaler is not None:  # fairseq's own, or torch's
        state["scaler"] = scaler.state_dict() if hasattr(scaler, "state_dict") else _counters(scaler)
    return state


def load_precision_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Continue from a ``precision_state``.

    Raises:
        ValueError: it is of another precision.
    """
    masters, scaler = _masters(optimizer), getattr(optimizer, "scaler", None)
    then = (state["optimizer"], [master.numel() for master in state["masters"]])
    if then != (type(optimizer).__name__, [master.numel() for master in masters]):
        raise ValueError(
            "this run was saved in another precision or with another optimizer (--fp16, --bf16, --amp, "
            "--memory-efficient-fp16, --fp16-no-flatten-grads, --optimizer): resume it with the same"
        )
    for master, saved in zip(masters, state["masters"], strict=True):
        master.data.copy_(saved)
    if scaler is None:
        return
    if hasattr(scaler, "load_state_dict"):
        scaler.load_state_dict(state["scaler"])
    else:
        vars(scaler).update(state["scaler"])


def _counters(scaler: Any) -> dict[str, Any]:
    """What changes of fairseq's scaler; the rest are options."""
    return {name: value for name, value in vars(scaler).items() if name == "loss_scale" or name.startswith("_")}


def _masters(optimizer: Any) -> list[torch.Tensor]:
    """The float32 copies of 16-bit parameters that are stepped, flat or one by one."""
    masters = getattr(optimizer, "fp32_params", ())
    return list(masters.values() if isinstance(masters, dict) else masters)


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


def load_to_cpu(path: str, *args: Any, **kwargs: Any) -> Any:
    """In place of ``fairseq.checkpoint_utils.load_checkpoint_to_cpu``.

    Raises:
        Mistake: the file is none that is read without running what it brings along.
    """
    try:
        return _fairseq_load_to_cpu(path, *args, **kwargs)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many kinds
        raise Mistake(refused(Path(path), error)) from error


_fairseq_load_to_cpu = checkpoint_utils.load_checkpoint_to_cpu


def refused(path: Path, error: Exception) -> str:
    """Why a checkpoint was not unpickled, and what to do."""
    if foreign_names(path) == ["argparse.Namespace"]:
        return (
            f"{path} is a checkpoint of stock fairseq-train, which holds an argparse.Namespace beside tensors and "
            f"plain values: start with `python -m translation.safe_load train` in place of fairseq-train, which lets "
            f"that in"
        )
    return unreadable(path, error)


_fairseq_load_checkpoint = checkpoint_utils.load_checkpoint


def at_updates_tried(validate_and_save: Callable[..., Any]) -> Callable[..., Any]:
    """Count --save-interval-updates in updates tried, which models that are in step agree on.

    When one model skips an update (overflow), fairseq's count of it falls behind its peer's, and
    their checkpoints would never be of the same update again.
    """

    def with_interval(cfg: Any, trainer: Any, task: Any, epoch_itr: Any, *args: Any) -> Any:
        every, done, tried = cfg.checkpoint.save_interval_updates, trainer.get_num_updates(), trainer.model.updates
        if every <= 0 or tried == done or not trainer.config.active:
            return validate_and_save(cfg, trainer, task, epoch_itr, *args)
        save_now = tried % every == 0
        if save_now and done < max(1, cfg.dataset.validate_after_updates) <= tried:
            # By its own count fairseq would not save yet; the peers have.
            checkpoint_utils.save_checkpoint(cfg.checkpoint, trainer, epoch_itr, None)
            save_now = False
        with set_for_a_while(cfg.checkpoint, "save_interval_updates", done if save_now else 0):
            return validate_and_save(cfg, trainer, task, epoch_itr, *args)

    return with_interval


@contextlib.contextmanager
def set_for_a_while(cfg: Any, name: str, value: Any) -> Iterator[None]:
    """Another value of an option of fairseq's."""
    original = cfg[name]
    cfg[name] = value
    try:
        yield
    finally:
        cfg[name] = original
