"""Which training pictures a run uses: all, or a part of each class (--train-fraction)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from codistill_ext.sampling import CodistillSampler, sample_seed

_SUBSET = -3 % 2**32  # in the place of a sample's index in a seed


def training_samples(labels: Sequence[int], part: Fraction, seed: int) -> Tensor:
    """Indices of the pictures to train on, class by class, in each class in an order of the seed.

    Every class gives its first ``part``, rounded, but one picture at least: what a smaller part has is
    in every larger one.
    """
    labels_N = torch.as_tensor(labels)
    chosen = []
    for label in labels_N.unique().tolist():
        members = (labels_N == label).nonzero().flatten()
        generator = torch.Generator().manual_seed(sample_seed(seed, label, _SUBSET))
        count = max(1, int(len(members) * part + Fraction(1, 2)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen)


def describe_samples(sampler: CodistillSampler, total: int, model_index: int) -> str:
    """A line for the console: what a model trains on, and how often it sees it in an epoch."""
    count = len(sampler.samples)
    return (
        f"model {model_index}  trains on {count} of {total} pictures, "
        f"{sampler.length / count:.4g} passes over them an epoch"
    )
