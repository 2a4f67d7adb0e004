"""A command with all that it starts, which can be stopped, continued and ended as one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

GRACE_S = 30.0


class ProcessTree:
    """A started command. torchrun's workers are in sessions of their own, so a process group would not reach them."""

    def __init__(self, command: Sequence[str], *, log: Path, variables: Mapping[str, str]) -> None:
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(variables),
                start_new_session=True,  # Ctrl-C is for the runner, which then ends its trees in order
            )
        self.pid = self._child.pid

    def status(self) -> int | None:
        """The exit status once it has ended."""
        return self._child.poll()

    def stop(self) -> None:
        """Freeze everything; what is frozen starts nothing new, so a second look finds what the first missed."""
        frozen: set[psutil.Process] = set()
        while new := set(self._members()) - frozen:
            _send(signal.SIGSTOP, new)
            frozen |= new

    def go_on(self) -> None:
        _send(signal.SIGCONT, self._members())

    def end(self, grace_s: float = GRACE_S) -> None:
        """SIGTERM to the command, which passes it on; who is still there after the grace period is killed."""
        members = self._members()
        self._child.terminate()
        self.go_on()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(grace_s)
        _send(signal.SIGKILL, members)
        self._child.wait()

    def _members(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _send(number: int, processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
