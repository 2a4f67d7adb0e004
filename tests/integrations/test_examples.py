"""The examples train, and go on where they stopped; Accelerate's own tests pass beside other models."""

import re
import shutil
from pathlib import Path

import pytest

from tests.integrations.examples import example
from tests.integrations.upstream import script
from tests.ranks import run_ranks

pytest.importorskip("transformers", reason="the extra 'huggingface' is not installed")


def _run(module: str, *options: str) -> list[str]:
    return run_ranks(4, example, 4, f"recipes.hosts.{module}", ["--codistill-models", "2", "--cpu", *options])


def _bits(printed: list[str]) -> dict[str, float]:
    lines = re.findall(r"^model (\d): ([\d.]+) bits a byte$", "\n".join(printed), re.MULTILINE)
    return {model: float(bits) for model, bits in lines}


@pytest.mark.slow
def test_the_trainer_learns_and_resumes_to_the_same_end(tmp_path: Path) -> None:
    options = ["--output-dir", str(tmp_path), "--max-steps", "8"]
    whole = _bits(_run("trainer", *options))
    assert whole.keys() == {"0", "1"} and max(whole.values()) < 7.5 < 8
    shutil.rmtree(tmp_path / "model0" / "checkpoint-8")
    assert _bits(_run("trainer", *options, "--resume")) == whole


@pytest.mark.slow
def test_the_loop_learns_and_resumes_to_the_same_end(tmp_path: Path) -> None:
    options = ["--output-dir", str(tmp_path), "--samples", "512", "--epochs", "2"]
    whole = "\n".join(_run("loop", *options))
    ends = re.findall(r"^model \d, epoch 2: .* ([\d.]+) % right$", whole, re.MULTILINE)
    assert len(ends) == 2 and min(map(float, ends)) > 55, whole
    shutil.rmtree(tmp_path / "model1" / "checkpoint_16")
    resumed = "\n".join(_run("loop", *options, "--resume"))
    assert "epoch 1" not in resumed and resumed.split() == [word for word in _second_epoch(whole).split()]


def _second_epoch(printed: str) -> str:
    return "\n".join(line for line in printed.splitlines() if "epoch 2" in line)


@pytest.mark.parametrize("name", ["test_ops", "test_sync"])
def test_accelerates_own_tests_pass_beside_another_model(name: str) -> None:
    run_ranks(4, script, 4, name)
