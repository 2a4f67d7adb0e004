"""A model's parameters and buffers as one row of bytes, and the teachers they are loaded into."""

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn

from codistill_ext.exchange.base import Batch

_ALIGNMENT = 16  # bytes; the views of every dtype into the row start at multiples of their size


class WeightPacker:
    """Lays a module's state out as bytes: buffers first, then parameters, tied ones once.

    Modules of the same architecture have the same layout.
    """

    def __init__(self, module: nn.Module) -> None:
        buffers = {name: tensor for name, tensor in module.named_buffers() if name in module.state_dict()}
        parameters = dict(module.named_parameters())  # leaves out the second name of a tied parameter
        self._entries: list[tuple[str, torch.Size, torch.dtype, int]] = []
        offset = 0
        for name, tensor in buffers.items():
            offset = self._append(name, tensor, offset)
        self.buffer_bytes = offset
        for name, tensor in parameters.items():
            offset = self._append(name, tensor, offset)
        self.total_bytes = offset

    def _append(self, name: str, tensor: Tensor, offset: int) -> int:
        self._entries.append((name, tensor.shape, tensor.dtype, offset))
        return offset + -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT

    @property
    def layout(self) -> str:
        """Every name, shape and type, for comparison between ranks."""
        return "; ".join(f"{name} {tuple(shape)} {dtype}" for name, shape, dtype, _ in self._entries)

    @torch.no_grad()
    def pack(self, module: nn.Module) -> Tensor:
        """A snapshot: uint8 of shape (total_bytes,) on the module's device."""
        tensors = _named_tensors(module)
        device = next(iter(tensors.values())).device
        row = torch.zeros(self.total_bytes, dtype=torch.uint8, device=device)
        for name, shape, dtype, offset in self._entries:
            _view(row, shape, dtype, offset).copy_(tensors[name])
        return row

    @torch.no_grad()
    def unpack(self, row: Tensor, module: nn.Module) -> None:
        """Copy a snapshot into a module of the same layout, in place."""
        tensors = _named_tensors(module)
        for name, shape, dtype, offset in self._entries:
            tensors[name].copy_(_view(row, shape, dtype, offset))


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_buffers()) | dict(module.named_parameters())


def _view(row: Tensor, shape: torch.Size, dtype: torch.dtype, offset: int) -> Tensor:
    return row[offset : offset + shape.numel() * dtype.itemsize].view(dtype).view(shape)


class Teacher:
    """A frozen copy of a peer: eval mode, no gradients, in no optimizer and in no ``state_dict``.

    Attributes:
        stamp: the peer's update at which its weights were taken, or None before the first.
    """

    def __init__(self, module: nn.Module, precision: str) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.packer = WeightPacker(self.module)
        self.precision = precision
        self.stamp: int | None = None

    def load(self, row: Tensor, stamp: int) -> None:
        self.packer.unpack(row, self.module)
        self.stamp = stamp

    def logits(self, batch: Batch) -> Tensor:
        """Rows of logits for the mini-batch, shape (N, C)."""
        with torch.inference_mode(), self._autocast(batch.student_NC.device):
            rows = batch.rows_of(call(self.module, batch.inputs))
        return rows.clone()  # autograd may not keep a tensor that was made in inference mode

    def _autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The lowest precision that is safe: 16 bits where the device computes faster in them."""
        dtype = _AUTOCAST[self.precision]
        if self.precision == "auto" and device.type == "cuda":
            dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        # "auto" elsewhere, and "float32", also switch off an autocast that the caller is in
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


_AUTOCAST = {"auto": None, "float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def call(module: nn.Module, inputs: Any) -> Any:
    """Call a module with a tensor, a sequence of arguments or a mapping of keyword arguments."""
    if isinstance(inputs, dict):
        return module(**inputs)
    if isinstance(inputs, (tuple, list)):
        return module(*inputs)
    return module(inputs)
