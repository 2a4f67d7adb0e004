"""Exchange of weights every T updates over the process group, in the background of training."""

import dataclasses
import functools
import time
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from codistill_ext.errors import CoordinationError
from codistill_ext.exchange.base import Batch
from codistill_ext.exchange.periodic import PeriodicExchange
from codistill_ext.exchange.teachers import Arrival
from codistill_ext.exchange.wire.channel import Channel, Header
from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.shards import Replicas
from codistill_ext.sampling import fingerprint
from codistill_ext.topology import students_of


class CheckpointExchange(PeriodicExchange):
    """Weights cross from host memory over gloo, so nothing of it is queued among the device's collectives.

    Of a model with g ranks each sends and receives 1/g of the bytes to its counterparts. With sharded parameters
    these are its own shards; else the shares are joined inside the model group.
    """

    def _prepare(self) -> None:
        self.replicas = Replicas.find(self.module, self.groups, timeout_s=self.config.timeout)
        self.students = students_of(self.config.peers, self.groups.model_index)
        neighbours = {*self.peers, *self.students}
        self.channel = Channel(self.groups, neighbours, timeout_s=self.config.timeout, traffic=self.traffic)
        self.round = 0
        self._fingerprint = 0
        self._build_teachers()

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

    def targets(self, batch: Batch, *, update: int, wanted: bool) -> list[Any]:
        if self._checks_after(update + 1):
            self._fingerprint = fingerprint(batch.inputs)
        return super().targets(batch, update=update, wanted=wanted)

    def _checks_after(self, update: int) -> bool:
        """Whether the models prove at the exchange after ``update`` that they read the same batch."""
        every = self.config.check_every * self.config.period
        return self.config.coordinated and every > 0 and update % every == 0

    def _take_off(self, update: int) -> "Future[dict[int, Arrival]]":
        row = self.packer.pack(self.module)
        if self.groups.model_group is not None:
            # Running statistics differ between the ranks of a model; its lead's are the ones it saves.
            lead = dist.get_global_rank(self.groups.model_group, 0)
            dist.broadcast(row[: self.packer.buffer_bytes], lead, group=self.groups.model_group)
        header = Header(
            round=self.round,
            update=update,
            time_ms=time.time_ns() // 1_000_000,
            fingerprint=self._fingerprint if self._checks_after(update) else 0,
        )
        self.round += 1
        # The copy waits for the device: the parameters change in the next step.
        share = self._share(row).to("cpu", copy=True)
        return self._worker.submit(functools.partial(self._cross, header, share))

    def _share(self, row: Tensor) -> Tensor:
        """This rank's part of what it holds like others do, the last ranks' padded with zeros."""
        size = self._share_bytes(row.numel())
        share = row[self.replicas.rank * size : (self.replicas.rank + 1) * size]
        return torch.nn.functional.pad(share, (0, size - share.numel()))

    def _share_bytes(self, total: int) -> int:
        return -(-total // self.replicas.size)

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
        incoming = {
            peer: torch.empty(self._share_bytes(self.teachers[peer].packer.total_bytes), dtype=torch.uint8)
            for peer in self.peers
            if peer in others
        }
        self.channel.transfer(
            {peer: [share] for peer in self.students if peer in others},
            {peer: [row] for peer, row in incoming.items()},
            "weights",
        )
        return {
            peer: Arrival(
                stamp=others[peer].update,
                taken_at=others[peer].time_ms / 1000,
                description=self.teachers[peer].description,
                row=row,
            )
            for peer, row in incoming.items()
        }

    def _whole(self, peer: int, arrival: Arrival | None) -> Arrival | None:
        if arrival is None or arrival.row is None or self.replicas.group is None:
            return arrival
        share = arrival.row.to(self.device)
        row = torch.empty(share.numel() * self.replicas.size, dtype=torch.uint8, device=self.device)
        dist.all_gather_into_tensor(row, share, group=self.replicas.group)
        total = self.teachers[peer].packer.total_bytes
        return dataclasses.replace(arrival, row=row[:total])

    def leave(self, update: int) -> None:
        super().leave(update)
        header = Header(leaving=1, round=self.round, update=update)
        self._worker.submit(lambda: self.channel.leave(header))  # behind a flight that is still on its way

    def close(self) -> None:
        self._worker.submit(self.channel.close)
        super().close()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"round": self.round}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.round = state["round"]


def _first_difference(first: str, second: str) -> str:
    pairs = zip((first + "; nothing").split("; "), (second + "; nothing").split("; "), strict=False)
    return next(f"{a} and {b}" for a, b in pairs if a != b)
