"""What the first rank of a job has found out, on all of its ranks."""

import concurrent.futures
import datetime
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from codistill_ext.groups import ModelGroups

Value = TypeVar("Value")
LOOK_AGAIN_S = 0.5


class Lead:
    """The first rank of a job that trains one model, and a gloo group in which it tells the others.

    Every rank of the job must construct it at the same place, and call its methods in the same order.
    """

    def __init__(self, groups: ModelGroups, *, timeout_s: float) -> None:
        self._group: Any = None
        self._rows = groups.model_group
        if dist.is_initialized():
            self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_s))

    def says(self, value: Value) -> Value:
        """The value of the first rank; nothing is unpickled but what a rank of this very job has sent."""
        if self._group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=dist.get_global_rank(self._group, 0), group=self._group)
        return box[0]

    def is_done(self, future: "Future[Any]") -> bool:
        """Whether the first rank's is; waits a moment, so that it can be asked again and again."""
        return self.says(future in concurrent.futures.wait([future], timeout=LOOK_AGAIN_S).done)

    def gives(self, row: Tensor | None, total_bytes: int, device: torch.device) -> Tensor:
        """The first rank's row of bytes, on the device if there are further ranks."""
        if self._rows is None:
            assert row is not None, "there is no other rank to have it from"
            return row
        here = torch.empty(total_bytes, dtype=torch.uint8, device=device) if row is None else row.to(device)
        dist.broadcast(here, dist.get_global_rank(self._rows, 0), group=self._rows)
        return here
