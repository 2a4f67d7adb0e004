"""Commands as a user types them, in processes of their own.

Python starts warm (``tests.warm``), unless the test is marked ``real_python``.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests import warm

ROOT = Path(__file__).parents[1]
DEADLINE_S, _GRACE_S = 200, 40  # below the timeout of a test, which must not come first
_READ_AT_IMPORT = ("PYTHON", "OMP_", "TORCH", "LD_")

real_python = False  # tests/conftest.py sets it


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def run(
    command: list[str], *, fails: bool = False, cwd: Path = ROOT, variables: Mapping[str, str] | None = None
) -> str:
    """Run to the end; its output. It is ended, with what it started, if it takes too long."""
    variables = dict(variables or {})
    if not real_python and not any(name.startswith(_READ_AT_IMPORT) for name in variables):
        command = _warm(command)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment() | variables,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    except BaseException as error:  # pytest's timeout as well: nothing is left running
        output = _end(process)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise AssertionError(f"did not end within {DEADLINE_S} s:\n{output[-5000:]}") from None
    assert (process.returncode != 0) == fails, output[-6000:]
    return output


def _warm(command: list[str]) -> list[str]:
    """With the interpreter that starts at once, if it is this one, or a script of this one."""
    if command[0] in (sys.executable, warm.REAL_PYTHON):
        return [warm.python(), *command[1:]]
    with open(command[0], "rb") as file:
        interpreter = file.readline().decode(errors="replace").strip().removeprefix("#!")
    here = Path(interpreter).parent == Path(warm.REAL_PYTHON).parent and Path(interpreter).name.startswith("python")
    return [warm.python(), *command] if here else command


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
    found = shutil.which(name, path=os.pathsep.join([str(Path(warm.REAL_PYTHON).parent), os.environ["PATH"]]))
    assert found is not None, f"{name} is not installed"
    return found


def torchrun(processes: int, *options: str) -> list[str]:
    return [script("torchrun"), "--standalone", "--nproc-per-node", str(processes), *options]


def stand_in(directory: Path, name: str, script: str) -> Path:
    """An executable shell script, to be found on PATH."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)
    return path
