"""Runs a function on several ranks in real processes over gloo, and ends what it started."""

import contextlib
import datetime
import os
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests import warm
from tests.warm.client import receive_status

DEADLINE_S = 120


class RankError(AssertionError):
    """A rank raised; ``errors`` has the text of each that did."""

    def __init__(self, errors: dict[int, str]) -> None:
        super().__init__("\n".join(f"rank {rank}: {text}" for rank, text in sorted(errors.items())))
        self.errors = errors


def _entry(rank: int, world_size: int, directory: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    folder = Path(directory)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{directory}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=DEADLINE_S),
        )
        result = function(rank, *args)
        dist.barrier()  # a rank that ends early would break its peers' connections
        torch.save(result, folder / f"result{rank}.pt")
    except BaseException:
        (folder / f"error{rank}.txt").write_text(traceback.format_exc())
        # The others may be waiting for this rank: leave at once, with the connections closed.
        os._exit(1)
    os._exit(0)


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, deadline_s: float = DEADLINE_S) -> list[Any]:
    """Call ``function(rank, *args)`` in ``world_size`` processes; the list of what they return.

    Raises:
        RankError: a rank raised. TimeoutError: they took longer than ``deadline_s``.
    """
    with tempfile.TemporaryDirectory() as directory:
        limit = time.monotonic() + deadline_s
        ranks = [warm.call(_entry, rank, world_size, directory, function, args) for rank in range(world_size)]
        try:
            statuses = {rank: _status(process, limit) for rank, process in enumerate(ranks)}
        finally:
            for process in ranks:
                _end(process)
        errors = {
            rank: path.read_text() if path.exists() else f"ended with status {status}"
            for rank, status in statuses.items()
            if (path := Path(directory, f"error{rank}.txt")).exists() or status
        }
        if errors:
            raise RankError(errors)
        if None in statuses.values():
            stuck = [rank for rank, status in statuses.items() if status is None]
            raise TimeoutError(f"ranks {stuck} did not end within {deadline_s} s")
        return [torch.load(Path(directory) / f"result{rank}.pt", weights_only=False) for rank in range(world_size)]


def _status(process: socket.socket, limit: float) -> int | None:
    """Of its end; None if it has not ended in time."""
    process.settimeout(max(0.001, limit - time.monotonic()))
    try:
        return receive_status(process)
    except TimeoutError:
        return None


def _end(process: socket.socket) -> None:
    """If it has not ended by itself."""
    with process, contextlib.suppress(OSError, EOFError):
        process.settimeout(None)
        process.sendall(bytes([signal.SIGKILL]))
        receive_status(process)
