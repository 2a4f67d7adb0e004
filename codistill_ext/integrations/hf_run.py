"""The course of a Trainer's run beside that of the other models: where it resumes, how far it is, when it ends."""

import math
import re
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import has_length

from codistill_ext.groups import model_directory
from codistill_ext.integrations.checkpoints import newest_common
from codistill_ext.integrations.own_world import OwnWorld
from codistill_ext.schedules import Horizon

COUPLING = "codistill.pt"  # in each checkpoint, written last


def own_checkpoint(told: str | bool, output_dir: str, world: OwnWorld) -> Path:
    """The checkpoint of this model to resume from. Every rank of the job must call it.

    Args:
        told: true for the newest that all models have; or a path, which may be any model's, or leave the model out.
        output_dir: of this model.

    Raises:
        ValueError: it is not there.
    """
    groups = world.groups
    if told is True:
        run = Path(output_dir).parent
        with world.whole_job():
            found = newest_common(run, COUPLING, groups)
        if found is None:
            raise ValueError(f"nothing to resume from in {run}: there is no update that all models have saved")
        return found
    named = Path(str(told))
    run = named.parent.parent if re.fullmatch(r"model\d+", named.parent.name) else named.parent
    path = model_directory(run, groups.model_index) / named.name
    if not path.is_dir():
        raise ValueError(f"{groups.name} cannot resume: there is no {path}")
    return path


class Updates(TrainerCallback):
    """Tells the coupling how far training is."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, *, train_dataloader: Any, **_: Any) -> None:
        assert self._trainer.coupling is not None
        an_epoch = None
        if has_length(train_dataloader):
            an_epoch = max(1, math.ceil(len(train_dataloader) / args.gradient_accumulation_steps))
        self._trainer.coupling.set_horizon(Horizon(updates=state.max_steps, updates_an_epoch=an_epoch))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._trainer.coupling is not None
        self._trainer.coupling.after_update()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._trainer.coupling is not None
        self._trainer.coupling.close()
