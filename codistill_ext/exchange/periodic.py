"""Ways that exchange weights: when they travel, and when a teacher's are replaced."""

import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codistill_ext.config import CodistillConfig
from codistill_ext.errors import PeerTimeoutError
from codistill_ext.exchange.base import Batch, Exchange
from codistill_ext.exchange.building import TeacherBuilder
from codistill_ext.exchange.teachers import Arrival, Teacher
from codistill_ext.exchange.wire.background import BackgroundWorker
from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.shard_weights import packer_of
from codistill_ext.groups import ModelGroups
from codistill_ext.loss import Target

logger = logging.getLogger(__name__)

_MOST_FLIGHTS = 2  # each holds a copy of the weights in host memory


@dataclass
class Flight:
    """Weights on their way: fetched after one update, used from another one on.

    Attributes:
        whole: they are here, and joined inside the model group.
        late: they have been waited for in vain.
    """

    due: int
    arrivals: "Future[dict[int, Arrival]]"
    whole: bool = False
    late: bool = False


class PeriodicExchange(Exchange):
    """Each peer's teacher is replaced every ``period`` updates, after the same one on all ranks of a model.

    Subclasses say how weights travel. They do so in a thread while training goes on, and are used
    ``period // 50`` (or ``lag``) updates later. What is late then is waited for, or with
    ``stale_policy`` go_on and drop, and with ``max_staleness`` as long as it permits, looked for
    after each further update, which costs one small reduction inside the model group.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: ModelGroups,
        config: CodistillConfig,
        description: ModelDescription,
        builder: TeacherBuilder,
    ) -> None:
        super().__init__(groups, config)
        self.module = module
        self.description = description
        self.packer = packer_of(module, half=config.encoding == "half")
        self.teachers: dict[int, Teacher] = {}
        self._candidates: dict[int, Teacher] = {}  # built to see whether weights fit, not in use
        self.device = next(module.parameters()).device
        self._builder = builder
        self._worker = BackgroundWorker("codistill-weights")
        self._flights: list[Flight] = []
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Set up what this way of travelling needs. All ranks of all models of the job call it."""

    @abstractmethod
    def _take_off(self, update: int) -> "Future[dict[int, Arrival]]":
        """Take a snapshot of what this model gives, and let the thread move weights.

        Called on all ranks of the model after the same update.
        """

    @abstractmethod
    def _whole(self, peer: int, arrival: Arrival | None) -> Arrival | None:
        """All bytes of an arrival, or None if there is nothing to use, alike on all ranks of the model.

        All of them call it for the same peers in the same order.
        """

    def teacher_for(self, peer: int, description: ModelDescription) -> Teacher:
        """A teacher of this architecture: the peer's if it is one, else one that is built now and not yet the peer's.

        Raises:
            ValueError: it cannot be built.
        """
        for built in self.teachers, self._candidates:
            if peer in built and built[peer].description == description:
                return built[peer]
        module = self._builder.build(description, self.device)
        self._candidates[peer] = Teacher(module, description, self.config)
        return self._candidates[peer]

    def teacher_of(self, peer: int, description: ModelDescription) -> Teacher:
        """The peer's teacher; a new one takes its place if the peer is another architecture than before.

        Raises:
            ValueError: it cannot be built.
        """
        self.teachers[peer] = self.teacher_for(peer, description)
        self._candidates.pop(peer, None)
        return self.teachers[peer]

    def begin(self, batch: Batch, *, update: int, wanted: bool) -> Callable[[], Sequence[Target]]:
        targets = [teacher.logits(batch) for _, teacher in self._in_use(update)] if wanted else []
        return lambda: targets

    def _in_use(self, update: int) -> list[tuple[int, Teacher]]:
        """Teachers with weights, by peer, without those that the policy drops."""
        used = []
        for peer in self.peers:
            teacher = self.teachers.get(peer)
            if teacher is None or teacher.stamp is None:
                continue
            if self.config.stale_policy == "drop" and update - teacher.stamp > self.config.max_staleness:
                continue
            used.append((peer, teacher))
        return used

    def after_update(self, update: int) -> None:
        """Every rank of the model must call it: weights are gathered inside the model group."""
        self._land(update)
        if update % self.config.period == 0 and self._has_room():
            self._flights.append(Flight(update + self.config.swap_delay, self._take_off(update)))
            self._land(update)

    def _has_room(self) -> bool:
        """Whether a further exchange may begin, which it must where peers take part. Alike on all ranks."""
        while len(self._flights) >= _MOST_FLIGHTS:
            self._finish(self._flights.pop(0))
        return True

    def _land(self, update: int) -> None:
        while self._flights and self._flights[0].due <= update:
            if not self._can_finish(self._flights[0], wait=self._waits(update)):
                return
            self._finish(self._flights.pop(0))

    def _can_finish(self, flight: Flight, *, wait: bool) -> bool:
        """Whether to go on to ``_complete``, which waits. Alike on all ranks of the model, which call it together."""
        return wait or self.groups.agree(flight.arrivals.done(), self.device)

    def _waits(self, update: int) -> bool:
        """Whether late weights must be waited for now. The same on all ranks of a model."""
        if self.config.stale_policy != "wait":
            return False
        limit = self.config.max_staleness
        stamps = [teacher.stamp for teacher in self.teachers.values() if teacher.stamp is not None]
        return limit == 0 or any(update - stamp > limit for stamp in stamps)

    def _finish(self, flight: Flight) -> None:
        for peer, arrival in self._complete(flight).items():
            self.teacher_of(peer, arrival.description).load(arrival)

    def _complete(self, flight: Flight) -> dict[int, Arrival]:
        """Wait for the weights and join them inside the model group. All ranks of the model call it."""
        if flight.whole:
            return flight.arrivals.result()
        arrivals = self._arrived(flight)
        joined = {peer: self._whole(peer, arrivals.get(peer)) for peer in self.peers}
        usable = {peer: arrival for peer, arrival in joined.items() if arrival is not None}
        flight.arrivals, flight.whole = done(usable), True
        return usable

    def _arrived(self, flight: Flight) -> dict[int, Arrival]:
        """What this rank has got, waited for."""
        try:
            # The thread has the same limit for each of its own steps and knows who is missing.
            return flight.arrivals.result(timeout=3 * self.config.timeout)
        except FutureTimeoutError:
            raise PeerTimeoutError(
                f"{self.groups.name}: the weights that are due after update {flight.due} have not arrived "
                f"(--codistill-timeout {self.config.timeout:g} s)"
            ) from None

    def report(self, update: int) -> dict[str, float]:
        now = time.time()
        values: dict[str, float] = {}
        for peer, teacher in self._in_use(update):
            assert teacher.stamp is not None
            values[f"staleness/{peer}"] = float(update - teacher.stamp)
            values[f"staleness_seconds/{peer}"] = round(now - teacher.taken_at, 3)
        return values

    def leave(self, update: int) -> None:
        if self.groups.is_lead and self.peers and not any(t.stamp is not None for t in self.teachers.values()):
            logger.warning(
                "%s ended after %d updates and never had a teacher: weights cross every %d (--codistill-period) "
                "and are used %d later (--codistill-lag)",
                self.groups.name,
                update,
                self.config.period,
                self.config.swap_delay,
            )

    def close(self) -> None:
        self._worker.close()

    def state_dict(self) -> dict[str, Any]:
        """Includes the teachers, and weights on their way, which it waits for."""
        flights = []
        for flight in self._flights:
            if not self._can_finish(flight, wait=True):
                continue
            arrivals = {peer: self._arrival_state(peer, arrival) for peer, arrival in self._complete(flight).items()}
            flights.append({"due": flight.due, "arrivals": arrivals})
        teachers = {
            peer: self._arrival_state(peer, teacher.arrival())
            for peer, teacher in self.teachers.items()
            if teacher.stamp is not None
        }
        traffic = self.groups.gather_in_model(self.traffic.state_dict())
        return {"traffic": traffic, "teachers": teachers, "flights": flights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._load_traffic(state["traffic"])
        for peer, saved in state["teachers"].items():
            arrival = self._arrival(peer, saved)
            self.teacher_of(peer, arrival.description).load(arrival)
        self._flights = []
        for flight in state["flights"]:
            arrivals = {peer: self._arrival(peer, saved) for peer, saved in flight["arrivals"].items()}
            self._flights.append(Flight(flight["due"], done(arrivals), whole=True))

    def room_for_weights(self, peer: int, description: str) -> dict[str, Tensor]:
        """Tensors like a peer's saved weights, to be filled. All ranks of the model must call it."""
        packer = self.teacher_for(peer, ModelDescription.from_json(description)).packer
        return packer.state(torch.zeros(packer.total_bytes, dtype=torch.uint8))

    def _arrival_state(self, peer: int, arrival: Arrival) -> dict[str, Any]:
        assert arrival.row is not None
        packer = self.teacher_for(peer, arrival.description).packer
        return {
            "stamp": arrival.stamp,
            "taken_at": arrival.taken_at,
            "description": arrival.description.to_json(),
            "weights": packer.state(arrival.row.cpu()),
        }

    def _arrival(self, peer: int, state: dict[str, Any]) -> Arrival:
        description = ModelDescription.from_json(state["description"])
        row = self.teacher_for(peer, description).packer.row_of(state["weights"])
        return Arrival(state["stamp"], state["taken_at"], description, row)


def done(arrivals: dict[int, Arrival]) -> "Future[dict[int, Arrival]]":
    """Weights that have already arrived."""
    future: Future[dict[int, Arrival]] = Future()
    future.set_result(arrivals)
    return future
