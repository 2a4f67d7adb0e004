"""Sums that become means over the samples of all ranks of a model."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from codistill_ext.groups import ModelGroups


class Averages:
    """Means of a fixed set of values. They are added up on the device, so nothing waits for it."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self._sums = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)

    def add(self, samples: int, *means: Tensor) -> None:
        """Add the means over ``samples`` samples, in the order of the names."""
        weighted = torch.stack([mean.detach().double() * samples for mean in means])
        self._sums[:-1] += weighted
        self._sums[-1] += samples

    def total(self, groups: ModelGroups) -> Tensor:
        """The sums over the model's ranks. All of them must call it."""
        total = self._sums.clone()
        if groups.model_group is not None:
            dist.all_reduce(total, group=groups.model_group)
        return total

    def means(self, groups: ModelGroups) -> dict[str, float]:
        """The means over the model's ranks. All of them must call it."""
        total = self.total(groups)
        return dict(zip(self.names, (total[:-1] / total[-1]).tolist(), strict=True))

    def restart(self, total: Tensor | None = None) -> None:
        """Begin again, at zero or at a ``total`` that one rank of the model brings along."""
        self._sums.zero_()
        if total is not None:
            self._sums += total.to(self._sums.device)
