"""What a rank holds of a sharded model's parameters, and all buffers, as one row of bytes."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from codistill_ext.exchange.wire.shards import Spec, as_dtensor, is_sharded, local_part, reshard, spec_of
from codistill_ext.exchange.wire.weights import Gives, WeightPacker, fitting


class ShardPacker(WeightPacker):
    """A ``WeightPacker`` whose rows have a rank's own part of each tensor.

    Ranks of models that are sharded alike, with the same place in their model, have the same layout.
    """

    def __init__(self, module: nn.Module, *, half: bool = False) -> None:
        reshard(module)
        self._whole = WeightPacker(module, half=half)
        self._specs: dict[str, Spec | None] = {}
        super().__init__(module, half=half)

    def _append(self, name: str, tensor: Tensor, dtype: torch.dtype, offset: int) -> int:
        self._specs[name] = spec_of(tensor)
        return super()._append(name, local_part(tensor), dtype, offset)

    @property
    def whole(self) -> WeightPacker:
        """The layout of the module as it would be if it were not sharded."""
        return self._whole

    @property
    def layout(self) -> str:
        placements = "; ".join(f"{name} {spec and spec[1]}" for name, spec in self._specs.items())
        return f"{self._whole.layout}; {super().layout}; {placements}"

    def _named_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        reshard(module)
        return {name: local_part(tensor) for name, tensor in super()._named_tensors(module).items()}

    @torch.no_grad()
    def snapshot(self, module: nn.Module, *, keep: bool) -> dict[str, Tensor]:
        """Gathers one tensor after the other, so that a device never holds more than one in full."""
        reshard(module)
        tensors, kept = super()._named_tensors(module), {}
        for name, _, dtype, _ in self.entries:
            tensor = fitting(tensors[name], dtype).to(dtype)
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if keep:
                kept[name] = whole.to("cpu", copy=True)
        return kept

    def row_from(self, row: Tensor | None, gives: Gives) -> Tensor:
        """Goes tensor by tensor, too."""
        mine = torch.zeros(self.total_bytes, dtype=torch.uint8)
        parts = self.views(mine)
        for name, shape, dtype, offset in self._whole.entries:
            size = shape.numel() * dtype.itemsize
            given = gives(None if row is None else row[offset : offset + size], size)
            parts[name].copy_(local_part(given.view(dtype).view(shape), self._specs[name]))
        return mine

    def state(self, row: Tensor) -> dict[str, Tensor]:
        """As DTensors, so that a distributed checkpoint knows whose parts they are."""
        parts = super().state(row)
        return {
            name: parts[name] if (spec := self._specs[name]) is None else as_dtensor(parts[name], shape, spec)
            for name, shape, _, _ in self._whole.entries
        }

    def row_of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return super().row_of({name: local_part(tensor) for name, tensor in tensors.items()})


def packer_of(module: nn.Module, *, half: bool) -> WeightPacker:
    return ShardPacker(module, half=half) if is_sharded(module) else WeightPacker(module, half=half)
