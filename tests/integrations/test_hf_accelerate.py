"""A loop with Accelerate beside other models: held against the host alone, and against itself without a break."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.loops import SAVED, coupled, mistakes, plain
from tests.ranks import run_ranks
from tests.states import assert_same

pytest.importorskip("accelerate", reason="the extra 'huggingface' is not installed")

CHECKPOINTS = {"exchange": "checkpoints", "period": 2, "lag": 1}


def test_alpha_zero_is_each_model_by_the_host_alone_bit_for_bit(tmp_path: Path) -> None:
    job = run_ranks(4, coupled, 4, {"models": 2, "alpha": 0.0}, str(tmp_path))
    for model in range(2):
        alone = run_ranks(2, plain, 2, model)
        for rank in range(2):
            assert_same(job[2 * model + rank]["state"], alone[rank]["state"])


def test_one_model_is_the_host_alone_bit_for_bit(tmp_path: Path) -> None:
    job, alone = run_ranks(2, coupled, 2, {"models": 1}, str(tmp_path)), run_ranks(2, plain, 2, 0)
    assert_same(job[0]["state"], alone[0]["state"])


def test_each_accelerator_has_the_ranks_of_its_model(tmp_path: Path) -> None:
    job = run_ranks(4, coupled, 4, {"models": 2}, str(tmp_path))
    assert [result["main"] for result in job] == [True, False, True, False]
    assert [result["gathered"] for result in job] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert all(result["updates"] == 6 and len(result["terms"]) == 12 for result in job)
    for first, second in (job[:2], job[2:]):
        assert_same(first["state"], second["state"] | _running(first["state"]))
        assert first["terms"] == second["terms"] and min(first["terms"]) > 0
    assert job[0]["terms"] != job[2]["terms"], "KL has a direction"


def _running(state: dict[str, Any]) -> dict[str, Any]:
    """The statistics of BatchNorm: DistributedDataParallel leaves the last batch's to each rank."""
    return {name: tensor for name, tensor in state.items() if "running" in name}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("options", [{}, CHECKPOINTS], ids=["predictions", "checkpoints"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not(
    options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    more = {"mixed_precision": precision}
    whole = run_ranks(4, coupled, 4, {"models": 2} | options, str(tmp_path), True, more)
    assert whole[0]["autocast"] == {"no": None, "bf16": torch.bfloat16}[precision]
    resumed = run_ranks(4, coupled, 4, {"models": 2} | options, str(tmp_path), False, more)
    for before, after in zip(whole, resumed, strict=True):
        assert_same(before["state"], after["state"])
        assert before["terms"][2 * SAVED :] == after["terms"]


def test_what_would_break_the_models_is_refused(tmp_path: Path) -> None:
    for told in run_ranks(4, mistakes, 4, str(tmp_path / "run")):
        assert "takes it for rank" in told["an Accelerator before join"]
        assert "make the coupling before accelerator.prepare" in told["a prepared module"]
        assert "nothing averages its gradients" in told["not prepared"]
        assert "below a directory model" in told["one directory"]
        assert "the accelerator shards it once more" in told["sharded twice"]
        assert "leave even_batches on" in told["uneven batches"]
        assert told["files there"] == "[]"


def test_a_copy_of_a_prepared_module_computes_with_its_own_weights() -> None:
    """So are teachers made that come after ``prepare``, when files are exchanged."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    net = accelerator.prepare(nn.Linear(3, 2))
    teacher = copy.deepcopy(net)
    with torch.no_grad():
        teacher.weight.zero_()
        teacher.bias.fill_(7.0)
    assert teacher(torch.ones(1, 3)).tolist() == [[7.0, 7.0]]
    assert net(torch.ones(1, 3)).tolist() != [[7.0, 7.0]]
