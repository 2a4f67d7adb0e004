"""What the runner knows of a run, in the run's own directory: run.json and the output of each attempt."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Mapping
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
    def read(cls, run: Run, summaries: Path | None = None) -> Record:
        """From its directory; if nothing is there, from its raw summary in ``summaries``, as of another checkout."""
        path = run.directory / FILE
        if path.is_file():
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**values, has_summary=(run.directory / "summary.json").is_file())
        if summaries is not None and (summaries / f"{run.name}.json").is_file():
            return cls._kept(json.loads((summaries / f"{run.name}.json").read_text(encoding="utf-8")))
        return cls(has_summary=(run.directory / "summary.json").is_file())

    @classmethod
    def _kept(cls, raw: Mapping[str, Any]) -> Record:
        last = {"commit": raw["commit"], "status": raw.get("failed", 0), "seconds": raw["run_seconds"]}
        attempts: list[dict[str, Any]] = [{"seconds": 0.0} for _ in range(raw["attempts"] - 1)] + [last]
        return cls(command=shlex.split(raw["command"]), attempts=attempts, has_summary="failed" not in raw)

    def _write(self, run: Run) -> None:
        values = {"command": self.command, "attempts": self.attempts}
        partial = run.directory / f"{FILE}.partial"
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, run.directory / FILE)  # --status may be reading

    @property
    def done(self) -> bool:
        """Ended well. A summary is not enough: what is killed behind its training may have lacked its evaluation."""
        return self.has_summary and self._last("status") == 0

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
                f"{run.directory} or its raw summary is of a run of another command ("
                f"{shlex.join(self.command) or 'not of this runner'}; the plan says {shlex.join(run.command)}): "
                "remove it, or name the run otherwise"
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


def overview(plan: Plan, summaries: Path | None = None) -> str:
    """A table of all runs, and how many are done."""
    records = [Record.read(run, summaries) for run in plan.runs]
    rows = [
        (run.name, run.group, run.processes, record.state(), len(record.attempts), record.seconds)
        for run, record in zip(plan.runs, records, strict=True)
    ]
    counts = Counter(row[3] for row in rows)
    spent = sum(record.seconds for record in records) / 3600
    summary = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    table = tabulate(rows, headers=("run", "group", "processes", "state", "attempts", "seconds"))
    return f"{table}\n{len(rows)} runs: {summary}; {spent:.1f} hours so far"
