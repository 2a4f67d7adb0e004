"""One thread that does an exchange's work while training goes on."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class BackgroundWorker:
    """Runs jobs one after the other in a daemon thread.

    Unlike ``ThreadPoolExecutor``, whose threads the interpreter joins at exit: a rank that fails
    must be able to end while its thread still waits for a peer. The thread works on the GPU that is current where it
    is made: another one would have GPU 0, and its first wait for an event would take up memory there.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._step: tuple[str, float] | None = None
        self._gpu: int | None = None
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self._gpu = torch.cuda.current_device()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Result]) -> "Future[Result]":
        """Queue a call; errors come out of the future's ``result``."""
        future: Future[Result] = Future()
        self._jobs.put((job, future))
        return future

    def begins(self, step: str) -> None:
        """For the job that runs: what it does from now on, such as ``reading FILE``."""
        self._step = (step, time.monotonic())

    def hangs_in(self, longer_than_s: float = 0.0) -> str | None:
        """The step that has been going on for longer than that, as a clause of a message."""
        step = self._step
        if step is None or time.monotonic() - step[1] < longer_than_s:
            return None
        return f"{step[0]} has not come to an end for {time.monotonic() - step[1]:.0f} s"

    def close(self, timeout_s: float | None = None) -> bool:
        """Wait for all jobs, then end the thread; whether it ended in that time."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)
        while (item := self._jobs.get()) is not None:
            job, future = item
            try:
                result = job()
            except BaseException as error:
                self._step = None
                future.set_exception(error)
            else:
                self._step = None
                future.set_result(result)
