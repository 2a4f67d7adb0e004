"""A teacher of which only the most likely outputs are known, and its student in the same bins.

Legend for shapes: N rows (samples or tokens), C outputs (classes or vocabulary), K outputs that are known one by
one, B = K + 1 bins with all others in one (B = K = C if none is left).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK_ELEMENTS = 1 << 22  # logits that are worked on at a time for the bins: 16 MiB in float32
_LEAST_MASS = torch.finfo(torch.float32).eps  # of the bin of the rest: below it 1 - sum is rounding
LEAST_LOGP = torch.finfo(torch.float16).min  # as far down as a 16-bit one goes; in place of log 0


@dataclass(frozen=True)
class TopK:
    """A teacher's most likely outputs, one row a sample or token; the rest of its mass is one bin.

    Attributes:
        logp_NK: float32, log-probabilities of softmax(logits / temperature).
        index_NK: int64, which outputs they are of; no output twice in a row.
    """

    logp_NK: Tensor
    index_NK: Tensor


def binned(student_NC: Tensor, teacher: TopK, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the student and the teacher in the teacher's bins, both of shape (N, B).

    Raises:
        ValueError: the teacher is of other rows, or of more outputs than the student has.
    """
    index_NK, outputs = teacher.index_NK, student_NC.size(1)
    if teacher.logp_NK.shape != index_NK.shape or len(index_NK) != len(student_NC) or index_NK.size(1) > outputs:
        raise ValueError(
            f"a top k needs log-probabilities and indices of shape ({len(student_NC)}, at most {outputs}), not "
            f"{tuple(teacher.logp_NK.shape)} and {tuple(index_NK.shape)}"
        )
    teacher_logp = teacher.logp_NK.detach().float().clamp(min=LEAST_LOGP)
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
