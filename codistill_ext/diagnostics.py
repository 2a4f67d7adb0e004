"""How far apart models are: in what they predict and in their weights."""

from collections.abc import Mapping

from torch import Tensor


def agreement(first: Tensor, second: Tensor, mask: Tensor | None = None) -> float:
    """Share of the positions at which two models' most likely outputs are the same.

    Args:
        first: logits or probabilities of shape (..., C).
        second: the other model's, of the same shape.
        mask: of shape (...), true where a position counts.
    """
    same = first.argmax(dim=-1) == second.argmax(dim=-1)
    if mask is not None:
        same = same[mask]
    return same.double().mean().item()


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Euclidean distance of the floating-point tensors of two state dicts with the same keys."""
    if first.keys() != second.keys():
        raise ValueError(f"other keys in one of the two states: {sorted(first.keys() ^ second.keys())[:5]}")
    total = 0.0
    for name, tensor in first.items():
        if tensor.is_floating_point():
            total += (tensor.double() - second[name].double()).square().sum().item()
    return float(total**0.5)
