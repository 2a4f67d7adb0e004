"""The codistillation term: the paper's equation, and nothing else.

    L(y, f_i(x)) + alpha_k * 1/(n-1) * sum over j != i of D(f_i(x), f_j(x))

Legend for shapes: N rows (samples, or tokens that are not padding), C outputs (classes, or vocabulary),
K outputs of a teacher that are known one by one, B = K + 1 bins with all others in one (B = K = C if none is left).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from codistill_ext.config import CodistillConfig

_BLOCK_ELEMENTS = 1 << 22  # logits that are worked on at a time for the bins: 16 MiB in float32
_LEAST_MASS = torch.finfo(torch.float32).eps  # of the bin of the rest: below it 1 - sum is rounding
_LEAST_LOGP = torch.finfo(torch.float16).min  # as far down as a 16-bit one goes; in place of log 0


@dataclass(frozen=True)
class TopK:
    """A teacher's most likely outputs, one row a sample or token; the rest of its mass is one bin.

    Attributes:
        logp_NK: float32, log-probabilities of softmax(logits / temperature).
        index_NK: int64, which outputs they are of; no output twice in a row.
    """

    logp_NK: Tensor
    index_NK: Tensor


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
) -> Tensor:
    """D(f_i(x), f_j(x)) in float32; no gradient reaches the teacher.

    The divergences of distributions sum over the C outputs, ``mse`` takes their mean. With a
    temperature T both logits are divided by T and the result is multiplied by T^2, so that the
    gradient keeps its size. Of a teacher's top k both distributions are of k + 1 bins, the last of
    which holds all other outputs.

    Args:
        student_NC: logits of shape (N, C).
        teacher: logits of shape (N, C), or the top of the distribution at this temperature.
        kind: ``kl_teacher_student`` = KL(teacher || student), ``kl_student_teacher`` =
            KL(student || teacher), ``cross_entropy`` = -sum p_teacher log p_student, or ``mse``.
        reduction: over the rows, ``mean`` or ``sum``, as in the task loss it is added to.

    Raises:
        ValueError: the shapes differ, the kind or the reduction is unknown, or ``mse`` of a top k.
    """
    if isinstance(teacher, TopK):
        if kind == "mse":
            raise ValueError("mse compares logits, but of a top k only probabilities are known")
        rows = _of_distributions(*_binned(student_NC, teacher, temperature), kind)
        return _reduce(rows, reduction) * temperature**2
    return _of_logits(student_NC, teacher, kind, temperature, reduction)


def _of_logits(student_NC: Tensor, teacher_NC: Tensor, kind: str, temperature: float, reduction: str) -> Tensor:
    if student_NC.shape != teacher_NC.shape:
        raise ValueError(
            f"student and teacher must have equal shapes (rows, outputs), not {tuple(student_NC.shape)} "
            f"and {tuple(teacher_NC.shape)}"
        )
    student_NC, teacher_NC = student_NC.float(), teacher_NC.detach().float()
    if kind == "mse":
        return _reduce((student_NC - teacher_NC).square().mean(dim=-1), reduction)
    student_logp = F.log_softmax(student_NC / temperature, dim=-1)
    teacher_logp = F.log_softmax(teacher_NC / temperature, dim=-1)
    return _reduce(_of_distributions(student_logp, teacher_logp, kind), reduction) * temperature**2


def _of_distributions(student_logp: Tensor, teacher_logp: Tensor, kind: str) -> Tensor:
    """Divergence of each row, of log-probabilities of shape (N, C) or (N, B)."""
    if kind == "kl_teacher_student":
        return F.kl_div(student_logp, teacher_logp, reduction="none", log_target=True).sum(dim=-1)
    if kind == "kl_student_teacher":
        return F.kl_div(teacher_logp, student_logp, reduction="none", log_target=True).sum(dim=-1)
    if kind == "cross_entropy":
        return -(teacher_logp.exp() * student_logp).sum(dim=-1)
    raise ValueError(f"unknown divergence {kind!r}")


def _binned(student_NC: Tensor, teacher: TopK, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the student and the teacher in the teacher's bins, both of shape (N, B)."""
    index_NK, outputs = teacher.index_NK, student_NC.size(1)
    if teacher.logp_NK.shape != index_NK.shape or len(index_NK) != len(student_NC) or index_NK.size(1) > outputs:
        raise ValueError(
            f"a top k needs log-probabilities and indices of shape ({len(student_NC)}, at most {outputs}), not "
            f"{tuple(teacher.logp_NK.shape)} and {tuple(index_NK.shape)}"
        )
    teacher_logp = teacher.logp_NK.detach().float().clamp(min=_LEAST_LOGP)
    if index_NK.size(1) == outputs:
        return F.log_softmax(student_NC.gather(1, index_NK).float() / temperature, dim=1), teacher_logp
    rest_N1 = 1 - teacher_logp.exp().sum(dim=1, keepdim=True)
    teacher_logp = torch.cat([teacher_logp, rest_N1.clamp(min=_LEAST_MASS).log()], dim=1)
    bins_NB: Tensor = _BinLogits.apply(student_NC, index_NK, temperature)
    return F.log_softmax(bins_NB, dim=1), teacher_logp


class _BinLogits(torch.autograd.Function):
    """logits / temperature of the given outputs, and in the last column the logsumexp of all others.

    Those are summed themselves: 1 - sum of the given ones would lose a small rest. By hand, because
    autograd would hold several more copies of the logits, which are large (N = 3584, C = 32768:
    470 MB); this makes the gradient and nothing else of their size, in blocks of rows.
    """

    @staticmethod
    def forward(ctx: Any, student_NC: Tensor, index_NK: Tensor, temperature: float) -> Tensor:
        bins_NB = torch.empty(len(index_NK), index_NK.size(1) + 1, dtype=torch.float32, device=student_NC.device)
        for rows in _blocks(student_NC):
            logits, index = student_NC[rows].float() / temperature, index_NK[rows]
            bins_NB[rows, :-1] = logits.gather(1, index)
            bins_NB[rows, -1] = logits.scatter_(1, index, -torch.inf).logsumexp(dim=1)
        ctx.save_for_backward(student_NC, index_NK, bins_NB[:, -1:].clone())
        ctx.temperature = temperature
        return bins_NB

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NB: Tensor) -> tuple[Tensor, None, None]:
        student_NC, index_NK, rest_N1 = ctx.saved_tensors
        grad_NB = grad_NB / ctx.temperature
        grad_NC = torch.empty_like(student_NC)
        for rows in _blocks(student_NC):
            share = (student_NC[rows].float() / ctx.temperature).sub_(rest_N1[rows]).exp_().mul_(grad_NB[rows, -1:])
            # The given outputs have no share of the rest, and what stands there may be infinite.
            grad_NC[rows] = share.scatter_(1, index_NK[rows], grad_NB[rows, :-1])
        return grad_NC, None, None


def _blocks(tensor_NC: Tensor) -> Iterator[slice]:
    """Rows that are small enough together to be copied without thought."""
    size = max(1, _BLOCK_ELEMENTS // max(1, tensor_NC.size(1)))
    return (slice(start, start + size) for start in range(0, len(tensor_NC), size))


def _reduce(rows: Tensor, reduction: str) -> Tensor:
    if reduction == "sum":
        return rows.sum()
    if reduction == "mean":
        return rows.sum() / max(rows.numel(), 1)  # a batch of padding alone is 0, not NaN
    raise ValueError(f"reduction is mean or sum, not {reduction!r}")


def mean_prediction(teachers: Sequence[Target], kind: str, temperature: float = 1.0) -> Tensor:
    """Logits of the teachers' mean prediction (Anil et al.): of their probabilities, or for mse of their logits.

    Raises:
        ValueError: a teacher is a top k, whose outputs are not those of another.
    """
    teachers_NC = [teacher for teacher in teachers if isinstance(teacher, Tensor)]
    if len(teachers_NC) < len(teachers):
        raise ValueError("the mean prediction needs all logits of each teacher, not a top k")
    if kind == "mse":
        return torch.stack([teacher.float() for teacher in teachers_NC]).mean(dim=0)
    logp = torch.stack([F.log_softmax(teacher.float() / temperature, dim=-1) for teacher in teachers_NC])
    return (logp.logsumexp(dim=0) - torch.log(logp.new_tensor(len(teachers_NC)))) * temperature


def codistillation_term(
    student_NC: Tensor,
    teachers: Sequence[Target],
    config: CodistillConfig,
    *,
    alpha: float,
    reduction: str = "mean",
) -> CodistillTerm:
    """alpha_k * 1/(n-1) * sum over peers of D(f_i(x), f_j(x)), or D to the mean prediction.

    Args:
        student_NC: this model's logits, with their graph.
        teachers: the predictions of each peer for the same rows; empty when there is none yet.
        alpha: alpha_k, from the schedule.
    """
    if not teachers or alpha == 0:
        zero = student_NC.new_zeros((), dtype=torch.float32)
        return CodistillTerm(loss=zero, divergence=zero, alpha=alpha, peers=0)
    targets = teachers
    if config.target == "mean":
        targets = [mean_prediction(teachers, config.divergence, config.temperature)]
    divergences = [
        divergence(student_NC, target, config.divergence, temperature=config.temperature, reduction=reduction)
        for target in targets
    ]
    mean = torch.stack(divergences).mean()
    return CodistillTerm(loss=alpha * mean, divergence=mean.detach(), alpha=alpha, peers=len(teachers))
