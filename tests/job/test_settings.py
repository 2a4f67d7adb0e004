"""Options of single models."""

from pathlib import Path

import pytest

from codistill_ext.job.settings import read_settings, to_flags


def test_settings_become_flags_of_their_model(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("1: {model: resnet56, lr-milestones: [1, 2.5], amp: true}\n")
    assert read_settings("", 2) == [{}, {}]
    first, second = read_settings(str(path), 2)
    assert first == {}
    assert to_flags(second) == ["--model", "resnet56", "--lr-milestones", "1", "2.5", "--amp"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2: {lr: 1}", "has settings of model 2; models are 0..1"),
        ("model1: {lr: 1}", "has settings of model 'model1'"),
        ("1: fast", "model 1 needs options by name, not 'fast'"),
        ("- a", "must map model indices to options"),
        ("1: {", "cannot be read"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_settings(str(path), 2)
    assert message in str(error.value) and str(path) in str(error.value)
    with pytest.raises(ValueError, match="cannot be read"):
        read_settings(str(tmp_path / "none.yaml"), 2)
    with pytest.raises(ValueError, match="--amp is a switch"):
        to_flags({"amp": False})
