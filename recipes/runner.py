"""Run a plan: keep the machine's slots busy with its runs, in order, until all have ended.

    python -m recipes.runner PLAN.yaml --slots 2 --pause-file PAUSE --summaries results/NAME/runs
    python -m recipes.runner PLAN.yaml --status

A run takes as many slots as it has processes, and all of them if it has more. What has ended with the same command, in
the plan's output or among the summaries, is not run again; what was interrupted is started again, and continues if its
command says ``--resume auto``; what fails is tried once more, and each attempt's output is kept; what fails again is
among the summaries, too, as failed, so that no table is without it. While the pause file exists everything is frozen:
the way to have the machine alone, since Linux weighs niceness inside a session only where autogroups are on. When the
runner is ended (SIGTERM, Ctrl-C) so are its runs. Run it from the checkout whose code is to be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from recipes.plan import Plan, Run, read_plan
from recipes.processes import ProcessTree
from recipes.records import Record, overview
from recipes.runs import raw_summary, write_raw_summary

POLL_S = 0.5
ATTEMPTS = 2


@dataclass
class _Active:
    run: Run
    tree: ProcessTree
    slots: int
    started: float = field(default_factory=time.monotonic)
    paused_s: float = 0.0


class Runner:
    """Starts the runs of a plan, waits for them and keeps their summaries.

    Args:
        summaries: where the raw summaries of finished runs go, if anywhere.
    """

    def __init__(
        self, plan: Plan, *, slots: int, pause_file: Path | None = None, summaries: Path | None = None
    ) -> None:
        self.plan, self.slots, self.pause_file, self.summaries = plan, slots, pause_file, summaries
        self.variables = _variables(plan.environment)
        self.commit = _commit()
        self.active: list[_Active] = []
        self._failures = {run.name: 0 for run in plan.runs}
        self._paused_at: float | None = None
        records = [(run, Record.read(run, summaries)) for run in plan.runs]
        for run, record in records:
            record.check_same(run)
        self.waiting = [run for run, record in records if not record.done]
        for run, record in records:
            if record.done and Record.read(run).done:
                self._keep(run)

    def work(self, stop: threading.Event) -> None:
        """Until everything has ended or ``stop`` is set."""
        try:
            while (self.waiting or self.active) and not stop.is_set():
                self._obey_pause_file()
                if self._paused_at is None:
                    self._collect()
                    self._start()
                stop.wait(POLL_S)
        finally:
            for active in self.active:
                active.tree.end()
                self._end_attempt(active, interrupted=True)

    def _obey_pause_file(self) -> None:
        wanted = self.pause_file is not None and self.pause_file.exists()
        if wanted and self._paused_at is None:
            self._paused_at = time.monotonic()
            for active in self.active:
                active.tree.stop()
            _say(f"paused while {self.pause_file} exists")
        elif not wanted and self._paused_at is not None:
            for active in self.active:
                active.paused_s += time.monotonic() - max(self._paused_at, active.started)
                active.tree.go_on()
            self._paused_at = None
            _say("going on")

    def _collect(self) -> None:
        for active in [active for active in self.active if active.tree.status() is not None]:
            self.active.remove(active)
            run, status = active.run, active.tree.status()
            seconds = self._end_attempt(active)
            if status == 0 and Record.read(run).done:
                self._keep(run)
                _say(f"done {run.name} in {seconds:.0f} s")
                continue
            self._failures[run.name] += 1
            again = self._failures[run.name] < ATTEMPTS
            _say(f"FAILED {run.name} with status {status}{', trying again' if again else ''}: see {run.directory}")
            if again:
                self.waiting.insert(0, run)
            elif self.summaries is not None:
                write_raw_summary(self.summaries / f"{run.name}.json", self._about(run) | {"failed": status})

    def _end_attempt(self, active: _Active, *, interrupted: bool = False) -> float:
        seconds = time.monotonic() - active.started - active.paused_s
        record = Record.read(active.run)
        record.end_attempt(active.run, status=active.tree.status(), seconds=seconds, interrupted=interrupted)
        return seconds

    def _keep(self, run: Run) -> None:
        if self.summaries is not None:
            write_raw_summary(self.summaries / f"{run.name}.json", raw_summary(run.directory, self._about(run)))

    @staticmethod
    def _about(run: Run) -> dict[str, Any]:
        own = {"name": run.name, "arm": run.arm, "group": run.group, "seed": run.seed}
        return own | Record.read(run).about()

    def _start(self) -> None:
        """In the plan's order: a run that needs more slots than are free is waited for, not overtaken."""
        while self.waiting:
            slots = min(self.waiting[0].processes, self.slots)
            if slots > self.slots - sum(active.slots for active in self.active):
                return
            run = self.waiting.pop(0)
            run.directory.mkdir(parents=True, exist_ok=True)
            record = Record.read(run)
            tree = ProcessTree(run.command, log=record.next_log(run), variables=self.variables)
            record.start_attempt(run, pid=tree.pid, commit=self.commit)
            self.active.append(_Active(run, tree, slots))
            _say(f"start {run.name} ({len(self.waiting)} waiting)")


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    """This checkout's code and this interpreter's commands come first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    python_path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    return {"PATH": path, "PYTHONPATH": python_path, **environment}


def _commit() -> str:
    """Of the code that runs; a plus sign if there are changes on top of it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[IO[str]]:
    """One runner a directory of runs.

    Raises:
        ValueError: another one is at work there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "runner.lock", "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another runner is at work in {directory}: end it first, or wait") from error
        yield file


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="recipes.runner", description="Run a plan.")
    parser.add_argument("plan", type=Path, help="YAML: see recipes/plan.py")
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 1, help="default: the machine's cores")
    parser.add_argument("--pause-file", type=Path, help="everything is frozen while it exists")
    parser.add_argument("--summaries", type=Path, help="keep raw summaries of finished runs in this directory")
    parser.add_argument("--nice", type=int, default=10, help="of everything that is started (default: 10)")
    parser.add_argument("--status", action="store_true", help="print what has been run, and stop")
    args = parser.parse_args(argv)
    try:
        plan = read_plan(args.plan)
        if args.status:
            print(overview(plan, args.summaries))
            return
        os.nice(args.nice)  # its children have it from here
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        with _alone(plan.output):
            Runner(plan, slots=args.slots, pause_file=args.pause_file, summaries=args.summaries).work(stop)
    except ValueError as error:
        parser.error(str(error))
    print(overview(plan, args.summaries))


if __name__ == "__main__":
    main()
