"""A process that was just forked becomes the command or the rank it was asked to be."""

import atexit
import builtins
import gc
import io
import os
import pickle
import runpy
import signal
import sys
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from tests.warm.client import FORWARDED


def become(
    request: dict[str, Any], fds: list[int], libraries: Mapping[str, str], path: list[str], python: str
) -> NoReturn:
    """Run the request, and end as Python ends.

    Args:
        libraries: what they put into the environment while they were imported.
        path: where Python finds modules, but for PYTHONPATH and the place of a script.
        python: an interpreter for those that the command starts.
    """
    os.setsid()
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    gc.enable()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # ``random`` does so itself
    if "call" in request:
        status = _ends(lambda: _call(request["call"]))
    else:
        status = _ends(lambda: _command(request, libraries, path, python))
    os._exit(status)


def _call(pickled: bytes) -> None:
    function, args = pickle.loads(pickled)
    function(*args)


def _command(request: dict[str, Any], libraries: Mapping[str, str], path: list[str], python: str) -> None:
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    for number in FORWARDED:  # as if it had been started by the client, not by a server in the background
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else default)
    os.environ.clear()
    os.environ.update({**libraries, **request["environ"]})
    sys.executable = python
    argv = list(request["argv"])
    if argv[0] == "-u":
        argv.pop(0)
        for name, fd in (("stdout", 1), ("stderr", 2)):
            raw = open(fd, "wb", buffering=0, closefd=False)
            setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    places = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    if argv[0] == "-m":
        sys.argv[:] = argv[1:]
        sys.path[:] = [os.getcwd(), *places, *path]
        runpy._run_module_as_main(argv[1])  # type: ignore[attr-defined]
    else:
        sys.argv[:] = argv
        sys.path[:] = [os.path.dirname(os.path.realpath(argv[0])), *places, *path]
        main.__dict__.update(__file__=os.path.abspath(argv[0]), __spec__=None)
        exec(compile(Path(argv[0]).read_bytes(), os.path.abspath(argv[0]), "exec"), main.__dict__)


def _ends(run: Any) -> int:
    """The status with which the interpreter would end, after what it would do before."""
    status = 0
    interrupted = False
    try:
        run()
    except SystemExit as stop:
        status = _status_of(stop.code)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        status = 1
        error.__traceback__ = _without_this_file(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120  # as Python has it
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return status


def _status_of(code: object) -> int:
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def _without_this_file(traceback: types.TracebackType | None) -> types.TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    return traceback
