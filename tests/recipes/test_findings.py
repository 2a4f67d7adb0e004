"""Contrasts over paired seeds and what they say, against closed forms."""

import json
import math
from pathlib import Path

import numpy
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


def close(noise: Noise | None, variance: float, freedom: float) -> bool:
    return noise is not None and (noise.variance, noise.freedom) == pytest.approx((variance, freedom))


def test_the_noise_of_all_arms_is_what_arms_and_seeds_do_not_explain() -> None:
    # Two arms, three seeds: effects of both and a residual of +-d in the first two seeds, 2 degrees of freedom.
    d = 0.3
    arms = table(a=[1.0 + d, 2.0 - d, 3.0], b=[5.0 - d, 6.0 + d, 7.0])
    assert close(Noise.of(arms, "m", {"a": 1, "b": -1}, 1), 2 * 4 * d**2 / 2, 2)
    assert close(Noise.of(arms, "m", {"a": 1, "b": -1}, 3), 2 * 4 * d**2 / 2 / 3, 2)
    assert Noise.of(arms, "m", {"a": 1}, 1) is None, "the effect of the seed is in it"
    assert Noise.of(arms[arms["seed"] == 0], "m", {"a": 1, "b": -1}, 1) is None
    assert Noise.of(arms, "m", {"a": 1, "z": -1}, 1) is None and Noise.of(arms, "n", {"a": 1, "b": -1}, 1) is None


def test_means_of_two_models_have_a_noise_of_their_own() -> None:
    """Four arms, residuals +-d of the first two and +-e of the others. An arm's mean over the seeds and a seed's mean
    over the arms carry the noise of others along: on average the sums of squares 4d^2 and 4e^2 are 2.5 times the own
    variance and 0.5 times the other one."""
    d, e = 0.6, 0.5
    arms = table(a=[d, -d, 0.0], b=[-d, d, 0.0], c=[5 + e, 5 - e, 5.0], p=[5 - e, 5 + e, 5.0])
    arms["codistill_models"] = arms["arm"].map({"a": 1, "b": 1, "c": 2, "p": 2})
    one, several = (numpy.linalg.inv([[2.5, 0.5], [0.5, 2.5]]) @ [4 * d**2, 4 * e**2]).tolist()
    for contrast, variance in (
        ({"a": 1, "b": -1}, 2 * one),
        ({"c": 1, "p": -1}, 2 * several),
        ({"a": 1, "c": -1}, one + several),
    ):
        noise = Noise.of(arms, "m", contrast, 3)
        assert noise is not None and noise.variance == pytest.approx(variance / 3)
    seed_0 = arms[(arms["codistill_models"] == 1) | (arms["seed"] == 0)]  # too few pairs to say anything of them
    assert close(Noise.of(seed_0, "m", {"a": 1, "b": -1}, 1), 2 * 4 * d**2 / 2, 2)
    assert close(Noise.of(seed_0, "m", {"a": 1, "c": -1}, 1), 2 * 4 * d**2 / 2, 2)


def methods(x: float, d: float) -> pandas.DataFrame:
    """Two methods of two arms each: +-x is shared by a method's arms, +-d is an arm's own."""
    a, b = [1 + x, 1 - x, 1.0], [5 - x, 5 + x, 5.0]
    own = [d, d, -2 * d]
    arms = table(
        a1=[v + o for v, o in zip(a, own, strict=True)],
        a2=[v - o for v, o in zip(a, own, strict=True)],
        b1=[v + o for v, o in zip(b, own, strict=True)],
        b2=[v - o for v, o in zip(b, own, strict=True)],
    )
    return arms.assign(codistill_models=2, codistill_alpha=["1"] * 6 + ["0"] * 6)


def test_what_the_arms_of_a_method_share_cancels_among_them_and_counts_between_methods() -> None:
    """The analysis of variance: mean squares of methods by seeds, of 2 degrees of freedom, and within them, of 4."""
    x, d = 0.9, 0.2
    between, within = 4 * 2 * x**2 / 2, 4 * 6 * d**2 / 4
    arms = methods(x, d)
    assert close(Noise.of(arms, "m", {"a1": 1, "a2": -1}, 3), 2 * within / 3, 4)
    # A run varies by the variance of the methods, (between - within) / 2, and by its own.
    freedom = (between + within) ** 2 / (between**2 / 2 + within**2 / 4)
    assert close(Noise.of(arms, "m", {"a1": 1, "b1": -1}, 3), (between + within) / 3, freedom)
    of_means = {"a1": 0.5, "a2": 0.5, "b1": -0.5, "b2": -0.5}
    assert close(Noise.of(arms, "m", of_means, 3), between / 3, 2)
    of_differences = {"a1": 1, "a2": -1, "b1": -1, "b2": 1}
    assert close(Noise.of(arms, "m", of_differences, 3), 4 * within / 3, 4)


def test_methods_that_share_nothing_have_one_variance() -> None:
    x, d = 0.1, 0.9  # between methods less than within: a negative variance of theirs, which there is not
    freedom = 12 - 4 - 3 + 1
    assert close(Noise.of(methods(x, d), "m", {"a1": 1, "b1": -1}, 1), 2 * (8 * x**2 + 24 * d**2) / freedom, freedom)


def test_the_noise_of_few_unbalanced_runs_is_right_on_average() -> None:
    """Drawn 400 times: three methods of two arms, with three and with eight seeds, some missing."""
    generator = numpy.random.default_rng(3)
    own, shared, found = 0.3, 0.5, []
    for _ in range(400):
        rows = []
        for method, (models, alpha) in enumerate(((1, "1"), (2, "1"), (2, "0"))):
            together = shared * generator.standard_normal(8)
            for arm in range(2):
                for seed in range(8 if arm else 3 + method):
                    value = method + together[seed] + own * generator.standard_normal()
                    row = {"arm": f"{method}{arm}", "seed": seed, "m": value}
                    rows.append(row | {"codistill_models": models, "codistill_alpha": alpha})
        noise = Noise.of(pandas.DataFrame(rows), "m", {"00": 1, "10": -1}, 3)
        assert noise is not None
        found.append(noise.variance)
    # Its own error of 400 draws is about 2 %.
    assert numpy.mean(found) == pytest.approx(2 * (own**2 + shared**2) / 3, rel=0.08)


def test_few_seeds_of_an_accuracy_use_the_noise_of_all_arms() -> None:
    arms = table(a=[1.1, 1.9, 3.0], b=[0.0, 1.0, 2.0], c=[7.1, 8.0, 9.0], d=[4.0, 5.1, 6.0])
    arms = arms.rename(columns={"m": "top1"})
    wanted = Claim(text="c", measure="top1", contrast={"a": 1, "b": -1}, expect="positive")
    noise = Noise.of(arms, "top1", {"a": 1, "b": -1}, 3)
    assert noise is not None and noise.freedom == pytest.approx(12 - 4 - 3 + 1)
    result = examine(arms, wanted)
    assert result.pooled and result.se == pytest.approx(noise.se) and result.verdict == "seen"
    assert result.own_se == pytest.approx(0.1 / math.sqrt(3)), "of differences 1.1, 0.9, 1.0"


def test_the_noise_of_other_parts_of_the_data_is_another() -> None:
    """With 1/16 of the data the residuals are ten times as large: they are those of its contrasts alone."""
    large, small = ([size * value for value in (1.0, -1.0, 0.0)] for size in (1.0, 0.1))
    arms = table(
        a=[50 + r for r in large], b=[40 - r for r in large], c=[70 + r for r in small], d=[60 - r for r in small]
    )
    arms["train_fraction"] = arms["arm"].map({"a": "1/16", "b": "1/16", "c": "1/8", "d": "1/8"})
    variances = (2 * 4 * 1.0 / 2, 2 * 4 * 0.01 / 2)
    for names, variance in zip(("ab", "cd"), variances, strict=True):
        assert close(Noise.of(arms, "m", {names[0]: 1, names[1]: -1}, 1), variance, 2)
    # The difference of both has the noise of both, and hardly more degrees of freedom than the noisy one.
    freedom = sum(variances) ** 2 / sum(variance**2 / 2 for variance in variances)
    assert close(Noise.of(arms, "m", {"a": 1, "b": -1, "c": -1, "d": 1}, 1), sum(variances), freedom)
    assert Noise.of(arms, "m", {"a": 1, "c": -1}, 1) is None, "the seeds' effects are in it"


def test_an_arm_that_fails_in_one_seed_is_no_noise_of_the_others() -> None:
    values = {"a": [1.1, 1.9, 3.0], "b": [0.0, 1.0, 2.0], "c": [7.1, 8.0, 9.0], "d": [4.0, 5.1, 6.0]}
    with_failed = table(**values, e=[70.0, 71.0, 10.0])
    without = Noise.of(table(**values), "m", {"a": 1, "b": -1}, 3)
    assert without is not None
    assert Noise.of(with_failed, "m", {"a": 1, "b": -1}, 3) == without
    assert Noise.of(with_failed, "m", {"a": 1, "e": -1}, 3) == without


def test_of_two_seeds_an_arm_is_not_erratic_because_others_happen_to_be_close() -> None:
    """Differences of 0.02 to 0.65 in two seeds, as five arms once had them: variances that differ a thousandfold."""
    arms = table(a=[85.23, 85.01], b=[85.47, 85.44], c=[81.09, 80.44], d=[81.63, 81.64], e=[81.93, 81.90])
    noise = Noise.of(arms, "m", {"a": 1, "b": -1}, 2)
    few = Noise.of(arms[arms["arm"].isin(list("bde"))], "m", {"b": 1, "d": -1}, 2)
    assert noise is not None and few is not None
    assert noise.freedom == pytest.approx(4) and noise.se > 5 * few.se


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
    once = Noise.of(runs.table, "top1", {"one": 1, "two": -1}, 3)
    assert once is not None and Noise.of(twice.table, "top1", {"alias": 1, "two": -1}, 3) == once


def test_a_directory_without_runs_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither run directories"):
        load_runs(tmp_path)
