"""The codistillation term: the paper's equation, and nothing else.

    L(y, f_i(x)) + alpha_k * 1/(n-1) * sum over j != i of D(f_i(x), f_j(x))

Legend for shapes: N rows (samples, or tokens that are not padding), C outputs (classes, or vocabulary), B bins of
outputs where only the top of a teacher's distribution is known (``topk.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from codistill_ext.config import CodistillConfig
from codistill_ext.outputs import Spread, log_softmax, sum_outputs
from codistill_ext.schedules import Curve
from codistill_ext.topk import LEAST_LOGP, TopK, binned

Target: TypeAlias = Tensor | TopK
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
    student_NC: Tensor,
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
    which holds all other outputs. A row in which the teacher is NaN or +infinite counts as 0: a
    model that diverges must not take its peers along.

    Args:
        student_NC: logits of shape (N, C).
        teacher: logits of shape (N, C), or the top of the distribution at this temperature.
        kind: ``kl_teacher_student`` = KL(teacher || student), ``kl_student_teacher`` =
            KL(student || teacher), ``cross_entropy`` = -sum p_teacher log p_student, or ``mse``.
        reduction: over the rows, ``mean`` or ``sum``, as in the task loss it is added to.
        spread: where the other outputs are, when both logits are those that this rank has; the result is of all.
            Not with a top k.

    Raises:
        ValueError: the shapes differ, the kind or the reduction is unknown, or ``mse`` of a top k.
    """
    if isinstance(teacher, TopK):
        if kind == "mse":
            raise ValueError("mse compares logits, but of a top k only probabilities are known")
        rows = _of_distributions(*binned(student_NC, teacher, temperature), kind)
        return _reduce(rows, reduction) * temperature**2
    return _of_logits(student_NC, teacher, kind, temperature, reduction, spread)


def _of_logits(
    student_NC: Tensor, teacher_NC: Tensor, kind: str, temperature: float, reduction: str, spread: Spread | None
) -> Tensor:
    if student_NC.shape != teacher_NC.shape:
        raise ValueError(
            f"student and teacher must have equal shapes (rows, outputs), not {tuple(student_NC.shape)} "
            f"and {tuple(teacher_NC.shape)}"
        )
    student_NC, teacher_NC = student_NC.float(), teacher_NC.detach().float()
    if kind == "mse":
        outputs = student_NC.size(-1) if spread is None else spread.outputs
        lost_N = sum_outputs(~teacher_NC.isfinite(), spread) > 0
        differences_NC = student_NC - teacher_NC.masked_fill(lost_N[:, None], 0.0)
        rows_N = sum_outputs(differences_NC.square(), spread) / outputs
        return _reduce(rows_N.masked_fill(lost_N, 0.0), reduction)
    student_logp = log_softmax(student_NC / temperature, spread)
    teacher_logp = log_softmax(teacher_NC / temperature, spread)
    return _reduce(_of_distributions(student_logp, teacher_logp, kind, spread), reduction) * temperature**2


def _of_distributions(student_logp: Tensor, teacher_logp: Tensor, kind: str, spread: Spread | None = None) -> Tensor:
    """Divergence of each row, of log-probabilities of shape (N, C) or (N, B)."""
    lost_N = teacher_logp[:, 0].isnan()  # log_softmax makes all of such a row NaN
    # Before the divergence too: behind it the gradient would be 0 * NaN. And 0 log 0 is 0, not NaN.
    teacher_logp = teacher_logp.nan_to_num_(nan=0.0, neginf=LEAST_LOGP)
    if kind == "kl_teacher_student":
        terms = F.kl_div(student_logp, teacher_logp, reduction="none", log_target=True)
    elif kind == "kl_student_teacher":
        terms = F.kl_div(teacher_logp, student_logp, reduction="none", log_target=True)
    elif kind == "cross_entropy":
        terms = -(teacher_logp.exp() * student_logp)
    else:
        raise ValueError(f"unknown divergence {kind!r}")
    return sum_outputs(terms, spread).masked_fill(lost_N, 0.0)


def _reduce(rows: Tensor, reduction: str) -> Tensor:
    if reduction == "sum":
        return rows.sum()
    if reduction == "mean":
        return rows.sum() / max(rows.numel(), 1)  # a batch of padding alone is 0, not NaN
    raise ValueError(f"reduction is mean or sum, not {reduction!r}")


def mean_prediction(
    teachers: Sequence[Target], kind: str, temperature: float = 1.0, spread: Spread | None = None
) -> Tensor:
    """Logits of the teachers' mean prediction (Anil et al.): of their probabilities, or for mse of their logits.

    Raises:
        ValueError: a teacher is a top k, whose outputs are not those of another.
    """
    teachers_NC = [teacher for teacher in teachers if isinstance(teacher, Tensor)]
    if len(teachers_NC) < len(teachers):
        raise ValueError("the mean prediction needs all logits of each teacher, not a top k")
    if kind == "mse":
        return torch.stack([teacher.float() for teacher in teachers_NC]).mean(dim=0)
    logp = torch.stack([log_softmax(teacher.float() / temperature, spread) for teacher in teachers_NC])
    return (logp.logsumexp(dim=0) - torch.log(logp.new_tensor(len(teachers_NC)))) * temperature


def alpha_at(config: CodistillConfig, schedule: Curve, update: int) -> float:
    """alpha_k of the equation at update k (from 0): the schedule, and 0 in the updates that go without the term."""
    if update < config.burn_in or update % config.distill_every:
        return 0.0
    return schedule(update)


def codistillation_term(
    student_NC: Tensor,
    teachers: Sequence[Target],
    config: CodistillConfig,
    *,
    alpha: float,
    reduction: str = "mean",
    spread: Spread | None = None,
) -> CodistillTerm:
    """alpha_k * 1/(n-1) * sum over peers of D(f_i(x), f_j(x)), or D to the mean prediction.

    Args:
        student_NC: this model's logits, with their graph.
        teachers: the predictions of each peer for the same rows; empty when there is none yet.
        alpha: alpha_k, from the schedule.
        spread: where the other outputs are, when all logits are those that this rank has.
    """
    if not teachers or alpha == 0:
        zero = student_NC.new_zeros((), dtype=torch.float32)
        return CodistillTerm(loss=zero, divergence=zero, alpha=alpha, peers=0)
    targets = teachers
    if config.target == "mean":
        targets = [mean_prediction(teachers, config.divergence, config.temperature, spread)]
    divergences = [
        divergence(
            student_NC,
            target,
            config.divergence,
            temperature=config.temperature,
            reduction=reduction,
            spread=spread,
        )
        for target in targets
    ]
    mean = torch.stack(divergences).mean()
    return CodistillTerm(loss=alpha * mean, divergence=mean.detach(), alpha=alpha, peers=len(teachers))
