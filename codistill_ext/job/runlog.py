"""What a run writes: metrics.jsonl, config.yaml and summary.json in one directory, and to TensorBoard and W&B."""

import fcntl
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from codistill_ext.exchange.wire.whole_files import write_text
from codistill_ext.groups import ModelGroups, model_directory
from codistill_ext.job.boards import Board, Follower, TensorBoard, WeightsAndBiases
from codistill_ext.job.storage import writing


class RunLog:
    """The one writer of a run. Every model's lead rank writes; on other ranks it does nothing.

    All models append to one ``metrics.jsonl``, a line a call, with flat keys such as
    ``model0/train/loss``; the job's first rank shows them to TensorBoard and W&B. A resumed run appends
    again from where it resumed: of two lines with the same model and update the later one counts.

    Args:
        directory: of the run.
        tensorboard: directory of the events; that of the run unless given.
        wandb_project: a project of W&B, in which the job is one run.

    Raises:
        Mistake: W&B is asked for and not installed.
    """

    def __init__(
        self, directory: str | Path, groups: ModelGroups, *, tensorboard: str | Path = "", wandb_project: str = ""
    ) -> None:
        self.directory = Path(directory)
        self.groups = groups
        self.model_dir = model_directory(self.directory, groups.model_index)
        # Separate jobs may share the directory: what describes a job is then beside its model.
        self._job_dir = self.model_dir if groups.separate_jobs else self.directory
        self._start = time.time()
        self._boards: list[Board] = []
        self._follower: Follower | None = None
        if groups.is_lead:
            self.model_dir.mkdir(parents=True, exist_ok=True)
        if groups.rank == 0:
            if wandb_project:
                apart = f"-{self.model_dir.name}" if groups.separate_jobs else ""
                name = self.directory.absolute().name + apart
                self._boards.append(WeightsAndBiases(wandb_project, name, self._job_dir / "wandb_run_id"))
            self._boards.append(TensorBoard(self._events(tensorboard)))
            only = self.model_dir.name if groups.separate_jobs else None
            self._follower = Follower(self._metrics, self._boards, only)

    def _events(self, directory: str | Path) -> Path:
        """Of this job alone: TensorBoard expects one writer a directory."""
        if not directory:
            return self._job_dir
        return Path(directory, self.model_dir.name if self.groups.separate_jobs else "")

    @property
    def _metrics(self) -> Path:
        return self.directory / "metrics.jsonl"

    def log(self, values: Mapping[str, float], *, update: int, epoch: float | None = None) -> None:
        """Write this model's values, ``{"train/loss": 1.2}``, at an update."""
        if not self.groups.is_lead:
            return
        line: dict[str, Any] = {"update": update, "seconds": round(time.time() - self._start, 3)}
        if epoch is not None:
            line["epoch"] = epoch
        for key, value in values.items():
            line[f"model{self.groups.model_index}/{key}"] = value
        self._append(json.dumps(line) + "\n")

    def _append(self, line: str) -> None:
        with writing(self._metrics), open(self._metrics, "a", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # the models' lines must not interleave
            file.write(line)
            file.flush()

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write ``config.yaml``; the job's first rank does it."""
        if self.groups.rank == 0:
            self._write("config.yaml", yaml.safe_dump(dict(values), sort_keys=True))
            for board in self._boards:
                board.describe(values)

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Write ``summary.json``, with what the run was made with beside ``values``; the job's first rank does it."""
        if self.groups.rank == 0:
            self._write("summary.json", json.dumps({**values, "environment": environment()}, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        with writing(self._job_dir / name):
            write_text(self._job_dir / name, text)

    def close(self) -> None:
        """All models have written all of their values."""
        if self._follower is not None:
            self._follower.close()


def environment() -> dict[str, Any]:
    """What the same options need besides to give the same bits again: versions, this rank's processor, its threads."""
    cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "processor": torch.cuda.get_device_name() if on_cuda else cpu,
        "threads": torch.get_num_threads(),
    }
