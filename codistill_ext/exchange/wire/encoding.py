"""How predictions cross: what of the logits is sent, and what the receiver learns from.

Legend for shapes: N rows (samples or tokens), C outputs (classes or vocabulary), K outputs that are sent.

An encoding is the same on both sides whatever the precision a model computes in, so models in
different precisions understand each other, and the sizes follow from (N, C) and the options alone.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from codistill_ext.config import CodistillConfig
from codistill_ext.loss import Target
from codistill_ext.rows import DenseLogits, LogitRows, blocks
from codistill_ext.topk import TopK, topk_of


class Encoding(ABC):
    """Turns logits into contiguous tensors to send, and received ones into a target."""

    @abstractmethod
    def encode(self, logits: LogitRows) -> list[Tensor]:
        """What to send, detached and contiguous, on the device of the logits."""

    @abstractmethod
    def empty(self, rows: int, outputs: int, device: torch.device) -> list[Tensor]:
        """Tensors to receive what ``encode`` makes of logits of shape (rows, outputs)."""

    @abstractmethod
    def decode(self, payload: list[Tensor], outputs: int) -> Target:
        """The target in a received payload."""

    def payload_bytes(self, rows: int, outputs: int) -> int:
        """Bytes that cross from one model to another for so many rows."""
        return sum(tensor.nbytes for tensor in self.empty(rows, outputs, torch.device("meta")))


class DenseEncoding(Encoding):
    """All logits, in one floating-point type.

    float32 loses nothing: the divergences are computed in it. float16 costs half the bytes; it
    also holds float16 logits exactly, and bfloat16 ones between 2^-14 and 65504.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def encode(self, logits: LogitRows) -> list[Tensor]:
        if isinstance(logits, DenseLogits) and self.dtype == torch.float32:
            return [logits.whole().detach().float().contiguous()]
        rows, outputs = logits.shape
        (payload_NC,) = self.empty(rows, outputs, logits.device)
        limit = torch.finfo(self.dtype).max
        for block in blocks(logits):
            # What does not fit has become infinite by then.
            payload_NC[block] = logits.block(block).detach()
            if self.dtype != torch.float32:
                payload_NC[block].clamp_(-limit, limit)
        return [payload_NC]

    def empty(self, rows: int, outputs: int, device: torch.device) -> list[Tensor]:
        return [torch.empty(rows, outputs, dtype=self.dtype, device=device)]

    def decode(self, payload: list[Tensor], outputs: int) -> Target:
        return payload[0]


class TopKEncoding(Encoding):
    """The k largest log-probabilities in float16, and their indices in the smallest type that holds them.

    What rounding does: a probability p is off by at most p |log p| / 2048. The mass of the rest is
    what the sent ones lack to 1, so it is off by at most the sum of that: an entropy / 2048.

    Args:
        k: outputs to send; all of them when there are fewer.
        temperature: of the loss; the probabilities are those of logits / temperature.
    """

    def __init__(self, k: int, temperature: float) -> None:
        self.k = k
        self.temperature = temperature

    def encode(self, logits: LogitRows) -> list[Tensor]:
        top = topk_of(logits, self.k, self.temperature)
        dtype, offset = _index_type(logits.shape[1])
        packed = torch.contiguous_format  # also where K is 1 and any stride would do
        values = top.logp_NK.to(torch.float16, memory_format=packed).clamp_(min=torch.finfo(torch.float16).min)
        # As bytes: NCCL does not know 16-bit integers.
        return [values, (top.index_NK - offset).to(dtype, memory_format=packed).view(torch.uint8)]

    def empty(self, rows: int, outputs: int, device: torch.device) -> list[Tensor]:
        k = min(self.k, outputs)
        dtype, _ = _index_type(outputs)
        values = torch.empty(rows, k, dtype=torch.float16, device=device)
        return [values, torch.empty(rows, k * dtype.itemsize, dtype=torch.uint8, device=device)]

    def decode(self, payload: list[Tensor], outputs: int) -> Target:
        values, index = payload
        dtype, offset = _index_type(outputs)
        return TopK(logp_NK=values.float(), index_NK=index.view(dtype).long() + offset)


def _index_type(outputs: int) -> tuple[torch.dtype, int]:
    """The smallest integer type for indices below ``outputs``, and what is subtracted from them in it."""
    if outputs <= 1 << 8:
        return torch.uint8, 0
    if outputs <= 1 << 16:
        return torch.int16, 1 << 15  # torch computes little with unsigned 16-bit numbers
    return torch.int32, 0


def build_encoding(config: CodistillConfig) -> Encoding:
    """The encoding of predictions that the options ask for."""
    if config.encoding == "topk":
        return TopKEncoding(config.topk, config.temperature)
    return DenseEncoding(torch.float16 if config.encoding == "half" else torch.float32)
