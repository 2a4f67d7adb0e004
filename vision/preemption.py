"""SIGTERM and SIGUSR1: save at an update that all ranks of all models agree on, and leave.

A scheduler that takes a job away sends SIGTERM some time before SIGKILL (SLURM: GraceTime); ``--signal=USR1@120``
asks it for SIGUSR1 so long before the time limit.
"""

from __future__ import annotations

import contextlib
import datetime
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from codistill_ext.groups import ModelGroups
from codistill_ext.job.failures import is_symptom

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
VOTE_UPDATES, VOTE_SECONDS = 10, 2.0


class Preemption:
    """Notices a signal on any rank, and lets all ranks of the job know it at the same update.

    Every ``VOTE_UPDATES`` updates, or as many as take ``VOTE_SECONDS`` but at least one, the ranks begin a small
    reduction over gloo, and look at its result at the next such update: it has crossed in the meantime, so nobody
    waits and no GPU is asked for anything. What an update takes is part of the reduction, the slowest rank's, so that
    the next vote is at the same update on all. A job leaves at most two such intervals after the signal. A single
    process leaves at once.
    """

    def __init__(self, groups: ModelGroups, *, timeout_s: float) -> None:
        self._received = 0
        self._interval = 1
        self._last_time, self._last_update = time.monotonic(), 0
        self._vote: torch.Tensor | None = None
        self._crossing: Any = None
        timeout = datetime.timedelta(seconds=timeout_s)
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if groups.world_size > 1 else None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals in this process, until the end of the block.

        torchrun sends SIGTERM also when another rank has failed, which then shows here as a lost connection: the
        signal does what it would have done.
        """
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        lost_peer = False
        try:
            yield
        except Exception as error:
            lost_peer = is_symptom(error)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if lost_peer and self._received == signal.SIGTERM:
                signal.raise_signal(signal.SIGTERM)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # SIGTERM is the more urgent one, also between ranks.
        self._received = max(self._received, number)

    def agreed(self, update: int) -> int:
        """The signal to leave for, on all ranks alike, or 0. All ranks of the job must call it after each update."""
        if self._group is None:
            return self._received
        if update % self._interval:
            return 0
        signal_number = self._result()
        if not signal_number:
            self._vote = torch.tensor([self._received, self._seconds_an_update(update)], dtype=torch.float64)
            self._crossing = dist.all_reduce(self._vote, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return signal_number

    def _seconds_an_update(self, update: int) -> float:
        """Since the last vote. The first has the job's start in it: it only makes the next one come soon."""
        last_time, last_update = self._last_time, self._last_update
        self._last_time, self._last_update = time.monotonic(), update
        return (self._last_time - last_time) / (update - last_update if last_update else 1)

    def _result(self) -> int:
        if self._crossing is None or self._vote is None:
            return 0
        self._crossing.wait()
        self._crossing = None
        signal_number, seconds = self._vote.tolist()
        self._interval = max(1, int(min(VOTE_UPDATES, VOTE_SECONDS / max(seconds, 1e-9))))
        return int(signal_number)

    def close(self) -> None:
        """Let the last reduction end. All ranks of the job must call it."""
        self._result()


def exit_code(signal_number: int) -> int:
    """0 after SIGUSR1, a request that was fulfilled; 128 + 15 after SIGTERM, as shells report it."""
    return 0 if signal_number == signal.SIGUSR1 else 128 + signal_number


def ignore_signals(worker: int) -> None:
    """For loading processes, to which schedulers send the signal as well: the batches before the save need them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
