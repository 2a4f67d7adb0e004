"""One run's curves and what they say, from made-up metrics of both trainers."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from recipes.plot import View, advice, draw, main, table


def write(directory: Path, *, loss: float, distance: float | None = None, key: str = "train/loss") -> Path:
    """Ten lines a model; the loss of model 1 is twice that of model 0, at the end as at the beginning."""
    directory.mkdir()
    lines = []
    for update in range(10, 101, 10):
        for model in (0, 1):
            values = {key: loss * (model + 1), "train/codistill_loss": 0.1, "train/lr": 0.1}
            values |= {"staleness/1": float(update), "staleness/2": 50.0} if model == 0 else {}
            if distance is not None:
                values["train/distance_from_start"] = distance
            lines.append({"update": update, **{f"model{model}/{name}": value for name, value in values.items()}})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_finals_are_means_over_models_and_the_end(tmp_path: Path) -> None:
    view = View.of(write(tmp_path / "run", loss=1.0))
    assert view.final(("train/nll_loss", "train/loss")) == 1.5
    assert view.final(("valid/top1",)) is None
    assert view.final(("staleness",)) == 95.0  # of the updates 90 and 100


def test_of_several_peers_the_oldest_teacher_counts(tmp_path: Path) -> None:
    curve = View.of(write(tmp_path / "run", loss=1.0)).curves["staleness"]["model0"]
    assert curve[0] == (10, 50) and curve[-1] == (100, 100)


@pytest.mark.parametrize(
    ("loss", "distance", "words"),
    [(2.0, 3.0, "Over-regularised"), (2.0, 9.0, "One of the two"), (0.5, 9.0, "No sign"), (2.0, None, "Over-reg")],
)
def test_advice(tmp_path: Path, loss: float, distance: float | None, words: str) -> None:
    run = write(tmp_path / "run", loss=loss, distance=distance)
    other = write(tmp_path / "other", loss=1.0, distance=5.0)
    assert advice(View.of(run), [View.of(other)]).startswith(words)
    assert "--against" in advice(View.of(run), [])


def test_a_table_has_the_runs_side_by_side(tmp_path: Path) -> None:
    vision, text = write(tmp_path / "vision", loss=1.0), write(tmp_path / "text", loss=2.0, key="train/nll_loss")
    views = [View.of(vision), View.of(text)]
    rows = [line.split() for line in table(views).splitlines()]
    assert rows[0][-2:] == ["vision", "text"] and rows[2][-2:] == ["1.5", "3"]


def test_the_command_draws_either_trainers_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vision = write(tmp_path / "vision", loss=1.0, distance=2.0)
    text = write(tmp_path / "text", loss=2.0, key="train/nll_loss")
    main([str(text)])
    main([str(vision), "--against", str(text), "--out", str(tmp_path / "both.png")])
    assert "drawn into" in capsys.readouterr().out
    for path in (text / "curves.png", tmp_path / "both.png"):
        with Image.open(path) as picture:
            assert picture.convert("L").getextrema() == (0, 255)


def test_a_panel_has_a_line_for_each_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[str]] = {}

    def look(figure: Figure, path: Path) -> None:
        seen.update({axis.get_title(): [line.get_label() for line in axis.get_lines()] for axis in figure.axes})
        assert figure.axes[0].get_lines()[1].get_ydata().tolist() == [2.0] * 10

    monkeypatch.setattr("recipes.plot.save", look)
    draw(
        [View.of(write(tmp_path / name, loss=loss)) for name, loss in (("one", 1.0), ("two", 3.0))], tmp_path / "x.png"
    )
    assert seen["training loss (task)"] == ["one model0", "one model1", "two model0", "two model1"]
    assert seen["staleness (updates)"] == ["one model0", "two model0"]


def test_a_directory_without_metrics_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "metrics.jsonl" in capsys.readouterr().err
