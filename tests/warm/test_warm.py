"""A warm Python is a Python to whoever starts it, and nothing outlives the one that asked."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests import commands, warm
from tests.warm.client import receive_status


def interpreters() -> list[str]:
    return [sys.executable, warm.python()]


def ended(command: Sequence[str], cwd: Path, **variables: str) -> tuple[int, str, str]:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=commands.environment() | variables,
        input="given\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("here = 1\n")
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent(
            """\
            import atexit, os, signal, sys, threading
            import beside

            assert __name__ == "__main__" and sys.modules["__main__"].beside is beside
            how = sys.argv[1:]
            atexit.register(print, "at exit")
            threading.Thread(target=lambda: (threading.main_thread().join(), print("a thread"))).start()
            print(how, input(), os.getcwd(), os.environ["OWN"], __file__, sys.path[0])
            print("error", file=sys.stderr)
            if how[0] == "status":
                sys.exit(int(how[1]))
            if how[0] == "words":
                sys.exit("last words")
            if how[0] == "raise":
                raise ValueError("a mistake")
            if how[0] == "kill":
                sys.stdout.flush()
                os.kill(os.getpid(), int(how[1]))
            """
        )
    )
    return path


@pytest.mark.parametrize(
    "how",
    ["nothing", "status 3", "status 300", "words", "raise", f"kill {signal.SIGKILL}", f"kill {signal.SIGTERM}"],
)
@pytest.mark.parametrize("form", ["program.py", "-u program.py", "-m program", "-u -m program"])
def test_it_ends_and_speaks_as_a_real_one(program: Path, how: str, form: str) -> None:
    options = [*form.split(), *how.split()]
    real, warm_one = (ended([python, *options], program.parent, OWN="x") for python in interpreters())
    assert real == warm_one


def test_what_it_does_not_know_is_done_by_a_real_one(tmp_path: Path) -> None:
    code = "import sys; print('torch' in sys.modules, sys.executable)"
    assert ended([warm.python(), "-c", code], tmp_path) == (0, f"False {sys.executable}\n", "")


def test_the_libraries_are_there_and_what_is_tested_is_not(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(
        "import sys, threading, logging, warnings\n"
        "tested = ('codistill_ext', 'vision', 'translation', 'tests', 'benchmarks', 'fairseq_cli')\n"
        "print([name for name in sys.modules if name.partition('.')[0] in tested])\n"
        "print('torch' in sys.modules, threading.active_count(), logging.root.handlers)\n"
    )
    assert ended([warm.python(), "p.py"], tmp_path) == (0, "[]\nTrue 1 []\n", "")


WAITS = """\
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
came, comes = os.pipe()
os.set_blocking(comes, False)
signal.set_wakeup_fd(comes)
print("ready", flush=True)
while True:
    os.read(came, 1)  # ends also when the signal was faster
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 7), (signal.SIGINT, -signal.SIGINT)])
def test_signals_reach_it(tmp_path: Path, number: int, status: int) -> None:
    with _ready(tmp_path, signal.SIG_DFL) as process:
        process.send_signal(number)
        assert process.wait(60) == status


def test_signals_that_were_ignored_at_its_start_are_ignored(tmp_path: Path) -> None:
    """As with ``nohup``, and with Ctrl-C for what a shell has put into the background."""
    with _ready(tmp_path, signal.SIG_IGN) as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 7


@contextlib.contextmanager
def _ready(tmp_path: Path, on_interrupt: signal.Handlers) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "p.py").write_text(WAITS)
    before = signal.signal(signal.SIGINT, on_interrupt)  # which the process inherits
    try:
        process = subprocess.Popen(
            [warm.python(), "p.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def test_it_dies_with_the_one_that_asked(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(WAITS)
    with subprocess.Popen([warm.python(), "p.py"], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.kill()
        assert process.stdout.read() == b"", "its standard output is closed: it has ended"


def _end_with(status: int) -> None:
    os._exit(status)


def _wait() -> None:
    signal.pause()


def test_calls() -> None:
    with warm.call(_end_with, 5) as process:
        assert receive_status(process) == 5
    with warm.call(_wait) as process:
        process.sendall(bytes([signal.SIGKILL]))
        assert receive_status(process) == -signal.SIGKILL
