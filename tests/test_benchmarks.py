"""The benchmarks run, on something small, and print what their descriptions say. What they measure is not tested."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import vocabulary
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


def test_vocabulary() -> None:
    args = argparse.Namespace(rows=200, outputs=300, hidden=8, topk=4, dtype="float32", device="cpu", turns=1)
    assert vocabulary.measure("hidden topk", args).keys() == {"peak_bytes", "seconds"}
    losses = {way: vocabulary.work_of(way, args)[0]().item() for way in vocabulary.WAYS}
    assert losses["blocked"] == pytest.approx(losses["plain"])
    assert losses["topk"] == pytest.approx(losses["topk plain"])
    assert losses["hidden"] == pytest.approx(losses["layer plain"]) == pytest.approx(losses["layer blocked"])
    assert losses["topk"] < losses["plain"] and losses["hidden topk"] < losses["hidden"], "bins hide differences"


SCRIPT = """
import argparse

def train_one_epoch(args, epoch): ...

def evaluate(args): ...

def get_args_parser():
    parser = argparse.ArgumentParser()
    for name in ("data-path", "model", "output-dir", "device", "opt", "norm-weight-decay", "lr", "print-freq"):
        parser.add_argument(f"--{name}")
    for name in ("train-crop-size", "val-crop-size", "val-resize-size", "epochs"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("-b", type=int)
    parser.add_argument("-j", type=int)
    return parser

def main(args):
    from torchvision.models import get_model
    assert args.model == "resnet20" and args.train_crop_size == 32 and args.opt == "sgd_nesterov"
    get_model(args.model, weights=None, num_classes=10)
    for epoch in range(args.epochs):
        train_one_epoch(args, epoch)
        evaluate(args)
"""


def test_vision_throughput(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a script in the place of the reference, and both in this process."""
    from benchmarks import vision_throughput

    (tmp_path / "train.py").write_text(SCRIPT)
    monkeypatch.setitem(sys.modules, "train", None)
    monkeypatch.delitem(sys.modules, "train")
    monkeypatch.setattr(sys, "path", sys.path[:])

    def run_here(role: str, name: str, data: Path, args: argparse.Namespace) -> vision_throughput.Seconds:
        case = vision_throughput.CASES[name]
        common = vision_throughput.common_options(case, args)
        if role == "ours":
            return vision_throughput.train_ours(case, data, common)
        return vision_throughput.train_reference(case, data, common, args.reference)

    monkeypatch.setattr(vision_throughput, "run_in_process", run_here)
    options = ["--cases", "cifar", "--rounds", "1", "--epochs", "2", "--images", "20", "--workers", "0"]
    vision_throughput.main([*options, "--reference", str(tmp_path)])
    measured = result(capsys.readouterr().out)["cifar"]
    assert measured["median_ratio"] == measured["ours_to_reference"][0] < 1  # the script does nothing
    assert set(measured["input_images_a_second_and_core"]) == {"tree", "pack"}
    assert measured["bytes_a_picture"] > 1000
