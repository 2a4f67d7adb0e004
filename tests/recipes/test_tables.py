"""Tables and figures from made-up runs."""

import json
import math
import shutil
from pathlib import Path

import numpy
import pandas
import pytest
from PIL import Image, ImageChops

from recipes import tables
from recipes.figures import STYLES, draw_by, draw_curves, mean_curve, styles_of
from recipes.frames import Runs, load_runs
from recipes.runs import write_raw_summary
from tests.recipes.made_up import UPDATES, write_run

FINDINGS = """
findings:
  - id: 1
    title: Two are better
    paper: half a point
    arms: [one, two*]
    columns: [mean_top1, train_loss]
    papers: {top1: {two: 75.9}}
    claims:
      - {text: higher accuracy, measure: mean_top1, contrast: {two: 1, one: -1}, expect: positive}
    figures:
      - {file: curves.png, kind: curves, keys: [train/loss, valid/top1], arms: [one, two]}
      - {file: by_lr.png, kind: by, x: lr, y: mean_top1, lines: {one: one, two: 'two*'}}
  - id: 2
    title: Three are better still
    arms: [three]
    columns: [mean_top1]
    claims:
      - {text: more accurate, measure: mean_top1, contrast: {three: 1, two: -1}, expect: positive}
"""
PLAN = """
output: x
command: c
groups: [{name: g, seeds: 0-3, runs: {one: {}, two: {}, three: {}}}]
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "findings.yaml").write_text(FINDINGS)
    (tmp_path / "plan.yaml").write_text(PLAN)
    for seed, top1 in enumerate((70.0, 72.0, 74.0)):
        write_run(tmp_path / "runs", "one", seed, top1=top1, train_loss=0.25, args={"lr": 0.1})
        write_run(tmp_path / "runs", "two", seed, top1=top1 + seed + 1, train_loss=0.5, models=2, args={"lr": 0.1})
        write_run(tmp_path / "runs", "two_fast", seed, top1=top1 + 4, train_loss=0.5, models=2, args={"lr": 0.4})
    return tmp_path


def call(runs: Path, *options: str) -> str:
    out = runs / "out"
    tables.main([str(runs / "runs"), "--findings", str(runs / "findings.yaml"), "--out", str(out), *options])
    return (out / "tables.md").read_text()


def cells(text: str, *begin: str) -> list[str]:
    """The cells of the row that begins so."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    (row,) = [row for row in rows if tuple(row[: len(begin)]) == begin]
    return row[len(begin) :]


def test_the_report_has_means_deviations_errors_and_verdicts(runs: Path) -> None:
    text = call(runs)
    # Differences 1.5, 2.5, 3.5: mean 2.5, own error 1 / sqrt(3). Residuals of the three arms in the outer seeds are
    # 1/3, -2/3, 1/3, with 4 degrees of freedom. One model alone has a third of them, too few: the variance is that of
    # all, 4/3 by 4. Standard error sqrt(2 / 3 / 3), t = 2.776.
    formula = "mean_top1: two - one"
    assert cells(text, "1", "higher accuracy", formula) == [
        *("+2.50", "0.47 (all arms; own 0.58)", "+1.19 to +3.81", "3", "**seen**")
    ]
    assert cells(text, "2", "more accurate")[-2:] == ["0", "**not yet run**"]
    assert cells(text, "one") == ["3", "72.00 ± 2.00 (1.15)", "0.250 ± 0.000 (0.000)", ""]
    assert cells(text, "two")[-1] == "75.9" and "top-1 of model 0 (%), the paper's" in text
    assert "The paper: half a point" in text and "No runs of this finding's arms." in text


def test_a_plan_says_how_much_is_missing(runs: Path) -> None:
    text = call(runs, "--plan", str(runs / "plan.yaml"))
    assert cells(text, "1", "higher accuracy")[-2:] == ["3 of 4", "seen so far"]
    assert cells(text, "2", "more accurate")[-2:] == ["0 of 4", "**not yet run**"]
    assert cells(text, "three") == ["0 of 4", ""]


def test_a_failed_run_and_a_loss_that_is_no_number_are_told(runs: Path) -> None:
    failure = {"name": "three-s0", "arm": "three", "seed": 0, "failed": 1}
    for arm, seed in (("two", 3), ("three", 0)):
        write_raw_summary(runs / "runs" / f"{arm}-s{seed}.json", failure | {"arm": arm, "seed": seed})
    summary = json.loads((runs / "runs/one-s2/summary.json").read_text())
    summary["models"][0]["history"][-1]["train_loss"] = math.nan
    (runs / "runs/one-s2/summary.json").write_text(json.dumps(summary))
    text = call(runs, "--plan", str(runs / "plan.yaml"))
    assert cells(text, "1", "higher accuracy")[-2:] == ["3 of 4, 1 failed", "**seen**"], "all have been tried"
    assert cells(text, "2", "more accurate")[-2] == "0 of 4, 2 failed"
    assert cells(text, "two")[0] == "3 of 4, 1 failed" and cells(text, "three")[0] == "0 of 4, 1 failed"
    assert cells(text, "one")[2] == "0.250 ± 0.000 (0.000), 1 without"


def test_a_page_with_a_mark_keeps_what_is_before_it(runs: Path) -> None:
    page = runs / "out" / "README.md"
    page.parent.mkdir()
    page.write_text(f"By hand.\n{tables.MARK}\nold")
    options = [str(runs / "runs"), "--findings", str(runs / "findings.yaml"), "--out", str(page.parent)]
    tables.main(options)
    first = page.read_text()
    tables.main(options)
    assert page.read_text() == first and first.startswith(f"By hand.\n{tables.MARK}\n\n|") and "old" not in first


def test_figures_are_drawn_and_read_without_colour(runs: Path) -> None:
    call(runs)
    for name in ("curves.png", "by_lr.png"):
        with Image.open(runs / "out" / "figures" / name) as picture:
            grey = picture.convert("L")
        assert grey.getextrema()[0] < 100 and ImageChops.invert(grey).getbbox() is not None


def test_a_figure_has_a_line_of_its_own_for_each_arm(runs: Path) -> None:
    loaded = load_runs(runs / "runs")
    curves = draw_curves(loaded, keys=["train/loss"], arms=["one", "two"])
    assert curves is not None
    lines = curves.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["one", "two"]
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 2
    for arm, line in zip(("one", "two"), lines, strict=True):
        assert list(line.get_ydata()) == mean_curve(loaded.curves, arm, "train/loss")["mean"].to_list()
        assert list(line.get_xdata()) == list(UPDATES)


def test_a_method_looks_the_same_in_all_figures() -> None:
    methods = ["*all_reduce", "*all_reduce_adjusted", "*codistilled"]
    assert styles_of(["all_reduce", "codistilled", "alone", "all_reduce_adjusted"], methods) == [0, 2, 3, 1]
    assert styles_of(["n3_codistilled", "x"], methods) == [2, 3]
    assert styles_of(["k1_codistilled", "k2_codistilled", *"abcdefgh"], methods) == [2, 3, 4, 5, 6, 7, 0, 1, 8, 9]
    assert styles_of("abc", ()) == [0, 1, 2]


def test_lines_are_drawn_in_the_style_of_their_method(runs: Path) -> None:
    loaded = load_runs(runs / "runs")
    curves = draw_curves(loaded, keys=["train/loss"], arms=["one", "two"], methods=["two", "one"])
    by = draw_by(loaded, x="lr", y="top1", lines={"named otherwise": "two*"}, methods=["three", "two*"])
    assert curves is not None and by is not None
    first, second = (line.get_marker() for line in curves.axes[0].get_lines())
    assert (second, first) == tuple(style["marker"] for style in STYLES[:2])
    assert by.axes[0].containers[0].lines[0].get_marker() == STYLES[1]["marker"]


def test_lines_differ_in_style_and_marker() -> None:
    assert len({(str(style["linestyle"]), style["marker"]) for style in STYLES}) == len(STYLES)
    assert len({style["marker"] for style in STYLES}) == len(STYLES)


def test_curves_are_means_over_seeds(runs: Path) -> None:
    frame = mean_curve(load_runs(runs / "runs").curves, "one", "valid/top1")
    assert frame.index.to_list() == list(UPDATES)
    assert frame["mean"].to_list() == [42, 52, 62, 72] and frame["seeds"].to_list() == [3] * 4


def test_the_axis_of_an_accuracy_shows_the_end_of_the_run(runs: Path) -> None:
    curves = draw_curves(load_runs(runs / "runs"), keys=["valid/top1"], arms=["one"])  # 42, 52, 62, 72
    assert curves is not None and curves.axes[0].get_ylim() == pytest.approx((60.5, 73.5))


def test_a_line_is_interrupted_where_another_one_has_a_place_that_it_lacks() -> None:
    rows = [("a", 1, 70.0), ("a", 2, 71.0), ("a", 4, 72.0), ("b", 1, 60.0), ("b", 4, 61.0), ("c", 4, 50.0)]
    table = pandas.DataFrame([{"arm": f"{arm}{x}", "seed": 0, "x": x, "m": m} for arm, x, m in rows])
    runs = Runs(table, pandas.DataFrame())
    figure = draw_by(runs, x="x", y="m", lines={"a": "a*", "b": "b*", "c": "c*"})
    assert figure is not None
    (axis,) = figure.axes
    drawn = [numpy.asarray(container.lines[0].get_ydata(), dtype=float) for container in axis.containers]
    nan = math.nan
    for values, expected in zip(drawn, ([70, 71, 72], [60, nan, 61], [nan, nan, 50]), strict=True):
        numpy.testing.assert_array_equal(values, expected)
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "2", "4"]
    assert draw_by(runs, x="x", y="m", lines={"c": "c*", "one of a": "a1"}) is None, "one point a line compares nothing"


def test_a_figure_that_is_no_more_drawn_is_removed(runs: Path) -> None:
    call(runs)
    for path in (runs / "runs").glob("two_fast-*"):
        shutil.rmtree(path)
    assert "by_lr.png" not in call(runs) and not (runs / "out/figures/by_lr.png").exists()


def test_nothing_to_draw_is_no_figure(runs: Path) -> None:
    loaded = load_runs(runs / "runs")
    assert draw_curves(loaded, keys=["unknown"], arms=["one"]) is None
    assert draw_by(loaded, x="unknown", y="top1", lines={"a": "one"}) is None
