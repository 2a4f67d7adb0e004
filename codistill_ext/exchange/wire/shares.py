"""A rank's share of a model on its way out and in: memory that is made once, and copies for which nobody waits.

Only 16-bit conversion aside, a share leaves the device as one copy, on a stream of its own: training goes on with the
next kernels, and the thread that sends waits for the event behind the copy.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from codistill_ext.exchange.wire.shards import Replicas
from codistill_ext.exchange.wire.weights import WeightPacker, share_bytes

_JOINED_BYTES = 1 << 25  # of a teacher's weights that are joined at a time


@dataclass
class HostBuffer:
    """Host memory for one share.

    Attributes:
        ready: an event on a device behind which the memory may be read, or used again; None if that is now.
    """

    row: Tensor
    ready: "torch.cuda.Event | None" = None

    def wait(self) -> Tensor:
        """The memory, once the device has done with it. Waits, so it is for the thread of the exchange."""
        if self.ready is not None:
            self.ready.synchronize()
            self.ready = None
        return self.row


class HostBuffers:
    """Host memory of one size, pinned for a CUDA device: one buffer at once, more when all are in use."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size, self._pinned = size, device.type == "cuda"
        self._free: deque[HostBuffer] = deque([self._make()])

    def _make(self) -> HostBuffer:
        # Written to, so that the system gives the memory now and not page by page in a training step.
        return HostBuffer(torch.empty(self._size, dtype=torch.uint8, pin_memory=self._pinned).zero_())

    def take(self) -> HostBuffer:
        """A buffer whose bytes are zero until they are written."""
        try:
            return self._free.popleft()
        except IndexError:
            return self._make()

    def give(self, buffer: HostBuffer) -> None:
        self._free.append(buffer)


class Outbox:
    """Copies of this rank's share of its model.

    Args:
        replicas: the ranks that hold the same bytes, of which each carries a share.
        model_group: of all ranks of the model, or None for one.
    """

    def __init__(
        self,
        packer: WeightPacker,
        replicas: Replicas,
        model_group: "dist.ProcessGroup | None",
        device: torch.device,
    ) -> None:
        self._packer, self._model_group = packer, model_group
        size = share_bytes(packer.total_bytes, replicas.size)
        self._start = replicas.rank * size
        self._size = max(0, min(size, packer.total_bytes - self._start))
        self.buffers = HostBuffers(size, device)
        self._statistics = torch.zeros(packer.buffer_bytes, dtype=torch.uint8, device=device)
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # The copy on the device itself is short; from then on the parameters may change.
        self._staging = None if self._stream is None else torch.zeros(size, dtype=torch.uint8, device=device)
        self._sent: torch.cuda.Event | None = None

    def copy(self, module: nn.Module) -> HostBuffer:
        """A copy of the share as it is now. Every rank of the model must call it; give it back when it has been sent.

        Running statistics differ between the ranks of a model; its first rank's are the ones it saves.
        """
        buffer = self.buffers.take()
        here = self._here(buffer)
        self._packer.pack_part(module, here, self._start)
        if self._packer.buffer_bytes:
            self._share_statistics(module, here)
        if self._staging is not None:
            self._leave_device(buffer)
        return buffer

    def _here(self, buffer: HostBuffer) -> Tensor:
        """Where the share is packed."""
        if self._staging is None:
            return buffer.row[: self._size]
        if self._sent is not None:
            torch.cuda.current_stream(self._staging.device).wait_event(self._sent)
        return self._staging[: self._size]

    def _share_statistics(self, module: nn.Module, here: Tensor) -> None:
        self._packer.pack_part(module, self._statistics, 0)
        if self._model_group is not None:
            dist.broadcast(self._statistics, dist.get_global_rank(self._model_group, 0), group=self._model_group)
        mine = self._statistics[self._start : self._start + self._size]
        here[: len(mine)].copy_(mine)

    def _leave_device(self, buffer: HostBuffer) -> None:
        assert self._staging is not None and self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(self._staging.device))
        with torch.cuda.stream(self._stream):
            buffer.row.copy_(self._staging, non_blocking=True)
            self._sent = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._sent.record()
        buffer.ready = self._sent


class Inbox:
    """Shares of a peer's model, and how the ranks of this one join them into a teacher.

    Args:
        packer: of the teacher.
        replicas: the ranks that get the same bytes.
        device: of the collectives.
    """

    def __init__(self, packer: WeightPacker, replicas: Replicas, device: torch.device) -> None:
        self._packer, self._replicas, self._device = packer, replicas, device
        self._size = share_bytes(packer.total_bytes, replicas.size)
        self.buffers = HostBuffers(self._size, device)
        self._joined: Tensor | None = None

    def load(self, buffer: HostBuffer, module: nn.Module) -> None:
        """Put a peer's weights into a teacher. All ranks of the replicas must call it; gives the buffer back."""
        if self._replicas.group is None:
            self._packer.unpack_part(buffer.row[: self._packer.total_bytes], 0, module)
        else:
            self._join(buffer.row, module)
        self._give_back(buffer)

    def whole(self, buffer: HostBuffer) -> Tensor:
        """A peer's weights as one row in host memory. All ranks of the replicas must call it; gives the buffer back."""
        if self._replicas.group is None:
            row = buffer.row.clone()
        else:
            row = torch.empty(self._size * self._replicas.size, dtype=torch.uint8)
            for start, joined in self._parts(buffer.row):
                for rank, part in enumerate(joined):
                    row[rank * self._size + start :][: part.numel()].copy_(part)
        self._give_back(buffer)
        return row[: self._packer.total_bytes]

    def _join(self, share: Tensor, module: nn.Module) -> None:
        for start, joined in self._parts(share):
            for rank, part in enumerate(joined):
                place = rank * self._size + start
                self._packer.unpack_part(part[: max(0, self._packer.total_bytes - place)], place, module)

    def _parts(self, share: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The shares of all ranks, a piece at a time: where it begins in its share, and the ranks' pieces as rows."""
        ranks = self._replicas.size
        step = share_bytes(min(_JOINED_BYTES, self._size * ranks), ranks)
        if self._joined is None:
            self._joined = torch.empty(step * ranks, dtype=torch.uint8, device=self._device)
        for start in range(0, self._size, step):
            mine = share[start : start + step].to(self._device, non_blocking=True)
            joined = self._joined[: mine.numel() * ranks]
            dist.all_gather_into_tensor(joined, mine, group=self._replicas.group)
            yield start, joined.view(ranks, -1)

    def _give_back(self, buffer: HostBuffer) -> None:
        if self._device.type == "cuda":
            buffer.ready = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            buffer.ready.record(torch.cuda.current_stream(self._device))
        self.buffers.give(buffer)
