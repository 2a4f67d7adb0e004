"""The codistillation term: the paper's equation, and nothing else.

    L(y, f_i(x)) + alpha_k * 1/(n-1) * sum over j != i of D(f_i(x), f_j(x))

Legend for shapes: N rows (samples, or tokens that are not padding), C outputs (classes, or vocabulary), B bins of
outputs where only the top of a teacher's distribution is known (``topk.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from codistill_ext.config import CodistillConfig
from codistill_ext.dense import dense_divergences, of_distributions
from codistill_ext.outputs import Spread
from codistill_ext.rows import LogitRows, as_rows
from codistill_ext.schedules import Curve
from codistill_ext.topk import TopK, binned

Target: TypeAlias = Tensor | LogitRows | TopK
"""What a student learns from: a peer's logits of shape (N, C), or the top of its distribution."""


@dataclass(frozen=True)
class CodistillTerm:
    """What one mini-batch adds to the task loss of one model.

    Attributes:
        loss: alpha_k times the divergence, a scalar to add to the task loss.
        divergence: the divergence alone, detached, in the same reduction.
        alpha: the weight in force.
        peers: how many peers were learned from; with 0 the loss is an exact zero without a graph.
    """

    loss: Tensor
    divergence: Tensor
    alpha: float
    peers: int


def divergence(
    student: Tensor | LogitRows,
    teacher: Target,
    kind: str,
    *,
    temperature: float = 1.0,
    reduction: str = "mean",
    spread: Spread | None = None,
) -> Tensor:
    """D(f_i(x), f_j(x)) in float32; no gradient reaches the teacher.

    The divergences of distributions sum over the C outputs, ``mse`` takes their mean. With a
    temperature T both logits are divided by T and the result is multiplied by T^2, so that the
    gradient keeps its size. Of a teacher's top k both distributions are of k + 1 bins, the last of
    which holds all other outputs. An output that both exclude (-inf) is as if it were not there. A row
    in which the teacher is NaN or +infinite counts as 0: a model that diverges must not take its peers
    along. The gradient of the logits is the only other tensor of their size that is made; it has no
    gradient of its own.

    Args:
        student: logits of shape (..., C), or ``LinearLogits``, of which no tensor of that size is made.
        teacher: logits of the same rows, or the top of the distribution at this temperature.
        kind: ``kl_teacher_student`` = KL(teacher || student), ``kl_student_teacher`` =
            KL(student || teacher), ``cross_entropy`` = -sum p_teacher log p_student, or ``mse``.
        reduction: over the rows, ``mean`` or ``sum``, as in the task loss it is added to.
        spread: where the other outputs are, when both logits are those that this rank has; the result is of all.
            Not with a top k.

    Raises:
        ValueError: the shapes differ, the kind or the reduction is unknown, or ``mse`` of a top k.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is mean or sum, not {reduction!r}")
    (rows_N,) = _divergences(as_rows(student), [teacher], kind, temperature, spread, mean=False)
    return _reduce(rows_N, reduction) * _scale(kind, temperature)


def _divergences(
    student: LogitRows,
    teachers: Sequence[Target],
    kind: str,
    temperature: float,
    spread: Spread | None,
    *,
    mean: bool,
) -> list[Tensor]:
    """Of each row, shape (N,), from each teacher or from their mean prediction, without T^2."""
    tops = [teacher for teacher in teachers if isinstance(teacher, TopK)]
    if not tops:
        targets = [as_rows(teacher) for teacher in teachers if not isinstance(teacher, TopK)]
        return list(
            dense_divergences(student, targets, kind, temperature=temperature, mean=mean, spread=spread).unbind()
        )
    if mean or len(tops) < len(teachers):
        raise ValueError("the mean prediction needs all logits of each teacher, not a top k")
    if kind == "mse":
        raise ValueError("mse compares logits, but of a top k only probabilities are known")
    return [of_distributions(*bins, kind) for bins in binned(student, tops, temperature)]


def _reduce(rows_N: Tensor, reduction: str) -> Tensor:
    # A batch of padding alone is 0, not NaN.
    return rows_N.sum() if reduction == "sum" else rows_N.sum() / max(rows_N.numel(), 1)


def _scale(kind: str, temperature: float) -> float:
    return 1.0 if kind == "mse" else temperature**2


def alpha_at(config: CodistillConfig, schedule: Curve, update: int) -> float:
    """alpha_k of the equation at update k (from 0): the schedule, and 0 in the updates that go without the term."""
    if update < config.burn_in or update % config.distill_every:
        return 0.0
    return schedule(update)


def codistillation_term(
    student: Tensor | LogitRows,
    teachers: Sequence[Target],
    config: CodistillConfig,
    *,
    alpha: float,
    reduction: str = "mean",
    spread: Spread | None = None,
) -> CodistillTerm:
    """alpha_k * 1/(n-1) * sum over peers of D(f_i(x), f_j(x)), or D to the mean prediction.

    Args:
        student: this model's logits, with their graph.
        teachers: the predictions of each peer for the same rows; empty when there is none yet.
        alpha: alpha_k, from the schedule.
        spread: where the other outputs are, when all logits are those that this rank has.

    Raises:
        ValueError: as ``divergence`` raises it.
    """
    student = as_rows(student)
    if not teachers or alpha == 0:
        zero = torch.zeros((), device=student.device)
        return CodistillTerm(loss=zero, divergence=zero, alpha=alpha, peers=0)
    of_rows = _divergences(
        student, teachers, config.divergence, config.temperature, spread, mean=config.target == "mean"
    )
    scale = _scale(config.divergence, config.temperature)
    mean = torch.stack([_reduce(rows_N, reduction) * scale for rows_N in of_rows]).mean()
    return CodistillTerm(loss=alpha * mean, divergence=mean.detach(), alpha=alpha, peers=len(teachers))
