"""The moving average of a model's weights, evaluated beside the model."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def build_ema(module: nn.Module, decay: float | None) -> AveragedModel | None:
    """An average that moves by 1 - ``decay`` at each update, of parameters and of BatchNorm's statistics."""
    if decay is None:
        return None
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
