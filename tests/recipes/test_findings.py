"""Contrasts over paired seeds and what they say, against closed forms."""

import json
import math
from pathlib import Path

import pandas
import pytest

from recipes.findings import Claim, examine, judge, read_aliases, read_findings
from recipes.frames import about_directory, by_arm, load_runs
from recipes.noise import Noise
from recipes.runs import raw_summary, write_raw_summary
from tests.recipes.made_up import write_run


def table(**arms: list[float]) -> pandas.DataFrame:
    rows = [{"arm": arm, "seed": seed, "m": value} for arm, values in arms.items() for seed, value in enumerate(values)]
    return pandas.DataFrame(rows)


def claim(expect: str, margin: float = 0.0, **contrast: float) -> Claim:
    return Claim(text="c", measure="m", contrast=contrast, expect=expect, margin=margin)  # type: ignore[arg-type]


def test_a_contrast_is_paired_by_seed() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1; seed 3 has no partner.
    result = examine(table(a=[11.0, 22.0, 33.0, 99.0], b=[10.0, 20.0, 30.0]), claim("positive", a=1, b=-1))
    assert (result.mean, result.seeds) == (2.0, 3)
    assert result.se == pytest.approx(1 / math.sqrt(3))
    assert result.high - result.mean == pytest.approx(4.302653 / math.sqrt(3))  # t of 2 degrees of freedom, 97.5 %
    assert result.low < 0 and result.verdict == "not seen"


def test_a_contrast_may_be_of_differences() -> None:
    arms = table(a=[3.0, 4.0], b=[1.0, 2.0], c=[10.0, 10.5], d=[9.5, 10.0])
    result = examine(arms, claim("positive", a=1, b=-1, c=-1, d=1))
    assert result.mean == 1.5 and result.se == 0 and result.verdict == "seen"


@pytest.mark.parametrize(
    ("low", "high", "expect", "verdict"),
    [
        (0.1, 2.0, "positive", "seen"),
        (-0.1, 2.0, "positive", "not seen"),
        (-2.0, -0.1, "positive", "the opposite"),
        (-2.0, -0.1, "negative", "seen"),
        (0.1, 2.0, "negative", "the opposite"),
        (-0.4, 0.4, "zero", "seen"),
        (0.1, 0.4, "zero", "seen"),
        (-0.4, 0.6, "zero", "not seen"),
        (0.6, 0.9, "zero", "the opposite"),
        (-0.9, -0.6, "zero", "the opposite"),
        (-0.4, 3.0, "not negative", "seen"),
        (-0.6, 3.0, "not negative", "not seen"),
        (-0.9, -0.6, "not negative", "the opposite"),
    ],
)
def test_verdicts(low: float, high: float, expect: str, verdict: str) -> None:
    assert judge(claim(expect, margin=0.5 if expect in ("zero", "not negative") else 0.0, a=1), low, high) == verdict


def test_the_noise_of_all_arms_is_what_arms_and_seeds_do_not_explain() -> None:
    # Two arms, three seeds: effects of both and a residual of +-d in the first two seeds, 2 degrees of freedom.
    d = 0.3
    arms = table(a=[1.0 + d, 2.0 - d, 3.0], b=[5.0 - d, 6.0 + d, 7.0])
    noise = Noise.of(arms, "m", ["a"])
    assert noise is not None and noise.of_mean({"a": 1}, 1) == pytest.approx((math.sqrt(4 * d**2 / 2), 2))


def test_means_of_two_models_have_a_noise_of_their_own() -> None:
    """Four arms, residuals +-d of the first two and +-e of the others, each half of the 12 - 4 - 3 + 1 degrees."""
    d, e = 0.6, 0.2
    arms = table(a=[d, -d, 0.0], b=[-d, d, 0.0], c=[5 + e, 5 - e, 5.0], p=[5 - e, 5 + e, 5.0])
    arms["codistill_models"] = arms["arm"].map({"a": 1, "b": 1, "c": 2, "p": 2})
    noise = Noise.of(arms, "m", ["a", "c"])
    assert noise is not None
    assert noise.of_mean({"a": 1, "b": -1}, 3) == pytest.approx((math.sqrt(2 * 4 * d**2 / 3 / 3), 3))
    freedom = 3 * (d**2 + e**2) ** 2 / (d**4 + e**4)
    assert noise.of_mean({"a": 1, "c": -1}, 3) == pytest.approx((math.sqrt(4 * (d**2 + e**2) / 3 / 3), freedom))
    seed_0 = arms[(arms["codistill_models"] == 1) | (arms["seed"] == 0)]  # too few pairs to say anything of them
    alike = Noise.of(seed_0, "m", ["a", "c"])
    assert alike is not None and alike.of_mean({"a": 1}, 1) == pytest.approx(alike.of_mean({"c": 1}, 1))


def test_few_seeds_of_an_accuracy_use_the_noise_of_all_arms() -> None:
    arms = table(a=[1.1, 1.9, 3.0], b=[0.0, 1.0, 2.0], c=[7.1, 8.0, 9.0], d=[4.0, 5.1, 6.0])
    arms = arms.rename(columns={"m": "top1"})
    wanted = Claim(text="c", measure="top1", contrast={"a": 1, "b": -1}, expect="positive")
    noise = Noise.of(arms, "top1", ["a", "b"])
    assert noise is not None
    sd, freedom = noise.of_mean({"a": 1}, 1)
    assert freedom == pytest.approx(12 - 4 - 3 + 1)
    result = examine(arms, wanted)
    assert result.pooled and result.se == pytest.approx(sd * math.sqrt(2 / 3)) and result.verdict == "seen"


def test_the_noise_of_other_parts_of_the_data_is_another() -> None:
    """With 1/16 of the data the residuals are ten times as large: they are those of its contrasts alone."""
    large, small = ([size * value for value in (1.0, -1.0, 0.0)] for size in (1.0, 0.1))
    arms = table(
        a=[50 + r for r in large], b=[40 - r for r in large], c=[70 + r for r in small], d=[60 - r for r in small]
    )
    arms["train_fraction"] = arms["arm"].map({"a": "1/16", "b": "1/16", "c": "1/8", "d": "1/8"})
    for names, sd in (("ab", 1.0 * math.sqrt(2)), ("cd", 0.1 * math.sqrt(2))):
        noise = Noise.of(arms, "m", names)
        assert noise is not None and noise.of_mean({names[0]: 1}, 1) == pytest.approx((sd, 2))
    both = Noise.of(arms, "m", "ac")
    assert both is not None and both.of_mean({"a": 1}, 1) == pytest.approx((math.sqrt((2 * 2 + 2 * 0.02) / 4), 4))


def test_an_arm_that_fails_in_one_seed_is_no_noise_of_the_others() -> None:
    values = {"a": [1.1, 1.9, 3.0], "b": [0.0, 1.0, 2.0], "c": [7.1, 8.0, 9.0], "d": [4.0, 5.1, 6.0]}
    without, failed = (Noise.of(table(**values, **more), "m", "a") for more in ({}, {"e": [70.0, 71.0, 10.0]}))
    assert without is not None and failed is not None
    assert failed.of_mean({"e": 1}, 1) == pytest.approx(without.of_mean({"a": 1}, 1))


def test_of_two_seeds_an_arm_is_not_erratic_because_others_happen_to_be_close() -> None:
    """Differences of 0.02 to 0.65 in two seeds, as five arms once had them: variances that differ a thousandfold."""
    arms = table(a=[85.23, 85.01], b=[85.47, 85.44], c=[81.09, 80.44], d=[81.63, 81.64], e=[81.93, 81.90])
    noise, few = Noise.of(arms, "m", "a"), Noise.of(arms[arms["arm"].isin(list("bde"))], "m", "b")
    assert noise is not None and few is not None
    assert noise.freedom == pytest.approx(4) and noise.of_mean({"a": 1}, 1)[0] > 5 * few.of_mean({"b": 1}, 1)[0]


def test_a_contrast_that_is_plainly_noisier_keeps_its_own_noise() -> None:
    arms = table(
        a=[10.0, 20.0, 30.0], b=[9.0, 21.0, 33.0], **{f"x{i}": [i + 0.1 * i, i + 1, i + 2.0] for i in range(12)}
    )
    arms = arms.rename(columns={"m": "top1"})
    wanted = Claim(text="c", measure="top1", contrast={"a": 1, "b": -1}, expect="positive")
    result = examine(arms, wanted)
    assert not result.pooled and result.se == pytest.approx(2 / math.sqrt(3)), "of differences 1, -1, -3"


def test_of_one_seed_there_is_a_difference_and_no_verdict() -> None:
    result = examine(table(a=[1.0, 2.0], b=[0.5]), claim("positive", a=1, b=-1))
    assert (result.verdict, result.mean, result.seeds) == ("one seed", 0.5, 1)
    assert examine(table(a=[1.0, 2.0]), claim("positive", a=1, b=-1)).verdict == "not yet run"
    assert examine(table(a=[1.0, 2.0]), claim("positive", a=1, b=-1)).seeds == 0


def test_a_finding_with_a_mistake_is_named(tmp_path: Path) -> None:
    path = tmp_path / "findings.yaml"
    for wrong in ("{id: 1}", "{id: 1, title: t, arms: [], columns: [], claim: []}"):
        path.write_text(f"findings: [{wrong}]")
        with pytest.raises(ValueError, match="is not a list of findings"):
            read_findings(path)
    path.write_text(
        "findings: [{id: 1, title: t, arms: [], columns: [], claims: "
        "[{text: c, measure: m, contrast: {a: 1}, expect: zero}]}]"
    )
    with pytest.raises(ValueError, match="with a margin"):
        read_findings(path)
    path.write_text(
        "findings: [{id: 1, title: t, arms: [], columns: [], claims: "
        "[{text: c, measure: m, measure_of: {b: n}, contrast: {a: 1}, expect: positive}]}]"
    )
    with pytest.raises(ValueError, match=r"a measure of \['b'\], which its contrast lacks"):
        read_findings(path)


def test_a_frame_has_options_finals_and_means_over_models(tmp_path: Path) -> None:
    for seed, top1 in enumerate((70.0, 72.0, 74.0)):
        write_run(tmp_path, "two", seed, top1=top1, train_loss=0.5, models=2, args={"lr": 0.2})
    runs = load_runs(tmp_path)
    assert runs.table["top1"].to_list() == [70, 72, 74] and runs.table["mean_top1"].to_list() == [70.5, 72.5, 74.5]
    for column, value in {"lr": 0.2, "train_loss": 0.5, "mb_sent": 3}.items():
        assert set(runs.table[column]) == {value}
    (row,) = by_arm(runs.table, "top1").to_dict("records")
    assert row == {"mean": 72, "sd": 2, "se": pytest.approx(2 / math.sqrt(3)), "seeds": 3}
    points = runs.curves[(runs.curves["key"] == "valid/top1") & (runs.curves["name"] == "two-s0")]
    assert points[points["model"] == "model1"]["value"].to_list() == [41, 51, 61, 71]


def test_an_option_is_not_replaced_by_what_the_last_update_had(tmp_path: Path) -> None:
    directory = write_run(tmp_path, "one", 0, top1=70.0, train_loss=0.5, args={"lr": 0.1, "lr_scaling": "linear"})
    summary = json.loads((directory / "summary.json").read_text())
    summary["models"][0]["history"][-1]["lr"] = 0.0001
    summary["args"] |= {"batch_size": 64, "accumulate": 1}
    summary["work"] = {"batch_of_a_model": 512, "models": 1}
    (directory / "summary.json").write_text(json.dumps(summary))
    (row,) = load_runs(tmp_path).table.to_dict("records")
    assert row["lr"] == 0.1 and row["peak_lr"] == pytest.approx(0.2) and row["train_loss"] == 0.5


def test_an_arm_may_have_a_measure_of_its_own() -> None:
    rows = [{"arm": arm, "seed": seed, "m": 1.0 + seed, "other": 5.0} for arm in ("a", "b") for seed in range(3)]
    wanted = Claim(text="c", measure="m", measure_of={"b": "other"}, contrast={"a": 1, "b": -1}, expect="negative")
    result = examine(pandas.DataFrame(rows), wanted)
    assert (result.mean, result.seeds, result.pooled) == (-3.0, 3, False)


def test_an_arm_that_is_another_one_as_well(tmp_path: Path) -> None:
    write_run(tmp_path, "one", 0, top1=70.0, train_loss=0.5, args={"dataset": "imagenet"})
    path = tmp_path / "findings.yaml"
    path.write_text("aliases: {imagenet: {part_1: one, part_0: none}, cifar10: {part_8: one}}")
    runs = load_runs(tmp_path).with_aliases(read_aliases(path, ["imagenet"]))
    assert runs.table[["arm", "top1"]].to_numpy().tolist() == [["one", 70.0], ["part_1", 70.0]]
    assert set(runs.curves["arm"]) == {"one", "part_1"} and len(runs.curves) % 2 == 0


def test_runs_of_one_arm_with_other_options_are_not_averaged(tmp_path: Path) -> None:
    write_run(tmp_path, "one", 0, top1=70.0, train_loss=0.5, args={"max_updates": None, "seed": 0})
    write_run(tmp_path, "one", 1, top1=70.0, train_loss=0.5, args={"max_updates": 20, "seed": 1})
    with pytest.raises(ValueError, match="one-s0 and one-s1 are one arm .* have max_updates None and 20: move one"):
        load_runs(tmp_path)


def test_hardware_may_differ_and_a_run_may_not_be_there_twice(tmp_path: Path) -> None:
    for seed, (batch, accumulate) in enumerate(((32, 1), (16, 2))):
        args = {"batch_size": batch, "accumulate": accumulate, "seed": seed, "print_freq": batch}
        write_run(tmp_path, "one", seed, top1=70.0, train_loss=0.5, args=args)
    runs = load_runs(tmp_path)
    assert len(runs.table) == 2
    write_raw_summary(tmp_path / "one-s0.json", raw_summary(tmp_path / "one-s0", about_directory(tmp_path / "one-s0")))
    with pytest.raises(ValueError, match="there are two runs one-s0, or a run and its raw summary"):
        load_runs(tmp_path)


def test_noise_counts_a_run_under_two_names_once(tmp_path: Path) -> None:
    for arm in ("one", "two"):
        for seed in range(3):
            top1 = 70.0 + (seed == 1 and arm == "one")
            write_run(tmp_path, arm, seed, top1=top1, train_loss=0.5, args={"dataset": "imagenet"})
    runs = load_runs(tmp_path)
    twice = runs.with_aliases({"alias": "one", "two": "one"})  # the second is there already
    assert len(twice.table) == 9
    once, alias = Noise.of(runs.table, "top1", ["one"]), Noise.of(twice.table, "top1", ["alias"])
    assert once is not None and alias is not None and alias.variances == once.variances
    assert alias.of_mean({"alias": 1}, 3) == once.of_mean({"one": 1}, 3)


def test_a_directory_without_runs_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither run directories"):
        load_runs(tmp_path)
