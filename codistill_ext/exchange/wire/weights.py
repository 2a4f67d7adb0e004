"""A model's parameters and buffers as one row of bytes."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

_ALIGNMENT = 16  # bytes; the views of every dtype into the row start at multiples of their size
_FLOAT16_MAX = torch.finfo(torch.float16).max
# What torch.compile and activation checkpointing put into the names of what they wrap.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")

Gives = Callable[[Tensor | None, int], Tensor]
"""Gives every rank the bytes that one of them has, given how many they are."""


class WeightPacker:
    """Lays a module's state out as bytes: buffers first, then parameters, tied ones once.

    Modules of the same architecture have the same layout.

    Args:
        half: parameters cross in 16 bits; buffers always as they are, because a small running
            variance would become zero.
    """

    def __init__(self, module: nn.Module, *, half: bool = False) -> None:
        state = {_plain_name(name) for name in module.state_dict()}
        buffers = {name: tensor for name, tensor in _named(module.named_buffers()) if name in state}
        self.entries: list[tuple[str, torch.Size, torch.dtype, int]] = []
        offset = 0
        for name, tensor in buffers.items():
            offset = self._append(name, tensor, tensor.dtype, offset)
        self.buffer_bytes = offset
        for name, tensor in _named(module.named_parameters()):  # leaves out the second name of a tied parameter
            dtype = torch.float16 if half and tensor.dtype in (torch.float32, torch.float64) else tensor.dtype
            offset = self._append(name, tensor, dtype, offset)
        self.total_bytes = offset

    def _append(self, name: str, tensor: Tensor, dtype: torch.dtype, offset: int) -> int:
        self.entries.append((name, tensor.shape, dtype, offset))
        return offset + -(-tensor.numel() * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT

    @property
    def layout(self) -> str:
        """Every name, shape and type, for comparison between ranks."""
        return "; ".join(f"{name} {tuple(shape)} {dtype}" for name, shape, dtype, _ in self.entries)

    def _named_tensors(self, module: nn.Module) -> dict[str, Tensor]:
        return dict(_named(module.named_buffers())) | dict(_named(module.named_parameters()))

    @torch.no_grad()
    def pack(self, module: nn.Module) -> Tensor:
        """A snapshot: uint8 of shape (total_bytes,) on the module's device."""
        tensors = self._named_tensors(module)
        device = next(iter(tensors.values())).device
        row = torch.zeros(self.total_bytes, dtype=torch.uint8, device=device)
        self.pack_part(module, row, 0)
        return row

    @torch.no_grad()
    def pack_part(self, module: nn.Module, part: Tensor, start: int) -> None:
        """Write bytes from ``start`` on of a snapshot into ``part``; nothing else of their size is made.

        Args:
            part: uint8, on the module's device. What lies between tensors and behind the last is left as it is.
            start: a multiple of 16 (``share_bytes``).
        """
        for view, tensor in self._overlaps(part, start, self._named_tensors(module)):
            view.copy_(tensor)
            if view.dtype == torch.float16 and tensor.dtype != torch.float16:
                view.clamp_(-_FLOAT16_MAX, _FLOAT16_MAX)  # what does not fit has become infinite

    @torch.no_grad()
    def unpack_part(self, part: Tensor, start: int, module: nn.Module) -> None:
        """Copy bytes from ``start`` on of a snapshot into a module of the same layout, in place.

        From pinned memory to a device it does not wait for the copy.
        """
        for view, tensor in self._overlaps(part, start, self._named_tensors(module)):
            tensor.copy_(view, non_blocking=tensor.is_cuda)

    def _overlaps(self, part: Tensor, start: int, tensors: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Views into a part of a row, and those into the tensors that have the same elements."""
        stop = start + part.numel()
        for name, shape, dtype, offset in self.entries:
            size = dtype.itemsize
            first, last = max(start, offset), min(stop, offset + shape.numel() * size)
            if first >= last:
                continue
            elements = part[first - start : last - start].view(dtype)
            for piece in _pieces(tensors[name].detach(), (first - offset) // size, (last - offset) // size):
                yield elements[: piece.numel()].view(piece.shape), piece
                elements = elements[piece.numel() :]

    @torch.no_grad()
    def unpack(self, row: Tensor, module: nn.Module) -> None:
        """Copy a snapshot into a module of the same layout, in place."""
        self.unpack_part(row, 0, module)

    @property
    def whole(self) -> "WeightPacker":
        """The layout of the tensors in full, where a rank holds parts of them."""
        return self

    def snapshot(self, module: nn.Module, *, keep: bool) -> dict[str, Tensor]:
        """All tensors in full, by name, on the CPU; nothing on a rank that does not ``keep`` them.

        Every rank of the model must call it.
        """
        return self.views(self.pack(module).to("cpu")) if keep else {}

    def row_from(self, row: Tensor | None, gives: Gives) -> Tensor:
        """What a rank needs of a row of ``whole`` that one rank has; every rank of the model must call it."""
        return gives(row, self.total_bytes)

    def views(self, row: Tensor) -> dict[str, Tensor]:
        """The tensors in a row of bytes, by name, without a copy."""
        return {
            name: row[offset : offset + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for name, shape, dtype, offset in self.entries
        }

    def state(self, row: Tensor) -> dict[str, Tensor]:
        """The tensors of a row as they are saved; ``row_of`` is the way back."""
        # Of their own: torch.save refuses views of several types into the same bytes.
        return {name: view.clone() for name, view in self.views(row).items()}

    def row_of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The row of bytes of tensors from elsewhere.

        Raises:
            ValueError: they are not those of this layout; names the first that differs.
        """
        self.check_fits({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()})
        row = torch.zeros(self.total_bytes, dtype=torch.uint8)
        for name, view in self.views(row).items():
            view.copy_(tensors[name])
        return row

    def check_fits(self, found: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        """Compare the shapes and types of tensors from elsewhere.

        Raises:
            ValueError: a name is missing or unknown, or a shape or a type differs; names the first.
        """
        expected = {name: (tuple(shape), dtype) for name, shape, dtype, _ in self.entries}
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ValueError(f"{name:.200} should be {expected.get(name)}, but is {found.get(name)!s:.200}")


def fitting(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor within what ``dtype`` can hold."""
    if dtype == torch.float16 and tensor.dtype != torch.float16:
        return tensor.clamp(-_FLOAT16_MAX, _FLOAT16_MAX)
    return tensor


def share_bytes(total: int, ranks: int) -> int:
    """Bytes of a row that each of so many ranks carries, in whole elements of every type; the last carry less."""
    return -(-total // (ranks * _ALIGNMENT)) * _ALIGNMENT


def _pieces(tensor: Tensor, start: int, stop: int) -> Iterator[Tensor]:
    """Views that have the elements ``start`` to ``stop`` in their order, also where its memory has another one."""
    if start >= stop:
        return
    if tensor.is_contiguous():
        yield tensor.view(-1)[start:stop]
        return
    inner = tensor[0].numel()
    first, last = -(-start // inner), stop // inner  # rows that are in it whole
    if first > last:
        yield from _pieces(tensor[last], start - last * inner, stop - last * inner)
        return
    if start % inner:
        yield from _pieces(tensor[first - 1], start - (first - 1) * inner, inner)
    if first < last:
        yield tensor[first:last]
    if stop % inner:
        yield from _pieces(tensor[last], 0, stop - last * inner)


def _named(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    return ((_plain_name(name), tensor) for name, tensor in tensors)


def _plain_name(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
