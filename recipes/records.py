"""What the runner knows of a run, in the run's own directory: run.json and the output of each attempt."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tabulate import tabulate

from recipes.plan import Plan, Run

FILE = "run.json"


@dataclass
class Record:
    """Of one run: its command and each attempt's process, commit, exit status and seconds without pauses."""

    command: list[str] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    has_summary: bool = False

    @classmethod
    def read(cls, run: Run) -> Record:
        path = run.directory / FILE
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return cls(**values, has_summary=(run.directory / "summary.json").is_file())

    def _write(self, run: Run) -> None:
        values = {"command": self.command, "attempts": self.attempts}
        partial = run.directory / f"{FILE}.partial"
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, run.directory / FILE)  # --status may be reading

    @property
    def done(self) -> bool:
        return self.has_summary and not self._last("status")

    @property
    def running(self) -> bool:
        """Whether the last attempt's process is still there; a process of the same number is not enough."""
        pid, status = self._last("pid"), self._last("status")
        try:
            return pid is not None and status is None and psutil.Process(pid).create_time() == self._last("created")
        except psutil.NoSuchProcess:
            return False

    def _last(self, key: str) -> Any:
        return self.attempts[-1].get(key) if self.attempts else None

    def state(self) -> str:
        if self.running:
            return "running"
        if self.done:
            return "done"
        return "failed" if self._last("status") and not self._last("interrupted") else "waiting"

    def check_same(self, run: Run) -> None:
        """
        Raises:
            ValueError: the directory holds a run of another command, or somebody is still at work in it.
        """
        if (self.attempts or self.has_summary) and self.command != list(run.command):
            raise ValueError(
                f"{run.directory} holds a run of another command ({shlex.join(self.command) or 'not of this runner'}; "
                f"the plan says {shlex.join(run.command)}): remove it, or name the run otherwise"
            )
        if self.running:
            raise ValueError(f"{run.name} is still running as process {self._last('pid')}: end it first")

    def next_log(self, run: Run) -> Path:
        return run.directory / f"attempt{len(self.attempts) + 1}.log"

    def start_attempt(self, run: Run, *, pid: int, commit: str) -> None:
        self.command = list(run.command)
        created = psutil.Process(pid).create_time()
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.attempts.append({"pid": pid, "created": created, "commit": commit, "started": started})
        self._write(run)

    def end_attempt(self, run: Run, *, status: int | None, seconds: float, interrupted: bool) -> None:
        self.attempts[-1] |= {"status": status, "seconds": round(seconds, 1), "interrupted": interrupted}
        self._write(run)

    def about(self) -> dict[str, Any]:
        """For the raw summary."""
        return {
            "command": shlex.join(self.command),
            "commit": self._last("commit"),
            "attempts": len(self.attempts),
            "run_seconds": self.seconds,
        }

    @property
    def seconds(self) -> float:
        return float(sum(attempt.get("seconds", 0.0) for attempt in self.attempts))


def overview(plan: Plan) -> str:
    """A table of all runs, and how many are done."""
    records = [Record.read(run) for run in plan.runs]
    rows = [
        (run.name, run.group, run.processes, record.state(), len(record.attempts), record.seconds)
        for run, record in zip(plan.runs, records, strict=True)
    ]
    counts = Counter(row[3] for row in rows)
    spent = sum(record.seconds for record in records) / 3600
    summary = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    table = tabulate(rows, headers=("run", "group", "processes", "state", "attempts", "seconds"))
    return f"{table}\n{len(rows)} runs: {summary}; {spent:.1f} hours so far"
