"""A loop with Lightning Fabric beside other models: held against the host alone, and against itself without a break."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT
from tests.integrations.fabrics import SAVED, coupled, mistakes, plain, program, resuming, sharded
from tests.ranks import run_ranks
from tests.states import assert_same

pytest.importorskip("lightning_fabric", reason="the extra 'fabric' is not installed")

CHECKPOINTS = {"exchange": "checkpoints", "period": 2, "lag": 1}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_alpha_zero_is_each_model_by_the_host_alone_bit_for_bit(precision: str) -> None:
    job = run_ranks(4, coupled, 4, {"models": 2, "alpha": 0.0}, precision, {"gradient_as_bucket_view": True})
    for model in range(2):
        alone = run_ranks(2, plain, 2, model, precision)
        for rank in range(2):
            assert_same(job[2 * model + rank]["state"], alone[rank])


def test_one_model_is_the_host_alone_bit_for_bit() -> None:
    job, alone = run_ranks(2, coupled, 2, {"models": 1}, "32-true", {}), run_ranks(2, plain, 2, 0, "32-true")
    assert_same(job[0]["state"], alone[0])


def test_fabrics_world_is_one_model() -> None:
    job = run_ranks(4, coupled, 4, {"models": 2}, "32-true", {})
    seen = [result["seen"] for result in job]
    assert [told["place"] for told in seen] == [(0, 2, True), (1, 2, False)] * 2
    assert [told["gathered"] for told in seen] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [told["reduced"] for told in seen] == [1, 1, 5, 5]
    assert [told["broadcast"] for told in seen] == [0, 0, 2, 2]
    assert [told["decided"] for told in seen] == [False, False, True, True]
    assert all(result["updates"] == 6 and len(result["terms"]) == 12 for result in job)
    for first, second in (job[:2], job[2:]):
        assert_same(first["state"], second["state"])
        assert first["terms"] == second["terms"] and min(first["terms"]) > 0
    assert job[0]["terms"] != job[2]["terms"], "KL has a direction"


def test_models_of_one_rank_have_no_collectives() -> None:
    seen = [result["seen"] for result in run_ranks(2, coupled, 2, {"models": 2}, "32-true", {})]
    assert [told["place"] for told in seen] == [(0, 1, True)] * 2
    assert [(told["gathered"], told["reduced"], told["broadcast"]) for told in seen] == [([0], 0, 0), ([1], 1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "precision"), [({}, "32-true"), (CHECKPOINTS, "bf16-mixed"), (CHECKPOINTS, "bf16-true")]
)
def test_a_resumed_run_has_the_bits_of_one_that_was_not(
    options: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    whole = run_ranks(4, resuming, options, precision, str(tmp_path), True)
    resumed = run_ranks(4, resuming, options, precision, str(tmp_path), False)
    assert [(before["found"], after["found"]) for before, after in zip(whole, resumed, strict=True)] == [
        (False, True)
    ] * 4
    for before, after in zip(whole, resumed, strict=True):
        assert_same(before["state"], after["state"])
        assert before["terms"][SAVED:] == after["terms"]


def test_what_would_break_the_models_is_refused(tmp_path: Path) -> None:
    for told in run_ranks(4, mistakes, str(tmp_path)):
        assert "call fabric.launch() first" in told["early"]
        assert "call fabric.setup first" in told["no module"]
        assert "leave process_group out" in told["a group"]
        assert "gave models the same seed" in told["seeds"]
        assert "one has been set up" in told["twice"]
        assert "below a directory model" in told["one file"]
        assert "shard it once more" in told["loader True"] and "shard it once more" in told["loader False"]
        assert "no disjoint data" in told["disjoint"]
    assert not list(tmp_path.iterdir())


def test_a_sharded_module_is_trained_and_saved_in_its_own_way(tmp_path: Path) -> None:
    for told in run_ranks(4, sharded, str(tmp_path)):
        assert (told["peers"], told["moved"], told["loaded"]) == (1, True, True)
        assert "save with save_sharded" in told["saved"]
        assert "set up the module first" in told["optimizer"]


def test_the_pages_program_trains_and_goes_on(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "fabric.md").read_text()
    source = page.partition("```python\n")[2].partition("```")[0]
    lines = run_ranks(4, program, source, str(tmp_path))[0]
    seen = [(start, *re.fullmatch(r"model 0, epoch (\d): loss ([\d.]+)", line).groups()) for start, line in lines]
    assert [(start, epoch) for start, epoch, _ in seen] == [(0, "1"), (0, "2"), (1, "3"), (1, "4")]
    assert float(seen[-1][2]) < 0.5 * float(seen[0][2])
    assert sorted(path.parent.parent.name for path in tmp_path.glob("runs/fabric/*/*_64/codistill.pt")) == [
        "model0",
        "model1",
    ]
