"""Which of a host's checkpoints are whole, and which one all models can go on from.

Hosts write the files of a checkpoint one by one, in a directory with its final name. The coupling's file is
written last, so where it is whole the others are.
"""

import json
import re
from pathlib import Path
from typing import Any

from codistill_ext.groups import ModelGroups, model_directory
from codistill_ext.job.resume import BEGINNING, Saved, choose
from codistill_ext.job.storage import check_whole, load_plain

_NAME = re.compile(r"checkpoint[-_](\d+)")
TRAINER_STATE = "trainer_state.json"  # of the Hugging Face Trainer; says whether training has ended


def newest_common(directory: Path, marker: str, groups: ModelGroups) -> Path | None:
    """This model's newest whole checkpoint that belongs to those of all other models of the job; None at the beginning.

    Every rank of the job must call it, and the default process group must be that of all models.

    Args:
        directory: of the run; each model's checkpoints are anywhere in its own directory there.
        marker: the name of the coupling's file.

    Raises:
        ValueError: on every rank: no checkpoints belong together.
    """
    own = model_directory(directory, groups.model_index)
    return choose(groups.ask_leads(lambda: [*_whole(own, marker), BEGINNING]), groups).path


def _whole(own: Path, marker: str) -> list[Saved]:
    """Newest first. What is not whole is passed over: a job may have been killed while it saved."""
    found = [saved for path in own.glob(f"**/{marker}") if (saved := _saved(path)) is not None]
    return sorted(found, key=lambda saved: saved.update, reverse=True)


def _saved(path: Path) -> Saved | None:
    if not _NAME.fullmatch(path.parent.name):
        return None
    try:
        check_whole(path)
        state = load_plain(path, mmap=True)
        update = state["updates"]
        return Saved(
            path=path.parent,
            update=update,
            cut=update,
            finished=_has_ended(path.with_name(TRAINER_STATE)),
            models=state["config"]["models"],
        )
    except ValueError:
        return None


def _has_ended(path: Path) -> bool:
    if not path.exists():
        return False
    state: dict[str, Any] = json.loads(path.read_text())
    return bool(state["global_step"] >= state["max_steps"])
