"""Exchange of weights between separate jobs, through files in a directory that they share.

    DIR/model0/0000002500.safetensors        model 0 after 2500 updates
    DIR/model1/...

A file is written whole, flushed and renamed, so a reader sees all of it or nothing; the last few
are kept.
"""

import datetime
import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from codistill_ext.errors import PeerTimeoutError
from codistill_ext.exchange.periodic import Flight, PeriodicExchange, done
from codistill_ext.exchange.teachers import Arrival
from codistill_ext.exchange.wire.weight_file import (
    UnusableFileError,
    WeightFile,
    file_name,
    files_in,
    read_weights,
    write_weights,
)
from codistill_ext.groups import model_directory

_KEPT_FILES = 3
_LOOK_AGAIN_S = 0.5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FileArrival(Arrival):
    """A file as it was read: whether it fits shows where the teacher is built."""

    file: WeightFile
    path: Path


class FileExchange(PeriodicExchange):
    """This job publishes its model every ``period`` updates and reads the newest file of each peer.

    No peer is needed for this job to go on: one that is late, or gone, teaches with its last
    weights, as ``max_staleness`` and ``stale_policy`` permit. All ranks of the job read the files
    that its first rank saw, so they have the same teachers.
    """

    def _prepare(self) -> None:
        self.directory = Path(self.config.dir)
        self._own = model_directory(self.directory, self.groups.model_index)
        self._control: Any = None
        if dist.is_initialized():
            self._control = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=self.config.timeout))
        self._seen: dict[int, tuple[str, int]] = {}
        self._finished: set[int] = set()
        self._continued = False
        self._checked = False
        if self.groups.is_lead:
            self._own.mkdir(parents=True, exist_ok=True)

    def targets(self, batch: Any, *, update: int, wanted: bool) -> list[Any]:
        if not self._checked:
            self._refuse_another_run(update)
        return super().targets(batch, update=update, wanted=wanted)

    def _refuse_another_run(self, update: int) -> None:
        """Before the first step: files of another run would teach, and hide this run's."""
        self._checked = True
        files = files_in(self._own) if self.groups.is_lead else []
        newer = [path for path in files if int(path.stem) > update]
        if self._continued:
            for path in newer:  # this run will write them again
                path.unlink(missing_ok=True)
        found = self._from_lead([str(path) for path in newer])
        if found and not self._continued:
            raise ValueError(
                f"{self._own} holds weights of another run (up to {Path(found[-1]).name}): choose another "
                f"--codistill-dir, remove it, or resume that run"
            )

    def _from_lead(self, value: Any) -> Any:
        """What the job's first rank has. All ranks of the job must call it."""
        if self._control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=dist.get_global_rank(self._control, 0), group=self._control)
        return box[0]

    def _take_off(self, update: int) -> Callable[[], dict[int, Arrival]]:
        row = self.packer.pack(self.module).to("cpu", copy=True) if self.groups.is_lead else None
        return functools.partial(self._publish_and_read, row, update, self._newest())

    def _newest(self) -> dict[int, str]:
        """The newest file of each peer that has not been read yet, as the job's first rank sees them."""
        newest: dict[int, tuple[str, int]] = {}
        if self.groups.is_lead:
            for peer in self.peers:
                files = files_in(model_directory(self.directory, peer))
                try:
                    found = (files[-1].name, files[-1].stat().st_mtime_ns) if files else None
                except OSError:  # pruned meanwhile: there is a newer one next time
                    continue
                # The last file of a run may be written once more, to say that it has finished.
                if found is not None and self._seen.get(peer) != found:
                    newest[peer] = found
        newest = dict(self._from_lead(newest))
        self._seen |= newest
        return {peer: name for peer, (name, _) in newest.items()}

    def _publish_and_read(self, row: Tensor | None, update: int, names: dict[int, str]) -> dict[int, Arrival]:
        if row is not None:
            self._publish(row, update, finished=False)
        return self._read_all(names)

    def _publish(self, row: Tensor, update: int, *, finished: bool) -> None:
        size = write_weights(
            self._own / file_name(update),
            self.packer.views(row),
            self.description,
            seed=torch.initial_seed(),
            finished=finished,
            update=update,
        )
        self.traffic.sent["weights"] += size
        for old in files_in(self._own)[:-_KEPT_FILES]:
            old.unlink(missing_ok=True)

    def _read_all(self, names: dict[int, str]) -> dict[int, Arrival]:
        arrivals: dict[int, Arrival] = {}
        for peer, name in names.items():
            path = model_directory(self.directory, peer) / name
            try:
                found = read_weights(path)
                self.traffic.received["weights"] += path.stat().st_size
            except (UnusableFileError, OSError) as error:
                self._complain(peer, error)
                continue
            (self._finished.add if found.finished else self._finished.discard)(peer)  # it may go on after all
            arrivals[peer] = FileArrival(
                stamp=found.update, taken_at=found.taken_at, description=found.description, file=found, path=path
            )
        return arrivals

    def _complain(self, peer: int, error: Exception) -> None:
        logger.warning("%s keeps the last weights it has of model %d: %s", self.groups.name, peer, error)

    def _whole(self, peer: int, arrival: Arrival | None) -> Arrival | None:
        """What fits its description, if every rank of the job has read it."""
        usable = None
        if isinstance(arrival, FileArrival):
            try:
                # Only to see whether it fits: the teacher in use stays until these weights are due.
                row = self.teacher_for(peer, arrival.description).packer.row_of(arrival.file.tensors)
                usable = Arrival(arrival.stamp, arrival.taken_at, arrival.description, row)
            except (ValueError, RuntimeError) as error:
                self._complain(peer, UnusableFileError(f"{arrival.path}: {error}"))
        return usable if self.groups.agree(usable is not None, self.device) else None

    def after_update(self, update: int) -> None:
        super().after_update(update)
        if self.config.stale_policy == "wait" and self.config.max_staleness > 0:
            self._wait_for_fresh(update)

    def _wait_for_fresh(self, update: int) -> None:
        """Wait while a peer's weights are too old, unless it has finished. All ranks wait alike."""
        deadline = time.monotonic() + self.config.timeout
        while late := self._from_lead(self._late(update)):
            if self._flights:  # what is here already must not land behind something newer
                self._finish(self._flights.pop(0))
                continue
            names = self._newest()
            if names:
                self._finish(Flight(update, done(self._read_all(names))))
                continue
            if self._from_lead(time.monotonic() > deadline):
                raise PeerTimeoutError(
                    f"{self.groups.name} waited at update {update}, but {self.directory} has had no weights of models "
                    f"{', '.join(map(str, late))} for {self.config.timeout:g} s that are at most "
                    f"{self.config.max_staleness} updates old (--codistill-max-staleness): start these jobs again, "
                    f"or use --codistill-stale-policy go_on or drop"
                )
            time.sleep(_LOOK_AGAIN_S)

    def _late(self, update: int) -> list[int]:
        return [
            peer
            for peer, teacher in self.teachers.items()
            if teacher.stamp is not None
            and update - teacher.stamp > self.config.max_staleness
            and peer not in self._finished
        ]

    def leave(self, update: int) -> None:
        """Publish the final weights; jobs that go on are told that no more will come."""
        super().leave(update)
        if self.groups.is_lead:
            row = self.packer.pack(self.module).to("cpu", copy=True)
            self._worker.submit(lambda: self._publish(row, update, finished=True))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"seen": dict(self._seen), "finished": sorted(self._finished)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._seen = dict(state["seen"])
        self._finished = set(state["finished"])
        self._continued = True
