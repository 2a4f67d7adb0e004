"""The runner, with jobs that say what they do in files of their own directory."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from recipes import runner
from recipes.plan import Plan, Run
from recipes.records import Record, overview
from recipes.runner import Runner
from tests.commands import ROOT, environment
from tests.waiting import until

# A job: BEHAVIOUR DIRECTORY. "child" has a child in a session of its own, as torchrun has, and both wait for "go".
JOB = """
import json, os, pathlib, subprocess, sys, time
behaviour, directory = sys.argv[1], pathlib.Path(sys.argv[2])
with open(directory.parent / "order", "a") as file:
    file.write(directory.name + "\\n")
if behaviour == "fail" or behaviour == "fail once" and not (directory / "failed").exists():
    (directory / "failed").touch()
    sys.exit("this is why")
if behaviour == "child":
    child = subprocess.Popen([sys.executable, *sys.argv[:1], "wait", sys.argv[2]], start_new_session=True)
    (directory / "child").write_text(str(child.pid))
    child.wait()
while behaviour == "wait" and not (directory / "go").exists():
    time.sleep(0.02)
(directory / "metrics.jsonl").write_text(json.dumps({"update": 3, "model0/valid/top1": 50.123456}) + "\\n")
(directory / "summary.json").write_text(json.dumps({"models": [{"top1": 1.0}], "args": {"lr": 0.1}, "updates": 3}))
"""


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Run]:
    script = tmp_path / "job.py"
    script.write_text(JOB)

    def make(name: str, behaviour: str = "end", processes: int = 1) -> Run:
        directory = tmp_path / "runs" / name
        command = (sys.executable, str(script), behaviour, str(directory))
        return Run(name=name, arm=name, group="g", seed=0, processes=processes, command=command, directory=directory)

    return make


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Runner]]:
    """Start a runner in a thread; it is ended with the test."""
    monkeypatch.setattr(runner, "POLL_S", 0.02)
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(*runs: Run, slots: int = 2, wait: bool = True) -> Runner:
        plan = Plan(output=tmp_path / "runs", runs=list(runs))
        started = Runner(plan, slots=slots, pause_file=tmp_path / "PAUSE", summaries=tmp_path / "kept")
        threads.append(threading.Thread(target=started.work, args=(stop,)))
        threads[-1].start()
        if wait:
            threads[-1].join(60)
            assert not threads[-1].is_alive()
        return started

    yield start
    stop.set()
    for thread in threads:
        thread.join(60)


def started(tmp_path: Path) -> list[str]:
    order = tmp_path / "runs" / "order"
    return order.read_text().split() if order.exists() else []


def states(path: Path) -> set[str]:
    pid = int(path.read_text())
    return {process.status() for process in (psutil.Process(pid), psutil.Process(pid).parent())}


def test_runs_end_in_order_and_their_summaries_are_kept(tmp_path: Path, job, work) -> None:
    work(job("a"), job("b"), job("c"), slots=1)
    assert started(tmp_path) == ["a", "b", "c"]
    kept = json.loads((tmp_path / "kept" / "b.json").read_text())
    assert kept["arm"] == "b" and kept["args"] == {"lr": 0.1} and kept["finals"] == {"updates": 3}
    assert kept["models"] == [{"top1": 1.0}] and kept["curves"] == {"model0/valid/top1": [[3], [50.123]]}
    work(job("a"), job("d"), slots=1)
    assert started(tmp_path) == ["a", "b", "c", "d"], "what has ended is not run again"


def test_a_failed_run_is_tried_once_more_and_the_others_go_on(tmp_path: Path, job, work) -> None:
    runs = [job("a", "fail"), job("b", "fail once"), job("c")]
    work(*runs, slots=1)
    assert started(tmp_path) == ["a", "a", "b", "b", "c"]
    assert [Record.read(run).state() for run in runs] == ["failed", "done", "done"]
    assert "this is why" in (runs[0].directory / "attempt2.log").read_text()
    assert "3 runs: 2 done, 1 failed" in overview(Plan(output=tmp_path, runs=runs))
    kept = json.loads((tmp_path / "kept" / "a.json").read_text())
    assert (kept["arm"], kept["seed"], kept["failed"], kept["attempts"]) == ("a", 0, 1, 2)
    shutil.rmtree(runs[0].directory)  # as in a clone, where it is tried once more
    assert "3 runs: 2 done, 1 failed" in overview(Plan(output=tmp_path, runs=runs), tmp_path / "kept")
    work(job("a", "fail"), slots=1)
    assert started(tmp_path)[5:] == ["a", "a"]


def test_a_run_of_two_processes_waits_for_two_slots(tmp_path: Path, job, work) -> None:
    first, second, wide = job("a", "wait"), job("b", "wait"), job("wide", processes=2)
    at_work = work(first, second, wide, job("c"), wait=False)
    until(lambda: len(started(tmp_path)) == 2)
    (first.directory / "go").touch()
    until(lambda: Record.read(first).done and len(at_work.active) == 1)
    assert sorted(started(tmp_path)) == ["a", "b"]
    (second.directory / "go").touch()
    until(lambda: len(started(tmp_path)) == 4)
    assert started(tmp_path)[2:] == ["wide", "c"]


def test_a_pause_file_freezes_the_whole_tree(tmp_path: Path, job, work) -> None:
    run = job("a", "child")
    work(run, wait=False)
    until((run.directory / "child").exists)
    (tmp_path / "PAUSE").touch()
    until(lambda: states(run.directory / "child") == {psutil.STATUS_STOPPED})
    (run.directory / "go").touch()
    (tmp_path / "PAUSE").unlink()
    until(lambda: Record.read(run).done)


def test_a_run_whose_summary_is_kept_is_not_run_again_elsewhere(tmp_path: Path, job, work) -> None:
    work(job("a"), slots=1)
    shutil.rmtree(job("a").directory)  # as in a clone: summaries are committed, directories of runs are not
    kept = (tmp_path / "kept" / "a.json").read_bytes()
    work(job("a"), job("b"), slots=1)
    assert started(tmp_path) == ["a", "b"]
    assert (tmp_path / "kept" / "a.json").read_bytes() == kept
    plan = Plan(output=tmp_path, runs=[job("a"), job("b")])
    assert "2 runs: 2 done" in overview(plan, tmp_path / "kept")
    with pytest.raises(ValueError, match="a run of another command"):
        Runner(Plan(output=tmp_path / "runs", runs=[job("a", "wait")]), slots=1, summaries=tmp_path / "kept")


def test_a_run_that_was_killed_behind_its_summary_is_not_done(tmp_path: Path, job) -> None:
    run = job("a")
    run.directory.mkdir(parents=True)
    Record.read(run).start_attempt(run, pid=psutil.Process().pid, commit="c")
    (run.directory / "summary.json").write_text("{}")
    assert not Record.read(run).done, "its scores may be missing"
    Record.read(run).end_attempt(run, status=0, seconds=1.0, interrupted=False)
    assert Record.read(run).done


def test_another_command_in_the_same_directory_is_refused(tmp_path: Path, job, work) -> None:
    work(job("a"))
    with pytest.raises(ValueError, match="a run of another command"):
        Runner(Plan(output=tmp_path, runs=[job("a", "wait")]), slots=1)


def test_the_command_ends_its_runs_and_continues_them(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"output: {tmp_path}/runs\ncommand: {sys.executable} {tmp_path}/job.py child {{directory}}\n"
        "groups: [{name: g, seeds: 0, runs: {a: {processes: 2}}}]"
    )
    command = [sys.executable, "-m", "recipes.runner", str(plan)]
    directory = tmp_path / "runs" / "a-s0"
    first = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        until(lambda: (directory / "child").exists() and (directory / "child").read_text())
        child = psutil.Process(int((directory / "child").read_text()))
        assert child.nice() == min(19, psutil.Process().nice() + 10)
        status = subprocess.run(
            [*command, "--status"], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
        )
        assert "1 runs: 1 running" in status.stdout, status
        second = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
        assert "another runner is at work" in second.stderr
        first.send_signal(signal.SIGTERM)
        assert "1 runs: 1 waiting" in first.communicate(timeout=60)[0]
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    finally:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "go").touch()
        first.terminate()
        first.wait(timeout=60)
    again = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert "1 runs: 1 done" in again.stdout, again
