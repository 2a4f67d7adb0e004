"""How a command ends when something is wrong: one rank says one sentence, and torchrun's summary ends with it.

What the user can mend is told without usage and traceback; a bug keeps its traceback. torchrun (torch
2.14) gives each worker a file for its error, ends all workers when one has failed, and shows as the root
cause the error that was first by time. So the first rank of a node that ends here speaks, and the others
wait to be ended; a rank that only noticed that another one is gone waits first, for the cause to show.
"""

import argparse
import contextlib
import difflib
import functools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from codistill_ext.errors import CoordinationError, Mistake, PeerTimeoutError
from codistill_ext.job.storage import StorageError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_PATIENCE_S = 10.0  # for torchrun to end this process
_GATHERING_S = 3.0  # for the node's other ranks to come to the same end
_LOOK_AGAIN_S = 0.05
_FEW = 8  # choices that are named in full


@contextlib.contextmanager
def mistakes() -> Iterator[None]:
    """A ``ValueError`` in here is a mistake of the user's. Also a decorator: ``@mistakes()``."""
    try:
        yield
    except Mistake:
        raise
    except ValueError as error:
        raise Mistake(str(error)) from error


def command(name: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """For the function that a process runs: errors end it as this module says.

    Args:
        name: of the command, which its sentence begins with.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if is_symptom(error):
                    _wait_to_be_ended()
                if isinstance(error, Mistake):
                    end(f"{name}: error: {error}", status=2)
                if isinstance(error, StorageError):
                    end(f"{name}: error: {error}")
                if isinstance(error, (CoordinationError, PeerTimeoutError)):
                    end(f"{name}: error: {type(error).__name__}: {error}")
                get_error_handler().record_exception(error)  # with its traceback, into torchrun's file
                raise

        return run

    return decorate


class Parser(argparse.ArgumentParser):
    """An argument parser that refuses in one sentence."""

    def error(self, message: str) -> NoReturn:
        refuse(self, message)


def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """In place of ``parser.error``: no usage, and the nearest names instead of all."""
    message = re.sub(r"(invalid choice: (.+)) \(choose from (.*)\)", _nearest_choices, message, flags=re.DOTALL)
    _, _, unknown = message.partition("unrecognized arguments: ")
    flags = [word.partition("=")[0] for word in unknown.split() if word.startswith("--")]
    near = [nearest(flag, parser._option_string_actions, count=1) for flag in flags]
    if any(near):
        message += f"; did you mean {', '.join(filter(None, near))}?"
    end(f"{parser.prog}: error: {message} (see --help)", status=2)


def _nearest_choices(found: re.Match[str]) -> str:
    choices = [choice.strip("'\"") for choice in found[3].split(", ")]
    if len(choices) <= _FEW:
        return found[0]
    near = nearest(found[2].strip("'\""), choices)
    return found[1] + (f"; did you mean {near}?" if near else f", which is none of {len(choices)}")


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The few of the known names that resemble one, nearest first, as words; empty if none does."""
    return " or ".join(difflib.get_close_matches(name, list(known), n=count))


def end(sentence: str, *, status: int = 1) -> NoReturn:
    """End this process with a sentence, which one rank of each node says.

    Raises:
        SystemExit: always, with ``status``.
    """
    sentence = " ".join(sentence.split())
    place = _meeting_place()
    if place is None or _is_first(place):
        print(sentence, file=sys.stderr, flush=True)
        _record(sentence)
        if place is not None:
            _wait_for_others(place)
    else:
        _wait_to_be_ended()
        _record(sentence)
    raise SystemExit(status)


def is_symptom(error: Exception) -> bool:
    """Whether it may only say that another rank has failed."""
    if isinstance(error, (PeerTimeoutError, dist.DistError)):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


def _meeting_place() -> Path | None:
    """The directory that torchrun keeps for this node's ranks, anew after each restart; None without torchrun."""
    file = os.environ.get(_ERROR_FILE)
    return Path(file).parent.parent if file and "TORCHELASTIC_RUN_ID" in os.environ else None


def _is_first(place: Path) -> bool:
    _arrive(place)
    try:
        os.close(os.open(place / "told", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except OSError:  # nowhere to meet: better twice than not at all
        return True
    return True


def _arrive(place: Path) -> None:
    with contextlib.suppress(OSError):
        (place / f"ends.{os.environ.get('LOCAL_RANK', '0')}").touch()


def _wait_for_others(place: Path) -> None:
    """Let the other ranks arrive, or torchrun would list each as ended by a signal, which says nothing."""
    deadline = time.monotonic() + _GATHERING_S
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    while len(list(place.glob("ends.*"))) < ranks and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN_S)


def _wait_to_be_ended() -> None:
    """Under torchrun: until it ends this process, because another one has failed.

    With status 0, so that its summary has nothing of this rank; the other one makes the job fail.
    """
    place = _meeting_place()
    if place is None:
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    _arrive(place)
    time.sleep(_PATIENCE_S)
    signal.signal(signal.SIGTERM, before)


def _record(sentence: str) -> None:
    """Into torchrun's file for this process, as its error handler does it with a traceback."""
    file = os.environ.get(_ERROR_FILE)
    if not file:
        return
    extra = {"py_callstack": sentence, "timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError):
        Path(file).write_text(json.dumps({"message": {"message": sentence, "extraInfo": extra}}))
