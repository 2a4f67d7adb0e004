"""Hyper-parameters as functions of progress."""

import math
from collections.abc import Sequence

from codistill_ext.config import CodistillConfig


def alpha_at(config: CodistillConfig, update: int) -> float:
    """Weight of the codistillation term, alpha_k of the paper's equation, at update k (from 0)."""
    if update < config.burn_in or update % config.distill_every:
        return 0.0
    return config.alpha


def _warm_up(target: float, progress: float, warmup: float, start: float) -> float | None:
    if progress >= warmup:
        return None
    return start + (target - start) * progress / warmup


def warmup_steps_lr(
    progress: float,
    *,
    base: float,
    milestones: Sequence[float],
    gamma: float = 0.1,
    warmup: float = 0.0,
    warmup_start: float = 0.0,
) -> float:
    """Linear warm-up, then a factor ``gamma`` at each milestone (Goyal et al., section 2.2).

    Args:
        progress, milestones, warmup: in the same unit, for example epochs (fractions included).
        base: learning rate after the warm-up; ``warmup_start``: at its beginning.
    """
    warming = _warm_up(base, progress, warmup, warmup_start)
    if warming is not None:
        return warming
    return base * gamma ** sum(progress >= milestone for milestone in milestones)


def warmup_cosine_lr(
    progress: float,
    *,
    base: float,
    total: float,
    warmup: float = 0.0,
    warmup_start: float = 0.0,
    minimum: float = 0.0,
) -> float:
    """Linear warm-up, then half a cosine from ``base`` down to ``minimum`` at ``total``."""
    warming = _warm_up(base, progress, warmup, warmup_start)
    if warming is not None:
        return warming
    done = min(1.0, (progress - warmup) / max(total - warmup, 1e-12))
    return minimum + (base - minimum) * 0.5 * (1.0 + math.cos(math.pi * done))
