"""Exchange of weights every T updates over the process group, in the background of training."""

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from codistill_ext.errors import CoordinationError
from codistill_ext.exchange.base import Batch
from codistill_ext.exchange.periodic import Flight, PeriodicExchange
from codistill_ext.exchange.teachers import Arrival
from codistill_ext.exchange.wire.announcements import Announcement
from codistill_ext.exchange.wire.channel import Channel, Header
from codistill_ext.exchange.wire.counter import TrafficCounter
from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.pace import Pace
from codistill_ext.exchange.wire.shards import Replicas
from codistill_ext.exchange.wire.shares import HostBuffer, Inbox, Outbox
from codistill_ext.loss import Target
from codistill_ext.topology import students_of


@dataclass(frozen=True)
class ShareArrival(Arrival):
    """This rank's share of a peer's weights, in memory that is to be given back."""

    share: HostBuffer | None = None


class CheckpointExchange(PeriodicExchange):
    """Weights cross from host memory over gloo, so nothing of it is queued among the device's collectives.

    Of a model with g ranks each sends and receives 1/g of the bytes to its counterparts. With sharded parameters
    these are its own shards; else the shares are joined inside the model group. Memory for shares is made at the first
    exchange and used again; nothing of the size of a model is made at an exchange. A share travels in pieces, spread
    over the updates until it is due, and all at once as soon as this rank waits for it. Its bytes are counted when it
    is used, so that what has been counted after an update does not depend on the thread's luck.
    """

    def _prepare(self) -> None:
        self.replicas = Replicas.find(self.module, self.groups, timeout_s=self.config.timeout)
        self.students = students_of(self.config.peers, self.groups.model_index)
        neighbours = {*self.peers, *self.students}
        self.channel = Channel(self.groups, neighbours, timeout_s=self.config.timeout, traffic=TrafficCounter())
        self.round = 0
        self._paces: dict[Future[dict[int, Arrival]], Pace] = {}
        self._flown: deque[TrafficCounter] = deque()  # of flights that have arrived and are not in use yet
        self._updated_at, self._update_s = time.monotonic(), 0.0
        self._announced: Announcement | None = None  # of the last mini-batch that is compared
        self._outbox = Outbox(self.packer, self.replicas, self.groups.model_group, self.device)
        self._build_teachers()
        self._inboxes = {
            peer: Inbox(teacher.packer, self.replicas, self.device) for peer, teacher in self.teachers.items()
        }

    def _build_teachers(self) -> None:
        """Build every peer's architecture from its own description, and compare the layouts with the counterpart's."""
        everyone = self.groups.gather((self.description.to_json(), self.packer.layout))
        for peer in self.peers:
            text, layout = everyone[self.groups.counterpart(peer)]
            teacher = self.teacher_of(peer, ModelDescription.from_json(text))
            if teacher.packer.layout != layout:
                raise ValueError(
                    f"{self.groups.name} built model {peer} as described ({text}), but its parameters and buffers, "
                    f"or how they are sharded, differ: {_first_difference(teacher.packer.layout, layout)}"
                )

    def foresee(self, inputs: Any, *, update: int) -> None:
        if self._checks_after(update + 1):
            self._announced = Announcement(inputs, checked=True)

    def begin(self, batch: Batch, *, update: int, wanted: bool) -> Callable[[], Sequence[Target]]:
        if self._checks_after(update + 1) and not (self._announced and self._announced.is_of(batch.inputs)):
            self._announced = Announcement(batch.inputs, checked=True)
        return super().begin(batch, update=update, wanted=wanted)

    def after_update(self, update: int) -> None:
        now = time.monotonic()
        self._updated_at, self._update_s = now, now - self._updated_at
        for pace in self._paces.values():
            pace.advance(self._update_s)
        super().after_update(update)

    def _checks_after(self, update: int) -> bool:
        """Whether the models prove at the exchange after ``update`` that they read the same batch."""
        every = self.config.check_every * self.config.period
        return self.config.coordinated and every > 0 and update % every == 0

    def _take_off(self, update: int) -> "Future[dict[int, Arrival]]":
        header = Header(round=self.round, update=update, time_ms=time.time_ns() // 1_000_000)
        announced = self._announced if self._checks_after(update) else None
        self.round += 1
        share = self._outbox.copy(self.module)
        pace = Pace(self.config.swap_delay, self._update_s)
        flight = self._worker.submit(functools.partial(self._cross, header, announced, share, pace))
        self._paces = {other: its for other, its in self._paces.items() if not other.done()} | {flight: pace}
        return flight

    def _cross(
        self, header: Header, announced: Announcement | None, share: HostBuffer, pace: Pace
    ) -> dict[int, Arrival]:
        """In the thread: meet the counterparts and move this rank's share."""
        header = header if announced is None else announced.complete(header)
        others = self.channel.meet(header)
        for peer, other in others.items():
            if header.fingerprint != other.fingerprint:
                raise CoordinationError(
                    f"{self.groups.name} and {self.groups.describe(peer)} read different mini-batches at update "
                    f"{header.update}, though the data is declared coordinated: give both the same data seed, batch "
                    f"size and order, or use --codistill-data independent"
                )
        incoming = {peer: self._inboxes[peer].buffers.take() for peer in self.peers if peer in others}
        outgoing = share.wait().tensor_split(pace.pieces)
        places = {peer: buffer.wait().tensor_split(pace.pieces) for peer, buffer in incoming.items()}
        for piece in range(pace.pieces):
            pace.wait(piece)
            self.channel.transfer(
                {peer: _filled(outgoing[piece]) for peer in self.students if peer in others},
                {peer: _filled(place[piece]) for peer, place in places.items()},
                "weights",
            )
        self._outbox.buffers.give(share)
        self._flown.append(self.channel.traffic)
        self.channel.traffic = TrafficCounter()
        return {
            peer: ShareArrival(
                stamp=others[peer].update,
                taken_at=others[peer].time_ms / 1000,
                description=self.teachers[peer].description,
                share=buffer,
            )
            for peer, buffer in incoming.items()
        }

    def _can_finish(self, flight: Flight, *, wait: bool) -> bool:
        self._hurry(flight)
        return super()._can_finish(flight, wait=wait)

    def _arrived(self, flight: Flight) -> dict[int, Arrival]:
        self._hurry(flight)
        return super()._arrived(flight)

    def _hurry(self, flight: Flight) -> None:
        if pace := self._paces.get(flight.arrivals):
            pace.hurry()

    def _finish(self, flight: Flight) -> None:
        """Straight into the teachers, unless the weights have been joined for the state of a run."""
        if flight.whole:
            super()._finish(flight)
        else:
            self._load(self._arrived(flight))
        self.traffic.add(self._flown.popleft())

    def _load(self, arrivals: dict[int, Arrival]) -> None:
        for peer in self.peers:
            arrival = arrivals.get(peer)
            if isinstance(arrival, ShareArrival) and arrival.share is not None:
                teacher = self.teachers[peer]
                self._inboxes[peer].load(arrival.share, teacher.module)
                teacher.stamp, teacher.taken_at = arrival.stamp, arrival.taken_at

    def _whole(self, peer: int, arrival: Arrival | None) -> Arrival | None:
        if not isinstance(arrival, ShareArrival) or arrival.share is None:
            return arrival
        row = self._inboxes[peer].whole(arrival.share)
        return Arrival(arrival.stamp, arrival.taken_at, arrival.description, row)

    def leave(self, update: int) -> None:
        super().leave(update)
        self._hurry_all()
        header = Header(leaving=1, round=self.round, update=update)
        self._worker.submit(lambda: self.channel.leave(header))  # behind a flight that is still on its way

    def close(self) -> None:
        self._hurry_all()
        self._worker.submit(self.channel.close)
        super().close()
        for last in (*self._flown, self.channel.traffic):
            self.traffic.add(last)

    def _hurry_all(self) -> None:
        for pace in self._paces.values():
            pace.hurry()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()  # waits for flights
        flown = self.groups.gather_in_model([counter.state_dict() for counter in self._flown])
        return state | {"round": self.round, "flown": flown}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.round = state["round"]
        self._flown = deque(TrafficCounter() for _ in state["flights"])
        if len(state["flown"]) == self.groups.ranks_a_model:
            for counter, counted in zip(self._flown, state["flown"][self.groups.rank_in_model], strict=True):
                counter.load_state_dict(counted)


def _filled(piece: Tensor) -> list[Tensor]:
    """A piece, if there is anything in it: of a few bytes most are empty."""
    return [piece] if piece.numel() else []


def _first_difference(first: str, second: str) -> str:
    pairs = zip((first + "; nothing").split("; "), (second + "; nothing").split("; "), strict=False)
    return next(f"{a} and {b}" for a, b in pairs if a != b)
