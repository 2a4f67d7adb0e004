"""What a teacher is: a frozen copy of a peer, and how it computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from codistill_ext.config import CodistillConfig
from codistill_ext.exchange.base import Batch
from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.shard_weights import packer_of
from codistill_ext.exchange.wire.shards import is_sharded, reshard
from codistill_ext.head import head_logits
from codistill_ext.rows import LogitRows

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Arrival:
    """Weights of one peer as they came, and what they are.

    Attributes:
        row: bytes in the layout of ``description``, of what this rank holds; before ``_whole`` as the subclass has
            them.
    """

    stamp: int
    taken_at: float
    description: ModelDescription
    row: Tensor | None = None


class Teacher:
    """A frozen copy of a peer: eval mode, no gradients, in no optimizer and in no ``state_dict``.

    Attributes:
        stamp: the peer's update at which its weights were taken, or None before the first.
        taken_at: when that was, in seconds since the epoch by the peer's clock.
    """

    def __init__(self, module: nn.Module, description: ModelDescription, config: CodistillConfig) -> None:
        self._sharded = is_sharded(module)
        if config.teacher_device == "cpu":
            if self._sharded:
                raise ValueError(
                    "--codistill-teacher-device cpu has no effect on a sharded teacher, which is where its mesh is: "
                    "leave it out"
                )
            module = module.to("cpu")
        self.module = module.eval().requires_grad_(False)
        self.description = description
        self.packer = packer_of(self.module, half=config.encoding == "half")
        self.stamp: int | None = None
        self.taken_at = 0.0
        self._forward: Callable[..., Any] = torch.compile(self.module) if config.teacher_compile else self.module
        parameter = next(self.module.parameters())
        self._device = parameter.device
        self._autocast_dtype = _AUTOCAST.get(config.teacher_precision)
        # A model of 16-bit parameters has its precision already, a sharded one its own MixedPrecisionPolicy.
        decides = config.teacher_precision == "auto" and parameter.dtype.itemsize > 2
        self._follows_student = decides and (self._sharded or self._device.type != "cuda")
        if decides and not self._follows_student:
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            self._autocast_dtype = torch.bfloat16 if native else torch.float16

    def load(self, arrival: Arrival) -> None:
        assert arrival.row is not None
        self.packer.unpack(arrival.row, self.module)
        self.stamp, self.taken_at = arrival.stamp, arrival.taken_at

    def arrival(self) -> Arrival:
        """What was loaded, for the state of a run."""
        assert self.stamp is not None
        return Arrival(self.stamp, self.taken_at, self.description, self.packer.pack(self.module))

    def logits(self, batch: Batch) -> Tensor | LogitRows:
        """Logits for the mini-batch, N rows of C."""
        # FSDP2 changes its parameters in place while it computes, which some releases cannot in inference mode.
        without_gradients = torch.no_grad() if self._sharded else torch.inference_mode()
        dtype = self._dtype(batch.autocast)
        # None also switches off an autocast that the caller is in.
        with without_gradients, torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
            output = _call(self._forward, _to_device(batch.inputs, self._device))
            # Of hidden states the blocks of logits cross to the student's device.
            rows = batch.rows_of(output if batch.head else _to_device(output, batch.student.device))
        rows = rows.clone()  # autograd may not keep a tensor that was made in inference mode
        target: Tensor | LogitRows = rows
        if batch.head:
            target = head_logits(self.module, batch.head, rows, dtype=dtype, copies=self._sharded)
        if self._sharded:
            reshard(self.module)
        return target

    def _dtype(self, students: torch.dtype | None) -> torch.dtype | None:
        """What autocast computes in, the lowest that is safe: 16 bits on a GPU, elsewhere if the student does."""
        if not self._follows_student:
            return self._autocast_dtype
        return torch.bfloat16 if students is torch.float16 else students  # on a CPU float16 overflows and is slow


def _call(function: Callable[..., Any], inputs: Any) -> Any:
    """Call with a tensor, a sequence of arguments or a mapping of keyword arguments."""
    if isinstance(inputs, dict):
        return function(**inputs)
    if isinstance(inputs, (tuple, list)):
        return function(*inputs)
    return function(inputs)


def _to_device(value: Any, device: torch.device) -> Any:
    """The tensors in nested values, moved where they are not there yet."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to_device(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_to_device(item, device) for item in value)
    return value
