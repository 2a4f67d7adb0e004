"""Kills at chosen moments: of a save inside this process, and of processes from outside."""

import os
import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

_STEPS = ("replace", "link", "unlink", "fsync", "open")


class Killed(BaseException):
    """No ``except Exception`` of the code under test catches it."""


def every_cut_short(prepare: Callable[[], Callable[[], None]]) -> Iterator[int]:
    """Cut an action short before its first step on the file system, then before its second, and so on.

    Nothing of the action runs after that, not even its clean-up: as after SIGKILL.

    Args:
        prepare: sets the scene anew and returns the action.

    Yields:
        the number of steps that were made, each time after the kill.
    """
    done = False
    allowed = 0
    while not done:
        action = prepare()
        left = allowed

        def step(original: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return original(*args, **kwargs)

            return call

        patches = [mock.patch.object(os, name, step(getattr(os, name))) for name in _STEPS]
        patches.append(mock.patch.object(tempfile, "mkstemp", step(tempfile.mkstemp)))
        for patch in patches:
            patch.start()
        try:
            action()
            done = True
        except Killed:
            pass
        finally:
            for patch in patches:
                patch.stop()
        yield allowed
        allowed += 1
