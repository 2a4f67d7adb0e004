"""A teacher of which all outputs are known, and the divergence of its student from it.

At most one tensor of the size of the logits is made, which is their gradient, in their own precision.

Legend for shapes: P teachers, N rows, n rows of a block, C outputs.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from codistill_ext.outputs import Spread, log_softmax, sum_outputs
from codistill_ext.rows import Blocks, LogitRows, Rebuild, blocks, scaled
from codistill_ext.topk import LEAST_LOGP


@dataclass(frozen=True)
class _Work:
    """What is to be computed, without a tensor.

    Attributes:
        of: how the student and each teacher are made out of tensors, and of how many.
        mean: whether the target is the teachers' mean prediction.
    """

    of: tuple[tuple[Rebuild, int], ...]
    kind: str
    temperature: float
    mean: bool
    spread: Spread | None

    def rows(self, tensors: Sequence[Tensor]) -> tuple[LogitRows, list[LogitRows]]:
        made, start = [], 0
        for rebuild, count in self.of:
            made.append(rebuild(*tensors[start : start + count]))
            start += count
        return made[0], made[1:]

    def blocks(self, student: LogitRows, teachers: list[LogitRows]) -> Blocks:
        """Alike on all ranks that have outputs of the same rows."""
        return blocks(student, *teachers, outputs=None if self.spread is None else self.spread.most_outputs)

    def target_blocks(self, teachers: list[LogitRows], rows: slice, device: torch.device) -> list[Tensor]:
        logits = [teacher.block(rows).to(device, non_blocking=True) for teacher in teachers]
        return [mean_prediction(logits, self.kind, self.temperature, self.spread)] if self.mean else logits

    def compared(self, logits_nC: Tensor) -> Tensor:
        """What the divergence is of, in float32: the logits, or the log-probabilities of logits / temperature.

        An output of probability 0 (its logit is -inf) gets a finite one, since 0 log 0 is 0 and not NaN.
        """
        if self.kind == "mse":
            return logits_nC.float()
        return log_softmax(scaled(logits_nC, self.temperature), self.spread).clamp_(min=LEAST_LOGP)


def dense_divergences(
    student: LogitRows,
    teachers: Sequence[LogitRows],
    kind: str,
    *,
    temperature: float,
    mean: bool = False,
    spread: Spread | None = None,
) -> Tensor:
    """Divergence of each row at logits / temperature from each teacher, shape (P, N), or from their mean prediction.

    Raises:
        ValueError: the shapes differ.
    """
    for teacher in teachers:
        if student.shape != teacher.shape:
            raise ValueError(
                f"student and teacher must have equal shapes (rows, outputs), not {student.shape} and {teacher.shape}"
            )
    everyone = [student, *teachers]
    of = tuple((rows.rebuild, len(rows.tensors)) for rows in everyone)
    targets = (tensor.detach() for teacher in teachers for tensor in teacher.tensors)
    work = _Work(of, kind, temperature, mean, spread)
    divergences_PN: Tensor = _Divergences.apply(work, *student.tensors, *targets)
    return divergences_PN


class _Divergences(torch.autograd.Function):
    """By hand, because autograd would hold several copies of the logits in float32."""

    @staticmethod
    def forward(ctx: Any, work: _Work, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.work = work
        student, teachers = work.rows(tensors)
        rows_PN = torch.empty(1 if work.mean else len(teachers), student.shape[0], device=student.device)
        for rows in work.blocks(student, teachers):
            own = work.compared(student.block(rows))
            for index, teacher_nC in enumerate(work.target_blocks(teachers, rows, student.device)):
                rows_PN[index, rows] = _divergence(own, work.compared(teacher_nC), work)
        return rows_PN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PN: Tensor) -> tuple[Tensor | None, ...]:
        work: _Work = ctx.work
        student, teachers = work.rows(ctx.saved_tensors)
        gradients = student.begin_gradients()
        for rows in work.blocks(student, teachers):
            own = work.compared(student.block(rows))
            of_block = [
                _gradient(own, work.compared(teacher_nC), grad_N[rows], work)
                for grad_N, teacher_nC in zip(grad_PN, work.target_blocks(teachers, rows, student.device), strict=True)
            ]
            student.add_gradients(gradients, rows, functools.reduce(Tensor.add_, of_block))
        return None, *gradients, *(None for teacher in teachers for _ in teacher.tensors)


def _divergence(student: Tensor, teacher: Tensor, work: _Work) -> Tensor:
    """Of each row of what is compared, shape (n, C)."""
    if work.kind != "mse":
        return of_distributions(student, teacher, work.kind, work.spread)
    differences_nC, lost_n, outputs = _differences(student, teacher, work.spread)
    return (sum_outputs(differences_nC.square_(), work.spread) / outputs).masked_fill_(lost_n, 0.0)


def _gradient(student: Tensor, teacher: Tensor, grad_n: Tensor, work: _Work) -> Tensor:
    """Of the student's logits, shape (n, C)."""
    if work.kind != "mse":
        return _gradient_of_distributions(student, teacher, grad_n / work.temperature, work)
    differences_nC, lost_n, outputs = _differences(student, teacher, work.spread)
    return differences_nC.mul_((grad_n * 2 / outputs)[:, None]).masked_fill_(lost_n[:, None], 0.0)


def of_distributions(student_logp: Tensor, teacher_logp: Tensor, kind: str, spread: Spread | None = None) -> Tensor:
    """Divergence of each row, of log-probabilities of shape (N, C), or (N, B) in bins; writes to the teacher's.

    Raises:
        ValueError: the kind is unknown.
    """
    lost_N, teacher_logp = _without_lost(teacher_logp)
    if kind == "kl_teacher_student":
        terms = F.kl_div(student_logp, teacher_logp, reduction="none", log_target=True)
    elif kind == "kl_student_teacher":
        terms = F.kl_div(teacher_logp, student_logp, reduction="none", log_target=True)
    elif kind == "cross_entropy":
        terms = -(teacher_logp.exp() * student_logp)
    else:
        raise ValueError(f"unknown divergence {kind!r}")
    return sum_outputs(terms, spread).masked_fill(lost_N, 0.0)


def _gradient_of_distributions(student_logp: Tensor, teacher_logp: Tensor, grad_n: Tensor, work: _Work) -> Tensor:
    """Of logits / temperature, whose gradient is g - q sum g for g by their log-probabilities log q."""
    lost_n, teacher_logp = _without_lost(teacher_logp)
    student_p = student_logp.exp()
    if work.kind == "kl_student_teacher":
        differences = student_logp - teacher_logp
        mean_n = sum_outputs(student_p * differences, work.spread)
        gradient = differences.sub_(mean_n[:, None]).mul_(student_p)
    else:
        teacher_p = teacher_logp.exp_()
        gradient = student_p.mul_(sum_outputs(teacher_p, work.spread)[:, None]).sub_(teacher_p)
    return gradient.mul_(grad_n[:, None]).masked_fill_(lost_n[:, None], 0.0)


def _without_lost(teacher_logp: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows of a teacher are not finite, and its log-probabilities with numbers in their place."""
    lost_n = teacher_logp[:, 0].isnan()  # log_softmax makes all of such a row NaN
    return lost_n, teacher_logp.nan_to_num_(nan=0.0)  # behind the divergence the gradient would be 0 * NaN


def _differences(student_nC: Tensor, teacher_nC: Tensor, spread: Spread | None) -> tuple[Tensor, Tensor, int]:
    outputs = student_nC.size(-1) if spread is None else spread.outputs
    # Outputs that both exclude are alike; 16 bits send -inf as their least number.
    excluded_nC = student_nC.isneginf() & (teacher_nC <= LEAST_LOGP)
    lost_n = sum_outputs(~(teacher_nC.isfinite() | excluded_nC), spread) > 0
    differences_nC = student_nC - teacher_nC.masked_fill(lost_n[:, None], 0.0)
    return differences_nC.masked_fill_(excluded_nC, 0.0), lost_n, outputs


def mean_prediction(
    teachers_NC: Sequence[Tensor], kind: str, temperature: float = 1.0, spread: Spread | None = None
) -> Tensor:
    """Logits of the teachers' mean prediction (Anil et al.): of their probabilities, or for mse of their logits."""
    if kind == "mse":
        return torch.stack([teacher.float() for teacher in teachers_NC]).mean(dim=0)
    logp = torch.stack([log_softmax(teacher.float() / temperature, spread) for teacher in teachers_NC])
    return (logp.logsumexp(dim=0) - torch.log(logp.new_tensor(len(teachers_NC)))) * temperature
