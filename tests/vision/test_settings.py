"""Differently trained models, in one job and in separate ones."""

import json
from pathlib import Path

import pytest

from tests.ranks import run_ranks
from tests.vision.small import PLAIN, final_state, run, run_rank
from vision.options import build_parser, parse_options

TWO = [*PLAIN, "--codistill-models", "2"]
CHECKPOINTS = ["--codistill-exchange", "checkpoints", "--codistill-period", "3", "--codistill-lag", "1"]
OWN = "1: {model: resnet20, lr: 0.01, weight_decay: 0.001, label-smoothing: 0.1, seed: 9}\n"


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    path = tmp_path / "settings.yaml"
    path.write_text(OWN)
    return ["--codistill-settings", str(path)]


def test_each_model_gets_its_own_options(settings: list[str]) -> None:
    first, second = parse_options(build_parser(), [*TWO, *settings]).models
    assert (first.model, first.lr, first.weight_decay.plain, first.seed) == ("resnet8_stride2", 0.05, 1e-4, 0)
    assert (second.model, second.lr, second.weight_decay.plain, second.seed) == ("resnet20", 0.01, 0.001, 9)
    assert second.label_smoothing.plain == 0.1 and second.batch_size == first.batch_size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: {batch_size: 4}", "gives model 1 batch_size, which is the same for all models"),
        ("1: {lr: fast}", "argument --lr: invalid float value: 'fast'"),
        ("1: {model: resnet21}", "--model resnet21 is unknown"),
    ],
)
def test_mistakes_in_a_models_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit):
        parse_options(build_parser(), [*TWO, "--codistill-settings", str(path)])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], CHECKPOINTS], ids=["predictions", "checkpoints"])
def test_models_of_other_architectures_teach_each_other(tmp_path: Path, settings: list[str], extra: list[str]) -> None:
    directory = tmp_path / "run"
    run_ranks(2, run_rank, [*TWO, *settings, *extra, "--max-updates", "8", "--output-dir", str(directory)])
    states = [final_state(directory, model) for model in (0, 1)]
    assert states[0]["model"].keys() != states[1]["model"].keys()
    summary = json.loads((directory / "summary.json").read_text())
    assert len(summary["models"]) == 2
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for model in (0, 1):
        terms = [line[f"model{model}/train/codistill_loss"] for line in lines if f"model{model}/train/loss" in line]
        assert terms[-1] > 0
        assert any(f"model{model}/staleness/{1 - model}" in line for line in lines)


def test_separate_jobs_share_a_directory(tmp_path: Path, settings: list[str]) -> None:
    """Model 1 first, alone in its process; then model 0 on two ranks, which learns from its files."""
    files = ["--codistill-exchange", "files", "--codistill-dir", str(tmp_path / "weights")]
    options = [*TWO, *settings, *files, "--codistill-period", "2", "--codistill-lag", "0"]
    options += ["--output-dir", str(tmp_path / "run"), "--max-updates", "8"]
    run([*options, "--codistill-model-index", "1"])
    run_ranks(2, run_rank, [*options, "--codistill-model-index", "0"])
    summary = json.loads((tmp_path / "run/model0/summary.json").read_text())
    assert summary["bytes"]["received/weights"] > 0 and len(summary["models"]) == 1
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any(line.get("model0/train/codistill_loss", 0.0) > 0 for line in lines)
    assert not any(line.get("model1/train/codistill_loss", 0.0) > 0 for line in lines), "nobody was there before"
