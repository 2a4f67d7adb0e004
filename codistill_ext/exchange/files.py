"""Exchange of weights between separate jobs, through files in a directory that they share.

    DIR/model0/0000002500.safetensors        model 0 after 2500 updates
    DIR/model1/...

A file is written whole, flushed and renamed, so a reader sees all of it or nothing; the last few
are kept.
"""

import concurrent.futures
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from codistill_ext.errors import Mistake, PeerTimeoutError
from codistill_ext.exchange.base import Batch
from codistill_ext.exchange.periodic import Flight, PeriodicExchange, done
from codistill_ext.exchange.teachers import Arrival
from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.lead import LOOK_AGAIN_S, Lead
from codistill_ext.exchange.wire.publisher import Publisher
from codistill_ext.exchange.wire.shared_directory import FileStamp, PeerDirectory
from codistill_ext.exchange.wire.weights import WeightPacker
from codistill_ext.groups import model_directory
from codistill_ext.loss import Target

_PATIENCE_S = 10.0  # that training waits for a read or a write that is under way
_LAST_PATIENCE_S = 60.0  # the same at the end of the run
_QUIET_S = 30.0  # that what hangs is not mentioned, at first and then again

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class FileArrival(Arrival):
    """A file as the job's first rank read it; without a row if its architecture was not known yet."""

    path: Path
    file: FileStamp
    finished: bool


class FileExchange(PeriodicExchange):
    """This job publishes its model every ``period`` updates and reads the newest file of each peer.

    No peer is needed for this job to go on: one that is late, or gone, teaches with its last
    weights, as ``max_staleness`` and ``stale_policy`` permit. The job's first rank reads, and its
    other ranks get the weights from it, so they have the same teachers.

    The directory may be slow, or hang, or hold anything. It is touched in two threads alone, one
    that publishes and one that reads; no collective is in them.
    """

    def _prepare(self) -> None:
        self.directory = Path(self.config.dir)
        self._lead = Lead(self.groups, timeout_s=self.config.timeout)
        own = model_directory(self.directory, self.groups.model_index)
        self._publisher = Publisher(own, self.packer, self.description, groups=self.groups, traffic=self.traffic)
        self._others = {
            peer: PeerDirectory(
                model_directory(self.directory, peer),
                complain=functools.partial(self._complain, peer),
                begins=self._worker.begins,
            )
            for peer in self.peers
        }
        self._seen: dict[int, FileStamp] = {}
        self._finished: set[int] = set()
        self._unknown = False  # whether the last weights that were joined wait for their architecture
        self._continued = False
        self._checked = False
        self._mentioned_at = time.monotonic()
        self._ask(self._publisher.directory.make)

    def _complain(self, peer: int, problem: str) -> None:
        logger.warning("%s keeps the last weights it has of model %d: %s", self.groups.name, peer, problem)

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """What the first rank's publishing thread answers. All ranks of the job must call it, before training.

        Raises:
            Mistake: the directory cannot be used. PeerTimeoutError: it does not answer.
        """
        deadline = time.monotonic() + self.config.timeout
        answer: Future[Any] = self._publisher.worker.submit(question) if self.groups.is_lead else done({})
        while not self._lead.is_done(answer):
            self._mention_what_hangs("waits")
            if self._lead.says(time.monotonic() > deadline):
                raise PeerTimeoutError(
                    f"{self.groups.name} cannot begin: {self._lead.says(self._publisher.worker.hangs_in())} "
                    f"(--codistill-timeout {self.config.timeout:g}): see to the file system of {self.directory}, or "
                    f"choose another --codistill-dir"
                )
        error = answer.exception()
        if problem := self._lead.says(None if error is None else str(error)):
            raise Mistake(
                f"--codistill-dir {self.directory} cannot be used ({problem}): choose a directory that all jobs can "
                f"write in"
            ) from error
        result: Answer = self._lead.says(answer.result())
        return result

    def begin(self, batch: Batch, *, update: int, wanted: bool) -> Callable[[], Sequence[Target]]:
        if not self._checked:
            self._refuse_another_run(update)
        return super().begin(batch, update=update, wanted=wanted)

    def _refuse_another_run(self, update: int) -> None:
        """Before the first step: files of another run would teach, and hide this run's."""
        self._checked = True
        own = self._publisher.directory
        found = self._ask(functools.partial(own.newer_than, update))
        if self._continued:  # this run will write them again
            self._ask(functools.partial(own.remove, found))
        elif found:
            raise Mistake(
                f"{own.path} holds weights of another run (up to {found[-1]}): choose another "
                f"--codistill-dir, remove it, or resume that run"
            )

    def after_update(self, update: int) -> None:
        if update % self.config.period == 0:
            self._publisher.publish(self.module, update)
        super().after_update(update)
        if self.config.stale_policy == "wait" and self.config.max_staleness > 0:
            self._wait_for_fresh(update)
        self._mention_what_hangs("goes on training")

    def _has_room(self) -> bool:
        """A read that hangs is not followed by another one."""
        return not self._flights

    def _take_off(self, update: int) -> "Future[dict[int, Arrival]]":
        if not self.groups.is_lead:
            return done({})
        return self._worker.submit(functools.partial(self._read, dict(self._seen), self._layouts()))

    def _layouts(self) -> list[tuple[ModelDescription, WeightPacker]]:
        """Of the tensors in full, which are what files hold, for each architecture that is known."""
        built = [*self.teachers.values(), *self._candidates.values()]
        known = [(self.description, self.packer), *((teacher.description, teacher.packer) for teacher in built)]
        return [(description, packer.whole) for description, packer in known]

    def _read(
        self, seen: dict[int, FileStamp], layouts: list[tuple[ModelDescription, WeightPacker]]
    ) -> dict[int, Arrival]:
        """In the thread of the first rank: the newest file of each peer that it has not seen."""

        def layout_of(description: ModelDescription) -> WeightPacker | None:
            return next((packer for known, packer in layouts if known == description), None)

        arrivals: dict[int, Arrival] = {}
        for peer, directory in self._others.items():
            found = directory.look(seen.get(peer), layout_of)
            if found is None:
                continue
            what = found.contents
            if what.row is not None:
                self.traffic.received["weights"] += what.size
            arrivals[peer] = FileArrival(
                *(what.update, what.taken_at, what.description, what.row),
                path=found.path,
                file=found.stamp,
                finished=what.finished,
            )
        return arrivals

    def _can_finish(self, flight: Flight, *, wait: bool) -> bool:
        """Weights that are due are waited for once, for a short time: the disk may hang for good."""
        if flight.whole:
            return True
        if wait and not flight.late:
            concurrent.futures.wait([flight.arrivals], timeout=self._patience_s)
        flight.late = not super()._can_finish(flight, wait=False)
        return not flight.late

    @property
    def _patience_s(self) -> float:
        return min(_PATIENCE_S, self.config.timeout / 2)  # the other ranks wait for the first one

    def _complete(self, flight: Flight) -> dict[int, Arrival]:
        usable = super()._complete(flight)
        if self._unknown:
            # Architectures are built in this thread, because that draws random numbers; now their files can be read.
            second = Flight(flight.due, self._take_off(flight.due))
            if self._can_finish(second, wait=True):  # else the next exchange will know them
                usable = usable | super()._complete(second)
                flight.arrivals = done(usable)
            self._unknown = False
        return usable

    def _whole(self, peer: int, arrival: Arrival | None) -> Arrival | None:
        """What the first rank has read, on all ranks of the job, if each of them can build its architecture."""
        assert arrival is None or isinstance(arrival, FileArrival)
        row = None if arrival is None else arrival.row
        about = None if arrival is None else dataclasses.replace(arrival, row=None)
        about, is_read = self._lead.says((about, row is not None))
        if about is None:
            return None
        problem = ""
        try:
            # The teacher in use stays until these weights are due.
            packer = self.teacher_for(peer, about.description).packer
        except torch.OutOfMemoryError:
            raise  # of this rank's device: the file is as good as any
        except (ValueError, RuntimeError) as error:
            problem = str(error)
        if not self.groups.agree(not problem, self.device):
            if self.groups.is_lead:
                self._others[peer].refuse(about.file, f"{about.path}: {problem or 'another rank cannot build it'}")
            return None
        if not is_read:
            self._unknown = True
            return None
        self._seen[peer] = about.file
        (self._finished.add if about.finished else self._finished.discard)(peer)  # it may go on after all
        given = packer.row_from(row, functools.partial(self._lead.gives, device=self.device))
        return Arrival(about.stamp, about.taken_at, about.description, given)

    def _wait_for_fresh(self, update: int) -> None:
        """Wait while a peer's weights are too old, unless it has finished. All ranks wait alike."""
        deadline = time.monotonic() + self.config.timeout
        while late := self._late(update):
            # What is on its way already must not land behind something newer.
            flight = self._flights[0] if self._flights else Flight(update, self._take_off(update))
            self._flights = [flight]
            if self._lead.is_done(flight.arrivals):
                self._finish(self._flights.pop(0))
                if self._late(update) != late:
                    continue
                time.sleep(LOOK_AGAIN_S)
            self._mention_what_hangs("waits")
            if self._lead.says(time.monotonic() > deadline):
                hangs = self._lead.says(self._worker.hangs_in())
                raise PeerTimeoutError(
                    f"{self.groups.name} waited at update {update}, but {self.directory} has had no weights of models "
                    f"{', '.join(map(str, late))} for {self.config.timeout:g} s that are at most "
                    f"{self.config.max_staleness} updates old (--codistill-max-staleness): "
                    f"{f'{hangs}; see to its file system' if hangs else 'start these jobs again'}, "
                    f"or use --codistill-stale-policy go_on or drop"
                )

    def _late(self, update: int) -> list[int]:
        return [
            peer
            for peer, teacher in self.teachers.items()
            if teacher.stamp is not None
            and update - teacher.stamp > self.config.max_staleness
            and peer not in self._finished
        ]

    def _mention_what_hangs(self, meanwhile: str) -> None:
        if time.monotonic() - self._mentioned_at < _QUIET_S:
            return
        for worker in self._worker, self._publisher.worker:
            if hangs := worker.hangs_in(_QUIET_S):
                logger.warning("%s %s: %s", self.groups.name, meanwhile, hangs)
                self._mentioned_at = time.monotonic()

    def leave(self, update: int) -> None:
        """Publish the final weights; jobs that go on are told that no more will come."""
        super().leave(update)
        self._publisher.finish(self.module, update)

    def close(self) -> None:
        """Wait for the last publication, but not for good."""
        for worker, patience_s in (self._publisher.worker, _LAST_PATIENCE_S), (self._worker, _PATIENCE_S):
            if not worker.close(min(patience_s, self.config.timeout)):
                hangs = worker.hangs_in() or "not everything is published"
                logger.warning("%s ends, though %s", self.groups.name, hangs)

    def state_dict(self) -> dict[str, Any]:
        """Without reads that hang: what they were about to read is read after a resume."""
        self._publisher.settle(self._patience_s)
        return super().state_dict() | {"seen": dict(self._seen), "finished": sorted(self._finished)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._seen = dict(state["seen"])
        self._finished = set(state["finished"])
        self._continued = True
