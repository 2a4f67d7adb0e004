"""BatchNorm whose statistics are of a model's whole mini-batch, over its own ranks and never over another model's."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from codistill_ext.groups import ModelGroups


class _SharedGroupBatchNorm(nn.SyncBatchNorm):
    """Copies (teachers, averages) share the process group, which cannot be copied; in eval mode they do not use it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedGroupBatchNorm:
        memo[id(self.process_group)] = self.process_group
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied


def check_sync_bn(groups: ModelGroups, device: torch.device) -> None:
    """Refuse where it cannot work.

    Raises:
        ValueError: says what to change.
    """
    if device.type != "cuda":
        raise ValueError(f"--sync-bn needs GPUs, PyTorch has no SyncBatchNorm for {device.type}: leave it out")
    if groups.model_group is None:
        raise ValueError("--sync-bn has no effect with one process a model: leave it out")


def with_sync_bn(module: nn.Module, groups: ModelGroups) -> nn.Module:
    """The module with each BatchNorm layer replaced; names and values of its state stay."""
    module = nn.SyncBatchNorm.convert_sync_batchnorm(module, groups.model_group)
    for layer in module.modules():
        if type(layer) is nn.SyncBatchNorm:
            layer.__class__ = _SharedGroupBatchNorm
    return module
