"""The layout of weights that cross."""

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from codistill_ext.exchange.wire.weights import WeightPacker
from tests.naive import Net


def test_wrappers_of_layers_leave_no_trace() -> None:
    """So that a model that checkpoints its activations and one that does not teach each other."""
    plain, wrapped = Net(), Net()
    wrapped.norm, wrapped.last = checkpoint_wrapper(wrapped.norm), checkpoint_wrapper(wrapped.last)
    assert WeightPacker(wrapped).layout == WeightPacker(plain).layout
    assert "norm.running_mean (12,) torch.float32" in WeightPacker(wrapped).layout, "buffers are not lost"
    WeightPacker(plain).unpack(WeightPacker(wrapped).pack(wrapped), plain)
    assert torch.equal(plain.last.weight, wrapped.last.weight)
