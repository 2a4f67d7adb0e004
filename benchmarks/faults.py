"""Kills runs at random moments and counts how many end, resumed, with the bits of one that was left alone.

    OMP_NUM_THREADS=1 python -m benchmarks.faults --kills 100
    OMP_NUM_THREADS=1 python -m benchmarks.faults --kills 20 --trainer fairseq --data DATA_BIN

Two models on two ranks each train a small network; by turns they exchange predictions and
checkpoints. Every run is killed once with SIGKILL, at a moment drawn from its whole length, start and
end included: by turns the whole tree of processes, after which the same command is given again, and
one worker, after which torchrun restarts all by itself. A kill takes about half a minute on 2 idle
cores, so 100 of them about 50 minutes. Prints a line a kill, and JSON at the end. Goal: all of them.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.commands import ROOT, environment, torchrun
from tests.fairseq_plugin.commands import CRITERION, SMALL
from tests.faults.states import assert_same_run
from tests.vision.small import PLAIN

EXCHANGES = {
    "predictions": [],
    "checkpoints": ["--codistill-exchange", "checkpoints", "--codistill-period", "4", "--codistill-lag", "3"],
}
RANKS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--trainer", choices=("vision", "fairseq"), default="vision")
    parser.add_argument("--data", help="fairseq: a data-bin, small; as translation.prepare makes it")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--deadline", type=float, default=600, help="seconds that a run may take (default: 600)")
    args = parser.parse_args()
    if args.trainer == "fairseq" and not args.data:
        parser.error("--trainer fairseq needs --data")
    with tempfile.TemporaryDirectory() as directory:
        result = benchmark(args, Path(directory))
    print(json.dumps(result, indent=2))
    sys.exit(result["same"] != result["kills"])


def benchmark(args: argparse.Namespace, directory: Path) -> dict[str, object]:
    chance = random.Random(args.seed)
    lengths = {}
    for exchange in EXCHANGES:
        start = time.monotonic()
        finish(Job(command(args, exchange, directory / exchange), restarts=0), args.deadline)
        lengths[exchange] = time.monotonic() - start
    outcomes: Counter[str] = Counter()
    for number in range(args.kills):
        exchange = list(EXCHANGES)[number % 2]
        whole_tree = number // 2 % 2 == 0
        moment_s = chance.uniform(0, lengths[exchange])
        run = directory / "killed"
        shutil.rmtree(run, ignore_errors=True)
        outcome = one_kill(args, exchange, run, directory / exchange, moment_s, chance if not whole_tree else None)
        outcomes[outcome] += 1
        whom = "all processes" if whole_tree else "one worker"
        print(f"{number + 1}: {exchange}, {whom} after {moment_s:.1f} s: {outcome}", flush=True)
    seconds = {exchange: round(length, 1) for exchange, length in lengths.items()}
    return {"trainer": args.trainer, "kills": args.kills, "same": outcomes["same bits"], "run_seconds": seconds} | {
        "outcomes": dict(outcomes)
    }


def command(args: argparse.Namespace, exchange: str, run: Path) -> list[str]:
    options = ["--codistill-models", "2", *EXCHANGES[exchange]]
    if args.trainer == "vision":
        options = [*PLAIN, *options, "--epochs", "10", "--save-every-updates", "2"]
        return ["vision", *options, "--resume", "auto", "--output-dir", str(run)]
    options = [*CRITERION, *options, "--save-interval-updates", "3", "--max-update", "30", "--no-epoch-checkpoints"]
    options += ["--keep-interval-updates", "1", "--validate-interval-updates", "15", "--save-dir", str(run)]
    return ["fairseq", args.data, "--user-dir", "codistill_ext", *SMALL, *options]


def one_kill(
    args: argparse.Namespace, exchange: str, run: Path, untouched: Path, moment_s: float, chance: random.Random | None
) -> str:
    """What became of a run that was killed after ``moment_s``; of one worker if there is a ``chance``."""
    job = Job(command(args, exchange, run), restarts=0 if chance is None else 1)
    time.sleep(moment_s)
    job.kill() if chance is None else job.kill_worker(chance)
    try:
        if chance is None:
            job = Job(command(args, exchange, run), restarts=0)
        finish(job, args.deadline)
        assert_same_run(untouched, run, args.trainer)
    except AssertionError as error:
        return f"other bits: {error}"
    except RuntimeError as error:
        return str(error)
    return "same bits"


def finish(job: "Job", deadline_s: float) -> None:
    try:
        status = job.process.wait(deadline_s)
    except subprocess.TimeoutExpired:
        job.kill()
        raise RuntimeError(f"did not end within {deadline_s:g} s") from None
    if status != 0:
        raise RuntimeError(f"failed with status {status}: {job.last_words()}")


class Job:
    """torchrun and what it started."""

    def __init__(self, options: list[str], restarts: int) -> None:
        self._log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            torchrun(RANKS, "--max-restarts", str(restarts), "tests/faults/job.py", *options),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment(),
        )

    def last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        errors = [line for line in lines if "Error: " in line]
        return (errors or lines or ["nothing"])[0]

    def kill(self) -> None:
        """The whole tree. Workers have sessions of their own, so there is no group to kill."""
        self.process.send_signal(signal.SIGSTOP)  # it must not start others meanwhile
        workers = children(self.process.pid)
        self.process.kill()
        self.process.wait()
        for pid in workers:
            kill_process(pid)
        while any(alive(pid) for pid in workers):
            time.sleep(0.02)

    def kill_worker(self, chance: random.Random) -> None:
        workers = children(self.process.pid)
        if workers:
            kill_process(chance.choice(workers))


def children(parent: int) -> list[int]:
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            pids.append(int(stat.parent.name))
    return sorted(pids)


def kill_process(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended by itself


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]
    except (FileNotFoundError, ProcessLookupError):
        return False


if __name__ == "__main__":
    main()
