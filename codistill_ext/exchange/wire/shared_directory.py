"""What a job does in the directory that it shares with others; everything here can hang and belongs in a thread."""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.foreign_files import newest_names, open_directory
from codistill_ext.exchange.wire.weight_file import (
    FILE_NAME,
    LayoutOf,
    UnusableFileError,
    WeightFile,
    file_name,
    read_weights,
    write_weights,
)
from codistill_ext.exchange.wire.whole_files import remove_leftovers

_KEPT_FILES = 3
_TRIED_FILES = 8  # of the newest in a directory that may hold any number
_PAUSES_S = (1.0, 3.0)  # before an input or output that failed is tried again

Result = TypeVar("Result")
FileStamp = tuple[str, int]
"""A file's name and the time of its last change, in ns: the last file of a run may be written twice."""

logger = logging.getLogger(__name__)


def _with_patience(action: Callable[[], Result], tell: Callable[[str], None]) -> Result:
    """Call again, after pauses, what ends in an ``OSError``; the last one is the caller's."""
    for pause_s in _PAUSES_S:
        try:
            return action()
        except OSError as error:
            tell(f"{error}; it is tried again in {pause_s:g} s")
            time.sleep(pause_s)
    return action()


class OwnDirectory:
    """Where this job publishes its model.

    Args:
        who: this job's name in messages.
        begins: is told each step before it can hang.
    """

    def __init__(self, path: Path, *, who: str, begins: Callable[[str], None]) -> None:
        self.path = path
        self._who = who
        self._begins = begins

    def make(self) -> None:
        """Make it, and clear away what killed writers left: nobody else may be publishing this model."""
        self._begins(f"making {self.path}")
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.path):  # that it exists does not say that it can be written
            pass
        remove_leftovers(self.path)

    def newer_than(self, update: int) -> list[str]:
        """Names of the files of later updates, oldest first."""
        self._begins(f"looking into {self.path}")
        return [name for name in self._names() if int(Path(name).stem) > update]

    def remove(self, names: list[str]) -> None:
        for name in names:
            self._begins(f"removing {self.path / name}")
            (self.path / name).unlink(missing_ok=True)

    def publish(
        self, tensors: Mapping[str, Tensor], description: ModelDescription, *, update: int, finished: bool
    ) -> int:
        """Write a file, then remove the oldest; the bytes written.

        Raises:
            OSError: it could not be written, however often it was tried.
        """
        path = self.path / file_name(update)

        def write() -> int:
            self._begins(f"writing {path}")
            if not self.path.is_dir():
                logger.warning("%s: %s has vanished and is made again", self._who, self.path)
            seed = torch.initial_seed()
            return write_weights(path, tensors, description, seed=seed, finished=finished, update=update)

        size = _with_patience(write, lambda text: logger.warning("%s, writing %s: %s", self._who, path, text))
        with contextlib.suppress(OSError):  # they are removed another time
            self.remove(self._names()[:-_KEPT_FILES])
        return size

    def _names(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.path) if FILE_NAME.fullmatch(name))
        except FileNotFoundError:
            return []


@dataclass(frozen=True)
class FoundFile:
    """A file of a peer that has not been used yet."""

    stamp: FileStamp
    path: Path
    contents: WeightFile


class PeerDirectory:
    """Where another job publishes, if it does; it may hold anything.

    Args:
        complain: is told once what is wrong, by a message that names the file.
        begins: is told each step before it can hang.
    """

    def __init__(self, path: Path, *, complain: Callable[[str], None], begins: Callable[[str], None]) -> None:
        self.path = path
        self._complain = complain
        self._begins = begins
        self._refused: dict[str, int] = {}
        self._at = path  # what is being read
        self._problem = ""

    def look(self, seen: FileStamp | None, layout_of: LayoutOf) -> FoundFile | None:
        """The newest file that can be read, unless it has been ``seen``; nothing that is there raises an error."""
        try:
            found = _with_patience(lambda: self._look(seen, layout_of), self._tell)
        except (ValueError, OSError) as error:
            problem = f"{self._at}: {error}"
            if problem != self._problem:
                self._complain(problem)
            self._problem = problem
            return None
        self._problem = ""
        return found

    def _tell(self, text: str) -> None:
        if not self._problem:  # else it has been said, and is still so
            logger.warning("%s: %s", self._at, text)

    def _begin(self, doing: str, path: Path) -> None:
        self._at = path
        self._begins(f"{doing} {path}")

    def refuse(self, stamp: FileStamp, problem: str) -> None:
        """A file that turned out to be unusable is not looked at again before it changes."""
        self._refused[stamp[0]] = stamp[1]
        self._complain(problem)

    def _look(self, seen: FileStamp | None, layout_of: LayoutOf) -> FoundFile | None:
        self._begin("looking into", self.path)
        # What is not there has not been begun, or was pruned meanwhile.
        with contextlib.suppress(FileNotFoundError), open_directory(self.path) as directory:
            names = newest_names(directory, FILE_NAME, _TRIED_FILES)
            self._refused = {name: changed for name, changed in self._refused.items() if name in names}
            for name in names:
                stamp = name, os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime_ns
                if stamp == seen:
                    return None
                if self._refused.get(name) == stamp[1]:
                    continue
                path = self.path / name
                self._begin("reading", path)
                try:
                    return FoundFile(stamp, path, read_weights(path, directory, layout_of))
                except UnusableFileError as error:
                    self.refuse(stamp, str(error))
        return None
