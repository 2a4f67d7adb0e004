"""Which checkpoints the models of a job resume from: whole ones that belong together.

A kill can strike when one model has saved and another has not yet. What each model received is in
its own checkpoint, so checkpoints belong together if the models had held the same number of
exchanges (``cut``); a model that had finished waits for nobody and belongs to all later ones.
"""

import fcntl
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from codistill_ext.exchange.wire.whole_files import put_in_place, remove_leftovers
from codistill_ext.groups import ModelGroups
from codistill_ext.job.storage import check_whole, load_plain

logger = logging.getLogger(__name__)

_LOCK_FILE = ".lock"
_locks: dict[Path, IO[str]] = {}  # of this process


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that a model can resume from.

    Attributes:
        path: of the file, or None for the beginning of training.
        update: optimizer steps tried.
        cut: models may resume together from checkpoints with the same number.
        finished: whether the model had ended its training.
        models: how many trained together, if that is known.
    """

    path: Path | None
    update: int
    cut: int
    finished: bool = False
    models: int | None = None

    def __str__(self) -> str:
        name = "the beginning" if self.path is None else self.path.name
        return f"update {self.update} in {name}, exchange {self.cut}{', finished' if self.finished else ''}"


BEGINNING = Saved(path=None, update=0, cut=0)
Describe = Callable[[Path, dict[str, Any]], Saved]


def whole_checkpoints(paths: Sequence[Path], describe: Describe) -> list[Saved]:
    """The undamaged ones among a model's files, in the given order: the newest, the one before, and others.

    A model without a second file has only saved once, if at all, and can also begin again. Damaged
    files, and such that are no checkpoints, are named in a warning.

    Raises:
        ValueError: all files are damaged.
    """
    found: list[Saved] = []
    problems: list[str] = []
    for path in filter(Path.exists, paths):
        try:
            check_whole(path)
            found.append(_described(path, describe))
        except ValueError as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    if not paths[1].exists():
        found.append(BEGINNING)
    if problems:
        if not found:
            raise ValueError(f"no whole checkpoint is left: {'; '.join(problems)}; restore one, or begin a new run")
        logger.warning("damaged checkpoint (%s): the newest whole one is %s", "; ".join(problems), found[0])
    return found


def _described(path: Path, describe: Describe) -> Saved:
    state = load_plain(path, mmap=True)
    try:
        return describe(path, state)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a checkpoint of this trainer ({type(error).__name__}: {error})") from error


def belong_together(models: Mapping[int, Sequence[Saved]]) -> dict[int, Saved] | None:
    """For each model the newest checkpoint such that all of them belong together, if there are such."""
    for cut in sorted({saved.cut for found in models.values() for saved in found}, reverse=True):
        chosen = {index: saved for index, found in models.items() if (saved := _newest_at(found, cut)) is not None}
        if len(chosen) == len(models):
            return chosen
    return None


def _newest_at(found: Sequence[Saved], cut: int) -> Saved | None:
    for saved in found:
        if saved.cut == cut or (saved.finished and saved.cut < cut):
            return saved
    return None


def agree(paths: Sequence[Path], describe: Describe, groups: ModelGroups) -> Saved:
    """What this model resumes from. Every rank of the job must call it; the lead of each model reads its files.

    Args:
        paths: of this model's files, the newest, the one before, and others.
        describe: what a loaded file holds.

    Raises:
        ValueError: on every rank: no checkpoints belong together, a model has only damaged ones, or they are of
            another number of models.
    """
    return choose(groups.ask_leads(lambda: whole_checkpoints(paths, describe)), groups)


def choose(leads: Mapping[int, Sequence[Saved]], groups: ModelGroups) -> Saved:
    """What this model resumes from, given what each model has, newest first; the same answer on all ranks of a model.

    Raises:
        ValueError: no checkpoints belong together, or they are of another number of models.
    """
    for found in leads.values():
        for saved in found:
            if saved.models not in (None, groups.num_models):
                raise ValueError(
                    f"{saved.path} is of a run of {saved.models} models, but there are {groups.num_models} now: resume "
                    f"it with as many, or choose another directory for a new run"
                )
    chosen = belong_together(leads)
    if chosen is None:
        have = "; ".join(f"model {index}: {' or '.join(map(str, found))}" for index, found in sorted(leads.items()))
        raise ValueError(
            f"the models were saved at different updates and no checkpoints of theirs belong together ({have}): check "
            "that it is the right directory, shared by all nodes, or begin a new run"
        )
    own, newest = chosen[groups.model_index], leads[groups.model_index][0]
    if groups.is_lead and own != newest:
        logger.warning(
            "model %d resumes from %s, not %s: not all models have saved that", groups.model_index, own, newest
        )
    return own


def take_possession(directory: Path, groups: ModelGroups) -> None:
    """Keep other jobs from saving this model's checkpoints in ``directory``. Every rank of the job must call it.

    Workers outlive a torchrun that is killed alone; they must not save beside those that resume.

    Raises:
        ValueError: on every rank: another process trains a model there, or the place cannot be written.
    """
    groups.ask_leads(lambda: _lock(directory.absolute()))


def _lock(directory: Path) -> None:
    if directory in _locks:
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / _LOCK_FILE, "a")  # noqa: SIM115  as long as this process lives, and no longer
    except OSError as error:
        raise ValueError(f"cannot write in {directory} ({error}): choose another directory for the run") from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"another process is still training in {directory}, perhaps one that outlived its torchrun: end it, "
            "or wait for its end"
        ) from None
    except OSError as error:  # a file system without locks
        logger.warning("cannot lock %s (%s): make sure that only one job trains there", directory, error)
    _locks[directory] = file


def make_current(chosen: Saved, paths: Sequence[Path], groups: ModelGroups) -> None:
    """Let ``chosen`` be the newest and the one before, so that no save pushes it out before the next is whole.

    A newer file is set aside as ``*.unused.*``. Every rank of the job must call it.
    """
    if groups.is_lead:
        newest = paths[0]
        remove_leftovers(newest.parent)
        if chosen.path != newest:
            if newest.exists():
                put_in_place(newest, newest.with_name(f"{newest.stem}.unused{newest.suffix}"))
            if chosen.path is None:
                newest.unlink(missing_ok=True)
            else:
                put_in_place(chosen.path, newest)
                put_in_place(chosen.path, paths[1])
    if groups.world_size > 1:
        dist.barrier()
