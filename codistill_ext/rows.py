"""Logits as rows, worked on in blocks: a copy or a gradient in float32 is of one block, never of all.

Legend for shapes: N rows (samples, or tokens that are not padding), n rows of a block, C outputs (classes or
vocabulary), H hidden units.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 22  # logits that are worked on at a time: 16 MiB in float32
_CACHED_ELEMENTS = 1 << 18  # for each thread on CPU, where memory is what is waited for: 1 MiB stays in a core's cache

Blocks: TypeAlias = Iterator[slice]
Rebuild: TypeAlias = "Callable[..., LogitRows]"
Gradients: TypeAlias = list[Tensor | None]


class LogitRows(ABC):
    """N rows of C logits.

    Attributes:
        tensors: what they are made of; gradients reach those that want one.
        rebuild: makes the same rows out of such tensors. It holds none itself, so that autograd alone decides how
            long they live.
        shape: (N, C).
        device: that blocks are on.
    """

    tensors: tuple[Tensor, ...]
    rebuild: Rebuild
    shape: tuple[int, int]
    device: torch.device

    @property
    def block_elements(self) -> int:
        """How many logits a block has at most, of several rows."""
        return _BLOCK_ELEMENTS

    @abstractmethod
    def block(self, rows: slice) -> Tensor:
        """These rows in their own precision, shape (n, C); not to be written to."""

    @abstractmethod
    def begin_gradients(self) -> Gradients:
        """For each of the tensors room for its gradient, or None."""

    @abstractmethod
    def add_gradients(self, gradients: Gradients, rows: slice, grad_nC: Tensor) -> None:
        """Add what the gradient of these rows, in float32, is for each of the tensors."""


def blocks(logits: LogitRows, *others: LogitRows, outputs: int | None = None) -> Blocks:
    """Rows that are small enough together to be copied without thought.

    Args:
        others: of as many rows, worked on together with the logits.
        outputs: that alone decide the size, where it must be the same on several ranks.
    """
    count, own_outputs = logits.shape
    if outputs is None:
        size = max(rows.block_elements for rows in (logits, *others)) // max(1, own_outputs)
    else:
        size = _BLOCK_ELEMENTS // max(1, outputs)
    size = max(1, size)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


class DenseLogits(LogitRows):
    """Logits that are there already; of those only where a mask is true, which needs no copy of them.

    Args:
        logits: shape (..., C).
        mask: shape (...), true where a row counts.
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None) -> None:
        if mask is None and not logits.is_contiguous():
            mask = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
        self._set(logits, *(() if mask is None else mask.nonzero(as_tuple=True)))

    @classmethod
    def at(cls, logits: Tensor, places_N: tuple[Tensor, ...]) -> "DenseLogits":
        """The rows at these places, an index for each dimension but the last."""
        return cls._of(logits, *places_N)

    @classmethod
    def _of(cls, logits: Tensor, *places_N: Tensor) -> "DenseLogits":
        rows = cls.__new__(cls)
        rows._set(logits, *places_N)
        return rows

    def _set(self, logits: Tensor, *places_N: Tensor) -> None:
        self.tensors, self.rebuild = (logits, *places_N), DenseLogits._of
        self._logits, self._places_N = logits, places_N
        self.device = logits.device
        count = len(places_N[0]) if places_N else logits.shape[:-1].numel()
        self.shape = (count, logits.size(-1))

    @property
    def block_elements(self) -> int:
        if self.device.type != "cpu":
            return _BLOCK_ELEMENTS
        return min(_BLOCK_ELEMENTS, _CACHED_ELEMENTS * torch.get_num_threads())

    def block(self, rows: slice) -> Tensor:
        return self._at(self._logits, rows)

    def _at(self, tensor: Tensor, rows: slice) -> Tensor:
        if self._places_N:
            return tensor[tuple(place_N[rows] for place_N in self._places_N)]
        return tensor.view(-1, tensor.size(-1))[rows]

    def whole(self) -> Tensor:
        """All rows, shape (N, C): a copy only where a mask is."""
        return self._at(self._logits, slice(None))

    def begin_gradients(self) -> Gradients:
        # A mask leaves out what gets no gradient.
        room = torch.zeros_like(self._logits) if self._places_N else torch.empty_like(self._logits)
        return [room, *(None for _ in self._places_N)]

    def add_gradients(self, gradients: Gradients, rows: slice, grad_nC: Tensor) -> None:
        room = gradients[0]
        assert room is not None
        if self._places_N:
            room[tuple(place_N[rows] for place_N in self._places_N)] = grad_nC.to(room.dtype)
        else:
            room.view(-1, room.size(-1))[rows] = grad_nC


class LinearLogits(LogitRows):
    """Logits that are a linear layer's of hidden states, and are never there all at once.

    Each block is computed when it is needed, and again for the gradient. Teachers may be on another device.

    Args:
        hidden_NH: hidden states, shape (N, H).
        weight_CH: the output matrix, as in ``nn.Linear``.
        bias_C: its bias.
        dtype: what the matrix products are computed in; autocast's where that is on, else the matrix's own.

    Raises:
        ValueError: the shapes do not fit.
    """

    def __init__(
        self, hidden_NH: Tensor, weight_CH: Tensor, bias_C: Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> None:
        if hidden_NH.ndim != 2 or weight_CH.ndim != 2 or hidden_NH.size(1) != weight_CH.size(1):
            raise ValueError(
                f"hidden states of shape (rows, units) and a matrix of shape (outputs, units) were expected, not "
                f"{tuple(hidden_NH.shape)} and {tuple(weight_CH.shape)}"
            )
        kind = weight_CH.device.type
        if dtype is None:
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_CH.dtype
        self._dtype = dtype
        self.tensors = (hidden_NH, weight_CH) if bias_C is None else (hidden_NH, weight_CH, bias_C)
        self.rebuild = functools.partial(LinearLogits, dtype=dtype)
        self.shape = (len(hidden_NH), len(weight_CH))
        self.device = hidden_NH.device
        self._hidden_NH = hidden_NH.detach()
        self._weight_CH = weight_CH.detach().to(dtype)
        self._bias_C = None if bias_C is None else bias_C.detach().to(dtype)

    def block(self, rows: slice) -> Tensor:
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return F.linear(self._hidden_NH[rows].to(self._dtype), self._weight_CH, self._bias_C)

    def begin_gradients(self) -> Gradients:
        """Of the matrix in float32, because many blocks add to it."""
        hidden_NH, *head = self.tensors
        return [
            torch.empty_like(hidden_NH) if hidden_NH.requires_grad else None,
            *(torch.zeros_like(t, dtype=torch.float32) if t.requires_grad else None for t in head),
        ]

    def add_gradients(self, gradients: Gradients, rows: slice, grad_nC: Tensor) -> None:
        of_hidden, of_weight, *of_bias = gradients
        products = grad_nC.to(self._dtype)
        if of_hidden is not None:
            of_hidden[rows] = products @ self._weight_CH
        if of_weight is not None:
            hidden_nH = self._hidden_NH[rows].to(self._dtype)
            if self._dtype == torch.float32:
                of_weight.addmm_(products.T, hidden_nH)
            else:
                of_weight += products.T @ hidden_nH
        for of_bias_C in of_bias:
            if of_bias_C is not None:
                of_bias_C += grad_nC.sum(dim=0)


def scaled(logits_nC: Tensor, temperature: float) -> Tensor:
    """Logits in float32, divided by the temperature; they may be the given tensor itself."""
    logits_nC = logits_nC.float()
    return logits_nC if temperature == 1 else logits_nC / temperature


def as_rows(logits: Tensor | LogitRows) -> LogitRows:
    """Logits of shape (..., C) as rows."""
    return logits if isinstance(logits, LogitRows) else DenseLogits(logits)
