"""The optimizer of Goyal et al."""

from __future__ import annotations

import torch
from torch import nn

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


# As torchvision's reference trainer names them; the momentum of sgd is the heavy ball's.
OPTIMIZERS = ("sgd_nesterov", "sgd")


def build_optimizer(model: nn.Module, *, opt: str, momentum: float) -> torch.optim.SGD:
    """One of ``OPTIMIZERS``. Learning rate and weight decay are set at every update (``hyperparameters.py``);
    normalisation layers have a weight decay of their own."""
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        owned = [p for p in module.parameters(recurse=False) if p.requires_grad]
        (norms if isinstance(module, _NORMS) else others).extend(owned)
    groups = [{"params": others, "decay": "weight_decay"}, {"params": norms, "decay": "norm_weight_decay"}]
    nesterov = opt == "sgd_nesterov"
    return torch.optim.SGD([g for g in groups if g["params"]], lr=0.0, momentum=momentum, nesterov=nesterov)
