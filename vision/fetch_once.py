"""Of the processes that need the same file one fetches it; the others wait, and get it or the reason why not."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from codistill_ext.exchange.wire.whole_files import write_text

T = TypeVar("T")


def fetch_once(path: Path, look: Callable[[], T | None], fetch: Callable[[], None]) -> T:
    """What ``look`` finds at ``path``, if need be after ``fetch``, which runs in one process at a time.

    A process that waited while another failed, or that was started by the same torchrun, does not try again: it
    raises the other's error. ``path`` has a ``.lock`` beside it, and after a failure a ``.failed``.

    Raises:
        ValueError: it was not fetched, here or in the other process.
    """
    found = look()
    if found is not None:
        return found
    arrived = time.time()
    failed = path.with_suffix(".failed")
    with _locked(path.with_suffix(".lock")):
        found = look()
        if found is not None:
            return found
        _raise_verdict(failed, arrived)
        failed.unlink(missing_ok=True)
        try:
            fetch()
        except ValueError as error:
            verdict = {"job": _job(), "time": time.time(), "message": str(error)}
            with contextlib.suppress(OSError):
                write_text(failed, json.dumps(verdict))
            raise
        found = look()
        if found is None:
            raise ValueError(f"{path} was fetched and cannot be read back: look after the disk, or choose another")
        return found


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write in {path.parent} ({error}): choose another --data-path") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the process ends, however it ends
        except OSError as error:
            raise ValueError(
                f"cannot lock {path} ({error}): fetch into another --data-path, and copy the file from there"
            ) from error
        yield


def _raise_verdict(failed: Path, arrived: float) -> None:
    """Raise what another process left, if it failed while this one waited or for this one as well."""
    try:
        verdict = json.loads(failed.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if verdict["time"] >= arrived or (verdict["job"] is not None and verdict["job"] == _job()):
        raise ValueError(verdict["message"])


def _job() -> str | None:
    """What only processes have in common that one torchrun started together: the directory that it made for them."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
    return str(Path(error_file).parents[1]) if len(Path(error_file).parts) > 3 else None
