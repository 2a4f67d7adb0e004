"""Commands as a user types them, in processes of their own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEADLINE_S = 240
_GRACE_S = 60


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def run(
    command: list[str], *, fails: bool = False, cwd: Path = ROOT, variables: Mapping[str, str] | None = None
) -> str:
    """Run to the end; its output. It is ended, with what it started, if it takes too long."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment() | dict(variables or {}),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        output = _end(process)
        raise AssertionError(f"did not end within {DEADLINE_S} s:\n{output[-5000:]}") from None
    assert (process.returncode != 0) == fails, output[-6000:]
    return output


def _end(process: subprocess.Popen[str]) -> str:
    """What it has written. torchrun's workers are not in its process group, but it ends them on SIGTERM."""
    process.terminate()
    try:
        output, _ = process.communicate(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return output


def script(name: str) -> str:
    """A command of this environment."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found is not None, f"{name} is not installed"
    return found


def torchrun(processes: int, *options: str) -> list[str]:
    return [script("torchrun"), "--standalone", "--nproc-per-node", str(processes), *options]
