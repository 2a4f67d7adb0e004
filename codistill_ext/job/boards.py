"""Where else a run's values are shown: one run of TensorBoard and of W&B a job, its models apart by prefix.

All models append to ``metrics.jsonl``, and a thread of the job's first process follows it. So no model waits
for another to be shown, and those that train on are shown when the first one has ended.
"""

import contextlib
import json
import os
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from codistill_ext.errors import Mistake
from codistill_ext.exchange.wire.whole_files import write_text

_LOOK_AGAIN_S = 2.0


class Board(Protocol):
    """Shows values of one model at an update, by keys such as ``model0/train/loss``."""

    def describe(self, config: Mapping[str, Any]) -> None:
        """Show the options of the run."""

    def show(self, model: str, values: Mapping[str, float], update: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """One TensorBoard run: a file of events in a directory."""

    def __init__(self, directory: Path) -> None:
        self._writer = SummaryWriter(str(directory))

    def describe(self, config: Mapping[str, Any]) -> None:
        """``config.yaml`` has them."""

    def show(self, model: str, values: Mapping[str, float], update: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, update)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One W&B run, also after a resume. The models need not be in step, so each has an axis of its own updates.

    Its environment variables (``WANDB_NAME``, ``WANDB_MODE``, ``WANDB_RUN_ID`` and so on) hold as everywhere.

    Args:
        identity: a file that keeps the run's id, by which a job that was started again goes on in it.

    Raises:
        Mistake: wandb cannot be imported.
    """

    def __init__(self, project: str, name: str, identity: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise Mistake(
                f"a W&B project needs wandb ({error}): pip install wandb, or leave --wandb-project out"
            ) from error
        if not identity.is_file():
            identity.parent.mkdir(parents=True, exist_ok=True)
            write_text(identity, os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8])
        own: str | None = identity.read_text(encoding="utf-8").strip()
        if os.environ.get("WANDB_MODE") == "offline":
            own = None  # nobody joins the parts of a run, and of two with one id the later would replace the other
        self._run = wandb.init(
            project=project,
            name=os.environ.get("WANDB_NAME", name),
            id=os.environ.get("WANDB_RUN_ID") or own,
            resume=os.environ.get("WANDB_RESUME", "allow"),
        )
        self._models: set[str] = set()

    def describe(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(dict(config), allow_val_change=True)

    def show(self, model: str, values: Mapping[str, float], update: int) -> None:
        axis = f"{model}/update"
        if model not in self._models:
            self._models.add(model)
            self._run.define_metric(axis)
            self._run.define_metric(f"{model}/*", step_metric=axis)
        self._run.log({axis: update, **values})

    def flush(self) -> None:
        """It sends by itself."""

    def close(self) -> None:
        self._run.finish()


class Follower:
    """Shows the lines that models append to a file of metrics, from its end on.

    Args:
        path: of ``metrics.jsonl``.
        only: the one model to show where separate jobs share the file, as ``model0``.
    """

    def __init__(self, path: Path, boards: Sequence[Board], only: str | None = None) -> None:
        self._path, self._boards, self._only = path, boards, only
        self._position = path.stat().st_size if path.exists() else 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="boards", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._ends.wait(_LOOK_AGAIN_S):
            self._show_new_lines()

    def _show_new_lines(self) -> None:
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._position)
            new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._position += len(whole)
            for line in whole.splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a killed job's last line
                    self._show(json.loads(line))
            for board in self._boards if whole else ():
                board.flush()

    def _show(self, line: dict[str, Any]) -> None:
        values = {key: value for key, value in line.items() if "/" in key}
        model = next(iter(values), "").partition("/")[0]
        if values and self._only in (None, model):
            for board in self._boards:
                board.show(model, values, line["update"])

    def close(self) -> None:
        """Show what is left. The models have written all of theirs."""
        self._ends.set()
        self._thread.join()
        self._show_new_lines()
        for board in self._boards:
            board.close()
