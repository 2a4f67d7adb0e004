"""Logits that are spread over ranks by output: the same loss and gradient as with all of them in one place."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups, codistillation_term
from codistill_ext.config import DIVERGENCES
from codistill_ext.outputs import own_outputs
from tests.ranks import RankError, run_ranks

ROWS, OUTPUTS = 4, 7  # uneven over two ranks
CASES = [(kind, target) for kind in DIVERGENCES for target in ("each", "mean")]


def _logits() -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(ROWS, OUTPUTS, generator=generator)
    teachers = [3 * torch.randn(ROWS, OUTPUTS, generator=generator) for _ in range(2)]
    teachers[0][1, 5] = math.nan  # a teacher that is lost in one row
    teachers[1][2, 6] = -math.inf
    return student, teachers


def _terms(rank: int) -> list[tuple[Tensor, Tensor]]:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    found = []
    for kind, target in CASES:
        config = CodistillConfig(models=3, divergence=kind, target=target, temperature=1.0 if kind == "mse" else 2.0)
        student, teachers = _logits()
        spread_student = distribute_tensor(student, mesh, [Shard(-1)]).requires_grad_()
        own, spread = own_outputs(spread_student)
        own_teachers = [own_outputs(distribute_tensor(teacher, mesh, [Shard(-1)]))[0] for teacher in teachers]
        term = codistillation_term(own, own_teachers, config, alpha=0.7, reduction="sum", spread=spread)
        loss = spread.replicated(term.loss)
        loss.backward()
        found.append((loss.full_tensor().detach(), spread_student.grad.full_tensor()))
    return found


def test_loss_and_gradient_equal_those_of_whole_logits() -> None:
    for results in run_ranks(2, _terms):
        for (kind, target), (loss, gradient) in zip(CASES, results, strict=True):
            config = CodistillConfig(
                models=3, divergence=kind, target=target, temperature=1.0 if kind == "mse" else 2.0
            )
            student, teachers = _logits()
            term = codistillation_term(student.requires_grad_(), teachers, config, alpha=0.7, reduction="sum")
            term.loss.backward()
            torch.testing.assert_close(loss, term.loss.detach(), msg=lambda m, c=(kind, target): f"{c}: {m}")
            torch.testing.assert_close(gradient, student.grad, msg=lambda m, c=(kind, target): f"{c}: {m}")


def _spread_model(mesh: DeviceMesh) -> torch.nn.Module:
    return parallelize_module(torch.nn.Linear(3, OUTPUTS), mesh, ColwiseParallel(use_local_output=False))


def _two_models(rank: int, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The term of a mini-batch, and what it should be: of logits that are whole."""
    config = CodistillConfig(models=2, **options)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("codistill", "tp"))
    groups = ModelGroups.from_mesh(mesh, config)
    torch.manual_seed(groups.model_index)
    module = _spread_model(groups.model_mesh)
    model = CodistillParallel(module, groups, config, build_peer=lambda _: _spread_model(groups.model_mesh))
    x = torch.ones(2, ROWS, 3)
    model.after_update()
    logits = model(x)
    whole = dict(groups.gather((groups.model_index, logits.full_tensor().detach().flatten(0, 1))))
    term = model.codistill(x, logits)
    assert isinstance(term.loss, DTensor) and term.peers == 1
    (logits.sum() + term.loss).backward()
    if config.exchange == "predictions":
        with pytest.raises(ValueError, match="by their last dimension alone"):
            model.codistill(x, logits.redistribute(placements=[Shard(1)]))
    model.close()
    expected = codistillation_term(whole[groups.model_index], [whole[1 - groups.model_index]], config, alpha=1.0)
    return term.loss.full_tensor().detach(), expected.loss


@pytest.mark.parametrize("options", [{}, {"exchange": "checkpoints", "period": 1, "lag": 0}], ids=str)
def test_tensor_parallel_models_teach_each_other_the_outputs_that_a_rank_has(options: dict[str, Any]) -> None:
    for loss, expected in run_ranks(4, _two_models, options):
        torch.testing.assert_close(loss, expected)


def test_a_top_k_of_spread_logits_is_refused() -> None:
    with pytest.raises(RankError, match="a top k needs all outputs of a row on each rank"):
        run_ranks(4, _two_models, {"encoding": "topk", "topk": 2})
