"""Models of other architectures and options, in one job and in separate ones."""

import json
from pathlib import Path

import pytest

from tests.fairseq_plugin.commands import CRITERION, train, weights

LAST = "checkpoint_last.pt"
TWO = [*CRITERION, "--codistill-models", "2"]
OWN = (
    "1: {encoder_layers: 2, decoder-embed-dim: 24, encoder_embed_dim: 24, dropout: 0.2, lr: 0.002, label_smoothing: 0}"
)


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    path = tmp_path / "settings.yaml"
    path.write_text(OWN)
    return ["--codistill-settings", str(path)]


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "exchange",
    [
        ("--codistill-encoding", "topk", "--codistill-topk", "8"),
        ("--codistill-exchange", "checkpoints", "--codistill-period", "4", "--codistill-lag", "1"),
    ],
    ids=["predictions, top 8", "checkpoints"],
)
def test_transformers_of_other_depth_and_width(
    data_bin: Path, tmp_path: Path, settings: list[str], exchange: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    train(data_bin, folder, *TWO, *settings, *exchange, "--max-update", "10", processes=2)
    first, second = (weights(folder / f"model{index}" / LAST) for index in range(2))
    assert first["encoder.embed_tokens.weight"].size(1) == 16 and second["encoder.embed_tokens.weight"].size(1) == 24
    assert "encoder.layers.1.fc1.weight" in second and "encoder.layers.1.fc1.weight" not in first
    for index in range(2):
        terms = [
            line[f"model{index}/train/codistill_loss"] for line in _lines(folder) if f"model{index}/train/lr" in line
        ]
        assert terms[-1] > 0
    rates = {line["model1/train/lr"] / line["model0/train/lr"] for line in _paired(_lines(folder))}
    assert all(rate == pytest.approx(2.0) for rate in rates) and rates


def _paired(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    by_update: dict[float, dict[str, float]] = {}
    for line in lines:
        by_update.setdefault(line["update"], {}).update(line)
    return [line for line in by_update.values() if "model0/train/lr" in line and "model1/train/lr" in line]


def test_separate_jobs_share_a_directory(data_bin: Path, tmp_path: Path, settings: list[str]) -> None:
    """Model 1 trains alone and ends; model 0, started later on two ranks, learns from its files."""
    files = ["--codistill-exchange", "files", "--codistill-dir", str(tmp_path / "weights")]
    options = [*TWO, *settings, *files, "--codistill-period", "3", "--codistill-lag", "0", "--max-update", "8"]
    train(data_bin, tmp_path / "run", *options, "--codistill-model-index", "1")
    train(data_bin, tmp_path / "run", *options, "--codistill-model-index", "0", processes=2)
    terms = [line["model0/train/codistill_loss"] for line in _lines(tmp_path / "run") if "model0/train/lr" in line]
    assert terms[0] == 0 and terms[-1] > 0
    summary = json.loads((tmp_path / "run/model0/summary.json").read_text())
    assert summary["models"][0]["traffic"]["received/weights"] > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: {save_dir: elsewhere}", "gives model 1 save_dir: that is the job's, not a model's"),
        ("1: {no_such_option: 3}", "unrecognized arguments: --no-such-option 3"),
    ],
)
def test_mistakes_in_a_models_options(data_bin: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    output = train(data_bin, tmp_path / "run", *TWO, "--codistill-settings", str(path), processes=2, fails=True)
    assert message in output and not (tmp_path / "run").exists()
