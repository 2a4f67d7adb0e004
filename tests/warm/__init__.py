"""Processes that need not start Python: a server has imported the libraries and forks itself for each.

Starting Python and importing torch and fairseq takes 2 to 5 s of CPU, and a job of four ranks does so five
times: it was most of what the tests took. ``server`` imports once; ``client`` is an interpreter to those who
start it, torchrun too, and asks the server, which forks a ``child``. What is imported before are the
libraries, never what is tested. What differs from an interpreter of one's own: what libraries read from the
environment and print while they are imported, and the seed of hashes, are the server's.
"""

import atexit
import functools
import os
import pickle
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.warm import client

REAL_PYTHON = sys.executable
_ROOT = Path(__file__).parents[2]
_VARIABLE = "CODISTILL_TESTS_SERVER"


@functools.cache
def directory() -> Path:
    """Where the server listens. Who asks first starts it, for itself and the processes that it starts."""
    if _VARIABLE in os.environ:
        return Path(os.environ[_VARIABLE])
    place = Path(tempfile.mkdtemp(prefix="warm"))
    client_py = str(_ROOT / "tests/warm/client.py")
    command = shlex.join([REAL_PYTHON, "-IS", client_py, REAL_PYTHON, str(place / "commands")])
    (place / "python").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    (place / "python").chmod(0o755)
    listeners = [_listen(place / name) for name in ("commands", "ranks")]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    fds = [listener.fileno() for listener in listeners]
    server = subprocess.Popen(
        [REAL_PYTHON, "-m", "tests.warm.server", str(place), *map(str, fds)],
        stdin=subprocess.PIPE,
        cwd=_ROOT,
        env=variables | {"OMP_NUM_THREADS": "1"},
        pass_fds=fds,
        start_new_session=True,
    )
    for listener in listeners:
        listener.close()
    atexit.register(_end, server)
    os.environ[_VARIABLE] = str(place)
    return place


def _listen(path: Path) -> socket.socket:
    """Before the server is there, so that nobody comes too early."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(128)
    return listener


def _end(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def python() -> str:
    """An interpreter that starts at once; a real one where nothing in the temporary directory may be executed."""
    path = str(directory() / "python")
    return path if os.access(path, os.X_OK) else REAL_PYTHON


def call(function: Callable[..., None], *args: Any) -> socket.socket:
    """Call it in a process of its own; ``client.receive_status`` waits for its end, closing kills it."""
    request = {"call": pickle.dumps((function, args))}
    with open(os.devnull) as nothing:
        return client.ask(str(directory() / "ranks"), request, [nothing.fileno(), 1, 2])
