"""Coordinated, independent and disjoint data, the seeds behind them, and the proof of which one it is."""

from collections.abc import Iterator, Mapping, Sequence, Sized
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from codistill_ext.config import CodistillConfig
from codistill_ext.groups import ModelGroups
from codistill_ext.readback import Readback

_SEED_STEP = 15_485_863  # a prime far above any number of updates: fairseq adds the update to the seed
_SEED_RANGE = 2**31 - 1  # numpy takes 32 bits
_FINGERPRINT_ELEMENTS = 1 << 16
# In the place of a sample's index in a seed.
_ORDER, _PARTS = -1 % 2**32, -2 % 2**32


def model_seed(seed: int, model_index: int) -> int:
    """Seed of a model's initial weights and dropout; model 0 keeps the seed itself."""
    return seed if model_index == 0 else (seed + _SEED_STEP * model_index) % _SEED_RANGE


def data_seed(config: CodistillConfig, groups: ModelGroups, seed: int) -> int:
    """Seed of a model's data order and augmentation: shared when coordinated, else its own."""
    return seed if config.coordinated else model_seed(seed, groups.model_index)


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele et al., 2014): spreads neighbouring numbers over 64 bits."""
    mask = (1 << 64) - 1
    value = (value + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Seed of one sample's augmentation in one epoch, whichever rank or worker loads it."""
    return _mix(_mix(_mix(seed) ^ epoch) ^ index) >> 1  # torch takes 63 bits


def own_part(samples: Sequence[int] | Tensor | int, config: CodistillConfig, groups: ModelGroups, seed: int) -> Tensor:
    """The samples that this model trains on, ascending: all, or with disjoint data its own part of them.

    The parts of the models have no sample in common, are all of the samples together, and their sizes
    differ by one at most. Every n-th sample is of the same model, so samples that come sorted by
    class are shared out class by class; a bare number of samples is shuffled first.

    Args:
        samples: the indices, or how many there are; the same for all models.
        seed: the job's data seed.
    """
    if not config.disjoint:
        return torch.arange(samples) if isinstance(samples, int) else torch.as_tensor(samples).sort().values
    if isinstance(samples, int):
        generator = torch.Generator().manual_seed(sample_seed(seed, 0, _PARTS))
        samples = torch.randperm(samples, generator=generator)
    return torch.as_tensor(samples)[groups.model_index :: config.models].sort().values


class CodistillSampler(Sampler[int]):
    """This rank's share of the samples, in an order that is shared by the models or not.

    Coordinated: the same data-parallel rank of every model gets the same indices. Independent:
    every model has its own permutation. Disjoint: every model has its own part, see ``own_part``.
    The last samples are repeated from the front so that the shares are equal, or dropped with
    ``drop_last``.

    A *pass* is one permutation of the model's samples. An epoch is one pass, or with
    ``epoch_samples`` so many samples of pass after pass: then a model that has 1/k of the data makes
    k passes in an epoch, and as many updates as with all of it.

    Args:
        dataset: the data, or the number of samples.
        seed: the job's data seed, equal on all ranks.
        samples: the indices to train on, if not all; the same for all models.
        epoch_samples: of one model, over all its ranks.

    Raises:
        ValueError: fewer samples than ranks with ``drop_last``, or no samples.
    """

    def __init__(
        self,
        dataset: Sized | int,
        groups: ModelGroups,
        config: CodistillConfig,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        samples: Sequence[int] | Tensor | None = None,
        epoch_samples: int | None = None,
    ) -> None:
        length = dataset if isinstance(dataset, int) else len(dataset)
        self.samples = own_part(length if samples is None else samples, config, groups, seed)
        self.length = len(self.samples) if epoch_samples is None else epoch_samples
        self.shards, self.shard = groups.data_size, groups.data_rank
        self.seed = data_seed(config, groups, seed)
        self.shuffle, self.drop_last = shuffle, drop_last
        self.epoch, self.position = 0, 0
        share = self.length // self.shards if drop_last else -(-self.length // self.shards)
        if share == 0 or len(self.samples) == 0:
            raise ValueError(f"{len(self.samples)} samples cannot be shared among {self.shards} ranks of a model")
        self._share = share

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; call it before each epoch. It begins at the front."""
        self.epoch, self.position = epoch, 0

    def set_position(self, samples: int) -> None:
        """Continue the epoch behind so many of this rank's samples."""
        self.position = samples

    def __len__(self) -> int:
        return self._share - self.position

    def __iter__(self) -> Iterator[int]:
        return (index for index, _ in self.with_passes())

    def with_passes(self) -> Iterator[tuple[int, int]]:
        """Each index with the number of its pass, counted from the beginning of training.

        An index comes once a pass, so both together are a seed of its own for each augmentation.
        """
        order, passes = self._epoch_order()
        total = self._share * self.shards
        own = torch.arange(total)[self.shard :: self.shards][self.position :] % self.length
        return zip(order[own].tolist(), passes[own].tolist(), strict=True)

    def _epoch_order(self) -> tuple[Tensor, Tensor]:
        """The epoch's indices before they are shared out, and the pass of each."""
        size = len(self.samples)
        begin = self.epoch * self.length
        first, last = begin // size, (begin + self.length - 1) // size
        order = torch.cat([self._pass_order(number) for number in range(first, last + 1)])
        passes = torch.arange(first, last + 1).repeat_interleave(size)
        here = slice(begin - first * size, begin - first * size + self.length)
        return order[here], passes[here]

    def _pass_order(self, number: int) -> Tensor:
        if not self.shuffle:
            return self.samples
        generator = torch.Generator().manual_seed(sample_seed(self.seed, number, _ORDER))
        return self.samples[torch.randperm(len(self.samples), generator=generator)]


class Fingerprint:
    """A 63-bit number that differs when the tensors in ``inputs`` do, and is equal on every device.

    Of tensors above 65536 elements an evenly spread sample is read, so the cost is bounded. It is computed when this is
    made; on a device the host reads it later (``Readback``).
    """

    def __init__(self, inputs: Any) -> None:
        tensors = list(_tensors(inputs))
        self._shapes = [tensor.shape for tensor in tensors]
        self._sums = Readback([_weighted_sum(tensor) for tensor in tensors])

    @property
    def is_here(self) -> bool:
        """Whether the host can read it without waiting for a device."""
        return self._sums.is_here

    def read(self) -> int:
        state = 0
        for total, shape in zip(self._sums.read(), self._shapes, strict=True):
            mixed = 0
            for size in shape:
                mixed = _mix(mixed ^ size)
            state = _mix(state ^ ((total ^ mixed) & (2**64 - 1))) >> 1
        return state


def fingerprint(inputs: Any) -> int:
    """The ``Fingerprint`` of a mini-batch, read at once."""
    return Fingerprint(inputs).read()


def same_tensors(first: Any, second: Any) -> bool:
    """Whether both hold the very same tensors, in the same order."""
    pairs = zip_longest(_tensors(first), _tensors(second))
    return all(one is other for one, other in pairs)


def _tensors(inputs: Any) -> Iterator[Tensor]:
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, Mapping):
        for key in sorted(inputs):
            yield from _tensors(inputs[key])
    elif isinstance(inputs, Sequence) and not isinstance(inputs, str):
        for item in inputs:
            yield from _tensors(item)


def _weighted_sum(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    stride = max(1, -(-flat.numel() // _FINGERPRINT_ELEMENTS))
    flat = flat[::stride].contiguous()
    if flat.dtype == torch.bool:
        flat = flat.to(torch.uint8)
    if flat.is_floating_point():  # compare bits, so that no rounding hides a difference
        flat = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    # Integer sums wrap around and do not depend on the order, unlike float sums.
    places = torch.arange(1, flat.numel() + 1, device=flat.device) * 0x9E3779B1 + 1
    return (flat.to(torch.int64) * places).sum()
