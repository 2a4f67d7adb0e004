"""Integers that a device computes and the host needs later, without a wait for what is queued behind them."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Readback:
    """Whole numbers on their way to the host.

    On CUDA they are copied behind what has been queued so far; to read them waits until the device has come there, not
    for the forward pass that was queued afterwards. Elsewhere they are read at once.

    Args:
        numbers: tensors of one element; those on a device all on the same one.
    """

    def __init__(self, numbers: Sequence[Tensor]) -> None:
        self._host: dict[int, int] = {
            place: int(number.item()) for place, number in enumerate(numbers) if not number.is_cuda
        }
        self._places = [place for place, number in enumerate(numbers) if number.is_cuda]
        self._copied: torch.cuda.Event | None = None
        if self._places:
            stacked = torch.stack([numbers[place].reshape(()).to(torch.int64) for place in self._places])
            self._pinned = torch.empty(len(self._places), dtype=torch.int64, pin_memory=True)
            self._pinned.copy_(stacked, non_blocking=True)
            # A thread may wait for it through most of a step, and is not to spin on a core meanwhile.
            self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(stacked.device))

    @property
    def is_here(self) -> bool:
        """Whether nothing has to be waited for."""
        return self._copied is None or bool(self._copied.query())  # type: ignore[no-untyped-call]

    def read(self) -> list[int]:
        """The numbers in their order."""
        if self._copied is not None:
            self._copied.synchronize()
            self._host |= dict(zip(self._places, self._pinned.tolist(), strict=True))
            self._copied = None
        return [self._host[place] for place in sorted(self._host)]
