"""The output layer of a model that returns hidden states, so that its logits need never be whole."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from codistill_ext.rows import LinearLogits


def head_logits(
    module: nn.Module, head: str, hidden_NH: Tensor, *, dtype: torch.dtype | None = None, copies: bool = False
) -> LinearLogits:
    """What a module's linear output layer makes of hidden states, with their gradients.

    Args:
        head: the layer's name in the module.
        dtype: what autocast would compute it in, if it is on.
        copies: keep a copy of the layer, where its weights will be gone before the logits are.

    Raises:
        ValueError: there is no such layer, it is not linear, it does not fit, or this rank has a part of it alone.
    """
    try:
        layer = module.get_submodule(head)
    except AttributeError:
        raise ValueError(f"{type(module).__name__} has no layer {head!r} to make logits of hidden states") from None
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise ValueError(f"{head} is to make logits of hidden states: it must be nn.Linear, not {type(layer).__name__}")
    if isinstance(weight, DTensor):
        raise ValueError(
            f"{head} is sharded when its logits are needed: leave it in the outermost unit of fully_shard, with "
            f"reshard_after_forward False there, or give codistill logits and not hidden states"
        )
    if copies:
        weight, bias = weight.detach().clone(), None if bias is None else bias.detach().clone()
    hidden_NH = hidden_NH.to(weight.device, non_blocking=True)
    return LinearLogits(hidden_NH, weight, bias, dtype=dtype or weight.dtype)
