"""The benchmarks run, on something small, and print what their descriptions say. What they measure is not tested."""

import json
import sys
from typing import Any

import pytest

from tests.commands import run, torchrun

SMALL = ["--model", "resnet8_stride2", "--batch-size", "4"]


def result(output: str) -> Any:
    """The JSON at the end."""
    return json.loads(output[output.index("{\n") :])


def test_prediction_overhead() -> None:
    output = run([*torchrun(2), "-m", "benchmarks.prediction_overhead", *SMALL, "--rounds", "2", "--steps", "2"])
    for index, model in enumerate(result(output)["models"]):
        ratio = model["median_ms"]["coupled"] / model["median_ms"]["apart"]
        assert model["model"] == index
        assert model["coupled_to_apart"]["of_medians"] == pytest.approx(ratio, rel=0.02)
        assert len(model["coupled_to_meeting"]["quartiles_of_blocks"]) == 3


def test_teacher_overhead() -> None:
    command = [*torchrun(2), "-m", "benchmarks.teacher_overhead", *SMALL, "--rounds", "3", "--period", "2"]
    for model in result(run([*command, "--no-compile"]))["models"]:
        assert model["alone"]["ratio_of_medians"] == 1 and "the same, compiled" not in model
        assert model["teacher in float32"]["worst_step"] >= model["teacher in float32"]["ratio_of_medians"]


@pytest.mark.real_python
def test_topk() -> None:
    command = [sys.executable, "-m", "benchmarks.topk", "--rows", "50", "--outputs", "300", "--turns", "2"]
    encodings = result(run(command))["encodings"]
    assert {name: encoding["bytes"] for name, encoding in encodings.items()} == {
        "full": 50 * 300 * 4,
        "half": 50 * 300 * 2,
        "topk": 50 * 64 * (2 + 2),
    }
