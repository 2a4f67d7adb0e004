"""Exchange of weights every T updates over the process group, in the background of training."""

import concurrent.futures
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from codistill_ext.config import CodistillConfig
from codistill_ext.errors import CoordinationError, PeerTimeoutError
from codistill_ext.exchange.background import BackgroundWorker
from codistill_ext.exchange.base import Batch, Exchange
from codistill_ext.exchange.channel import Channel, Header
from codistill_ext.exchange.weights import Teacher, WeightPacker
from codistill_ext.groups import ModelGroups
from codistill_ext.sampling import fingerprint
from codistill_ext.topology import students_of


@dataclass(frozen=True)
class Arrival:
    """Weights of one peer: this rank's share of the bytes, or after ``_complete`` all of them."""

    stamp: int
    row: Tensor
    whole: bool


@dataclass
class Flight:
    """Weights on their way: begun after one update, used from another one on."""

    due: int
    arrivals: "Future[dict[int, Arrival]]"


class CheckpointExchange(Exchange):
    """Teachers are copies of the peers that are replaced every ``period`` updates.

    Of a model with g ranks each sends and receives 1/g of the bytes to its counterparts; the rest
    moves inside the model group. Weights cross from host memory over gloo in a thread, so training
    goes on, and nothing of it is queued among the device's collectives. All ranks of a model begin
    to use them after the same update, ``period // 50`` (or ``lag``) updates later, and wait there
    if they are late.
    """

    def __init__(self, module: nn.Module, groups: ModelGroups, config: CodistillConfig) -> None:
        super().__init__(groups, config)
        self.module = module
        self.packer = WeightPacker(module)
        groups.check_equal("the parameters and buffers of the models", {"layout": self.packer.layout})
        self.teachers = {peer: Teacher(module, config.teacher_precision) for peer in self.peers}
        self.students = students_of(config.peers, groups.model_index)
        self.channel = Channel(groups, {*self.peers, *self.students}, timeout_s=config.timeout, traffic=self.traffic)
        self.round = 0
        self._worker = BackgroundWorker("codistill-weights")
        self._flight: Flight | None = None
        self._fingerprint = 0

    def targets(self, batch: Batch, *, update: int, wanted: bool) -> list[Tensor]:
        if self._checks_after(update + 1):
            self._fingerprint = fingerprint(batch.inputs)
        if not wanted:
            return []
        return [teacher.logits(batch) for teacher in self.teachers.values() if teacher.stamp is not None]

    def _checks_after(self, update: int) -> bool:
        """Whether the models prove at the exchange after ``update`` that they read the same batch."""
        every = self.config.check_every * self.config.period
        return self.config.coordinated and every > 0 and update % every == 0

    def after_update(self, update: int) -> None:
        """Every rank of the model must call it: weights are gathered inside the model group."""
        self._land_if_due(update)
        if update % self.config.period == 0:
            self._take_off(update)
            self._land_if_due(update)

    def _take_off(self, update: int) -> None:
        row = self.packer.pack(self.module)
        if self.groups.model_group is not None:
            # Running statistics differ between the ranks of a model; its lead's are the ones it saves.
            lead = dist.get_global_rank(self.groups.model_group, 0)
            dist.broadcast(row[: self.packer.buffer_bytes], lead, group=self.groups.model_group)
        header = Header(
            round=self.round, update=update, fingerprint=self._fingerprint if self._checks_after(update) else 0
        )
        self.round += 1
        share = _to_host(self._share(row))
        self._flight = Flight(
            due=update + self.config.swap_delay, arrivals=self._worker.submit(self._cross, header, share)
        )

    def _share(self, row: Tensor) -> Tensor:
        """This rank's 1/g of the bytes, the last ranks' padded with zeros."""
        size = -(-row.numel() // self.groups.data_size)
        share = row[self.groups.data_rank * size : (self.groups.data_rank + 1) * size]
        return torch.nn.functional.pad(share, (0, size - share.numel()))

    def _cross(self, header: Header, share: Tensor) -> dict[int, Arrival]:
        """In the thread: meet the counterparts and move this rank's share."""
        others = self.channel.meet(header)
        for peer, other in others.items():
            if header.fingerprint != other.fingerprint:
                raise CoordinationError(
                    f"{self.groups.name} and {self.groups.describe(peer)} read different mini-batches at update "
                    f"{header.update}, though the data is declared coordinated: give both the same data seed, batch "
                    f"size and order, or use --codistill-data independent"
                )
        incoming = {peer: torch.empty_like(share) for peer in self.peers if peer in others}
        self.channel.transfer(
            {peer: [share] for peer in self.students if peer in others},
            {peer: [row] for peer, row in incoming.items()},
            "weights",
        )
        whole = self.groups.data_size == 1
        return {peer: Arrival(others[peer].update, row, whole) for peer, row in incoming.items()}

    def _land_if_due(self, update: int) -> None:
        if self._flight is None or self._flight.due != update:
            return
        for peer, arrival in self._complete(self._flight).items():
            self.teachers[peer].load(arrival.row, arrival.stamp)
        self._flight = None

    def _complete(self, flight: Flight) -> dict[int, Arrival]:
        """Wait for the shares and join them inside the model group. All ranks of the model call it."""
        try:
            arrivals = flight.arrivals.result(timeout=2 * self.config.timeout)
        except concurrent.futures.TimeoutError:
            raise PeerTimeoutError(
                f"{self.groups.name}: the weights of models {', '.join(map(str, self.channel.active))} have not "
                f"arrived by update {flight.due} (--codistill-timeout {self.config.timeout:g} s)"
            ) from None
        return {peer: self._whole(arrival) for peer, arrival in arrivals.items()}

    def _whole(self, arrival: Arrival) -> Arrival:
        if arrival.whole:
            return arrival
        device = next(self.module.parameters()).device
        share = arrival.row.to(device, non_blocking=True)
        row = torch.empty(share.numel() * self.groups.data_size, dtype=torch.uint8, device=device)
        dist.all_gather_into_tensor(row, share, group=self.groups.model_group)
        return Arrival(arrival.stamp, row[: self.packer.total_bytes], whole=True)

    def staleness(self, update: int) -> dict[int, int]:
        return {peer: update - teacher.stamp for peer, teacher in self.teachers.items() if teacher.stamp is not None}

    def leave(self, update: int) -> None:
        header = Header(leaving=1, round=self.round, update=update)
        self._worker.submit(self.channel.leave, header)  # behind a flight that is still on its way

    def close(self) -> None:
        self._worker.submit(self.channel.close)
        self._worker.close()

    def state_dict(self) -> dict[str, Any]:
        """Includes the teachers, and weights on their way, which it waits for."""
        flight = None
        if self._flight is not None:
            arrivals = self._complete(self._flight)
            self._flight.arrivals = _done(arrivals)
            flight = {
                "due": self._flight.due,
                "arrivals": {peer: {"stamp": a.stamp, "row": a.row.cpu()} for peer, a in arrivals.items()},
            }
        return {
            "round": self.round,
            "traffic": self.traffic.state_dict(),
            "teachers": {
                peer: {"stamp": teacher.stamp, "row": teacher.packer.pack(teacher.module).cpu()}
                for peer, teacher in self.teachers.items()
                if teacher.stamp is not None
            },
            "flight": flight,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.round = state["round"]
        self.traffic.load_state_dict(state["traffic"])
        for peer, saved in state["teachers"].items():
            self.teachers[peer].load(saved["row"], saved["stamp"])
        flight = state["flight"]
        if flight is not None:
            arrivals = {
                peer: Arrival(saved["stamp"], saved["row"], whole=True) for peer, saved in flight["arrivals"].items()
            }
            self._flight = Flight(due=flight["due"], arrivals=_done(arrivals))


def _done(arrivals: dict[int, Arrival]) -> "Future[dict[int, Arrival]]":
    future: Future[dict[int, Arrival]] = Future()
    future.set_result(arrivals)
    return future


def _to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory. It waits for the device: the parameters change in the next step."""
    return tensor.to("cpu", copy=True)
