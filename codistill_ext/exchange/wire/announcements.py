"""A mini-batch as it is known before its forward pass, and the header that tells the counterparts of it."""

import dataclasses
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from codistill_ext.exchange.wire.background import BackgroundWorker
from codistill_ext.exchange.wire.channel import Channel, Header, Round
from codistill_ext.readback import Readback
from codistill_ext.sampling import Fingerprint, same_tensors


class Positions:
    """Which positions of a mask count, found without a wait for the device.

    Args:
        mask: true where a position counts, of any shape.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._places = None if mask.is_cuda else mask.nonzero(as_tuple=True)
        if self._places is None:
            flat = mask.reshape(-1)
            self._count = Readback([flat.sum()])
            self._order = _trues_first(flat)  # torch.nonzero would wait for the device to know how many there are
        else:
            self._count = Readback([torch.tensor(len(self._places[0]))])

    @property
    def is_here(self) -> bool:
        return self._count.is_here

    @property
    def count(self) -> int:
        return self._count.read()[0]

    @property
    def places(self) -> tuple[Tensor, ...]:
        """An index for each dimension of the mask, as ``mask.nonzero(as_tuple=True)``."""
        if self._places is None:
            self._places = _unravelled(self._order[: self.count], self.mask.shape)
        return self._places

    def rows_of(self, tensor: Tensor) -> Tensor:
        """``tensor[mask]``, which has the mask's dimensions and further ones; a teacher's may be on another device."""
        return tensor[tuple(place.to(tensor.device) for place in self.places)]


def _trues_first(flat: Tensor) -> Tensor:
    """Indices of a mask of one dimension: those where it is true in their order, then the others."""
    return torch.sort(flat.logical_not().to(torch.uint8), stable=True).indices


def _unravelled(index: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    places: list[Tensor] = []
    for size in reversed(shape):
        places.insert(0, index % size)
        index = index.div(size, rounding_mode="floor")
    return tuple(places)


class Announcement:
    """What is known of a mini-batch: its inputs' fingerprint and how many rows there will be.

    Args:
        inputs: of the module.
        checked: whether the models compare their inputs in this round.
        rows: how many, if that is known; else what ``positions`` says, or it is not known.
    """

    def __init__(
        self, inputs: Any, *, checked: bool, rows: int | None = None, positions: Positions | None = None
    ) -> None:
        self._inputs = inputs
        self._fingerprint = Fingerprint(inputs) if checked else None
        self._rows, self._positions = rows, positions

    def is_of(self, inputs: Any) -> bool:
        return same_tensors(self._inputs, inputs)

    @property
    def is_here(self) -> bool:
        """Whether the host knows all of it without waiting for a device."""
        positions, checks = self._positions, self._fingerprint
        return (positions is None or positions.is_here) and (checks is None or checks.is_here)

    @property
    def knows_rows(self) -> bool:
        return self._rows is not None or self._positions is not None

    @property
    def rows(self) -> int | None:
        return self._positions.count if self._positions is not None else self._rows

    @property
    def fingerprint(self) -> int:
        """0 if it is not compared."""
        return 0 if self._fingerprint is None else self._fingerprint.read()

    def complete(self, header: Header) -> Header:
        """The header of this mini-batch, of which the rest is known."""
        return dataclasses.replace(header, rows=self.rows or 0, fingerprint=self.fingerprint)


class Poster:
    """Sends headers before the forward pass: at once, or in a thread as soon as a device has computed them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._worker: BackgroundWorker | None = None

    def post(self, announcement: Announcement, header: Header) -> "Future[Round]":
        """``header`` is completed from the announcement."""
        if announcement.is_here:
            posted: Future[Round] = Future()
            posted.set_result(self._channel.post(announcement.complete(header)))
            return posted
        if self._worker is None:
            self._worker = BackgroundWorker("codistill-headers")
        return self._worker.submit(lambda: self._channel.post(announcement.complete(header)))

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
