"""What a run writes: metrics.jsonl, TensorBoard, config.yaml and summary.json in one directory."""

import fcntl
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter

from codistill_ext.exchange.wire.whole_files import write_text
from codistill_ext.groups import ModelGroups, model_directory
from codistill_ext.job.storage import writing


class RunLog:
    """The one writer of a run. Every model's lead rank writes; on other ranks it does nothing.

    All models append to one ``metrics.jsonl``, a line a call, with flat keys such as
    ``model0/train/loss``. A resumed run appends again from where it resumed: of two lines with
    the same model and update the later one counts.
    """

    def __init__(self, directory: str | Path, groups: ModelGroups) -> None:
        self.directory = Path(directory)
        self.groups = groups
        self.model_dir = model_directory(self.directory, groups.model_index)
        # Separate jobs may share the directory: what describes a job is then beside its model.
        self._job_dir = self.model_dir if groups.separate_jobs else self.directory
        self._start = time.time()
        self._board: SummaryWriter | None = None
        if groups.is_lead:
            self.model_dir.mkdir(parents=True, exist_ok=True)
            self._board = SummaryWriter(str(self.model_dir))

    def log(self, values: Mapping[str, float], *, update: int, epoch: float | None = None) -> None:
        """Write this model's values, ``{"train/loss": 1.2}``, at an update."""
        if self._board is None:
            return
        line: dict[str, Any] = {"update": update, "seconds": round(time.time() - self._start, 3)}
        if epoch is not None:
            line["epoch"] = epoch
        for key, value in values.items():
            line[f"model{self.groups.model_index}/{key}"] = value
            self._board.add_scalar(key, value, update)
        self._append(json.dumps(line) + "\n")

    def _append(self, line: str) -> None:
        path = self.directory / "metrics.jsonl"
        with writing(path), open(path, "a", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # the models' lines must not interleave
            file.write(line)
            file.flush()

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write ``config.yaml``; the job's first rank does it."""
        if self.groups.rank == 0:
            self._write("config.yaml", yaml.safe_dump(dict(values), sort_keys=True))

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Write ``summary.json``; the job's first rank does it."""
        if self.groups.rank == 0:
            self._write("summary.json", json.dumps(values, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        with writing(self._job_dir / name):
            write_text(self._job_dir / name, text)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
