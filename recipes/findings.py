"""Findings as data: what is claimed, in which runs it would show, and by which test; then what was seen.

    methods: ['*all_reduce', '*codistilled']  # which look the same in all figures (recipes/figures.py: styles_of)
    findings:
      - id: 1
        title: Out of the box, two codistilled models are over-regularised
        paper: higher training loss, weights closer to their initial values
        arms: [all_reduce, codistilled, 'alone*']
        columns: [mean_top1, train_loss]
        papers: {top1: {all_reduce: 76.1}}  # its figures, to stand beside ours
        papers_of: ResNet-50, ImageNet
        claims:
          - text: higher training loss
            measure: train_loss
            contrast: {codistilled: 1, all_reduce: -1}
            expect: positive                # or negative; with a margin zero, or not negative
            measure_of: {all_reduce: top1}  # an arm's own, where it is another one
        figures:
          - {file: curves.png, kind: curves, keys: [train/loss], arms: [all_reduce, codistilled]}
          - {file: k.png, kind: by, x: train_fraction, y: mean_top1, lines: {all_reduce: 'all_reduce_k*'}}

A claim is about a contrast: a sum of weighted arms, in each seed that all of them have. Paired by seed, because a seed
chooses the data and the initial weights of model 0. Its test is the confidence interval of 95 % by Student's t. Few
seeds say little about a contrast's own noise: that of accuracies is then taken from all arms on as many data together
(recipes/noise.py), unless the contrast's own is plainly larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas
import yaml
from scipy import stats

from recipes.noise import Noise

CONFIDENCE = 0.95
ENOUGH_SEEDS = 8  # for a contrast's own noise
_WITH_MARGIN = ("zero", "not negative")
Verdict = Literal["seen", "not seen", "the opposite", "not yet run", "one seed"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """``margin``: how far from zero still counts as none, in the measure's unit: for the claims of no difference.
    ``measure_of`` an arm whose measure is not that of the others.
    """

    text: str
    measure: str
    contrast: dict[str, float]
    expect: Literal["positive", "negative", "zero", "not negative"]
    margin: float = 0.0
    measure_of: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """``papers``: its figures by measure and arm, to stand beside ours; ``papers_of``: what it trained for them."""

    id: str
    title: str
    arms: list[str]
    columns: list[str]
    paper: str = ""
    note: str = ""
    papers: dict[str, dict[str, float]] = field(default_factory=dict)
    papers_of: str = ""
    claims: list[Claim] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Of a claim: mean and standard error of its contrast over ``seeds``, its confidence interval, and what it says.

    ``pooled``: whether the noise is that of all arms; ``own_se``: the contrast's own standard error in any case.
    """

    mean: float
    se: float
    low: float
    high: float
    seeds: int
    verdict: Verdict
    pooled: bool = False
    own_se: float = math.nan


def read_findings(path: Path) -> list[Finding]:
    """
    Raises:
        ValueError: a finding or claim has an unknown key or lacks one.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return [_finding(entry, values.get("methods", [])) for entry in values["findings"]]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a list of findings as recipes/findings.py describes it: {error}") from error


def read_aliases(path: Path, datasets: Iterable[str]) -> dict[str, str]:
    """What arms are called as well, on those of the datasets that the file says it for:
    ``aliases: {imagenet: {data_k1_all_reduce: all_reduce}}``."""
    by_dataset: dict[str, dict[str, str]] = yaml.safe_load(path.read_text(encoding="utf-8")).get("aliases", {})
    return {alias: arm for name in datasets for alias, arm in by_dataset.get(name, {}).items()}


def _finding(entry: Mapping[str, Any], methods: list[str]) -> Finding:
    claims = [Claim(**claim) for claim in entry.get("claims", [])]
    for claim in claims:
        if claim.expect not in ("positive", "negative", *_WITH_MARGIN) or (claim.expect in _WITH_MARGIN) != bool(
            claim.margin
        ):
            raise TypeError(f"claim {claim.text!r} expects positive, negative, or with a margin {_WITH_MARGIN}")
        if unknown := claim.measure_of.keys() - claim.contrast.keys():
            raise TypeError(f"claim {claim.text!r} has a measure of {sorted(unknown)}, which its contrast lacks")
    figures = [{"methods": methods, **figure} for figure in entry.get("figures", [])]
    return Finding(**{**entry, "id": str(entry["id"]), "claims": claims, "figures": figures})


def contrast_by_seed(table: pandas.DataFrame, claim: Claim) -> pandas.Series:
    """The contrast in each seed that has all of its arms; their measures are in one column (``_with_own_measures``)."""
    if claim.measure not in table:
        return pandas.Series(dtype=float)
    columns = {arm: table[table["arm"] == arm].set_index("seed")[claim.measure] for arm in claim.contrast}
    wide = pandas.DataFrame(columns).dropna()
    return sum((weight * wide[arm] for arm, weight in claim.contrast.items()), pandas.Series(0.0, index=wide.index))


def _with_own_measures(table: pandas.DataFrame, claim: Claim) -> pandas.DataFrame:
    """The claim's measure of each arm in one column, where the runs have it."""
    if not {claim.measure, *claim.measure_of.values()} <= set(table):
        return table.drop(columns=claim.measure, errors="ignore")
    values = table[claim.measure]
    for arm, measure in claim.measure_of.items():
        values = values.where(table["arm"] != arm, table[measure])
    return table.assign(**{claim.measure: values})


def examine(table: pandas.DataFrame, claim: Claim) -> Result:
    """Mean, interval and verdict of a claim; of one seed there is no more than its difference."""
    table = _with_own_measures(table, claim)
    values = contrast_by_seed(table, claim)
    seeds = len(values)
    mean = float(values.mean()) if seeds else math.nan
    if seeds < 2:
        verdict: Verdict = "one seed" if seeds else "not yet run"
        return Result(mean=mean, se=math.nan, low=math.nan, high=math.nan, seeds=seeds, verdict=verdict)
    own = se = float(values.sem())
    freedom, pooled = float(seeds - 1), False
    few = seeds < ENOUGH_SEEDS and claim.measure.endswith("top1")
    noise = Noise.of(table, claim.measure, claim.contrast, seeds) if few else None
    if noise is not None and noise.freedom > freedom:
        if own <= noise.se * math.sqrt(stats.f.ppf(CONFIDENCE, freedom, noise.freedom)):
            se, freedom, pooled = noise.se, noise.freedom, True
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * se
    verdict = judge(claim, mean - half, mean + half)
    return Result(
        mean=mean, se=se, low=mean - half, high=mean + half, seeds=seeds, verdict=verdict, pooled=pooled, own_se=own
    )


def judge(claim: Claim, low: float, high: float) -> Verdict:
    """What a confidence interval says of a claim. With a margin: that it is inside of it, or wholly outside."""
    if claim.expect == "not negative":
        low, high = low + claim.margin, high + claim.margin
    if claim.expect == "zero":
        if -claim.margin < low and high < claim.margin:
            return "seen"
        return "the opposite" if low > claim.margin or high < -claim.margin else "not seen"
    if claim.expect == "negative":
        low, high = -high, -low
    if low > 0:
        return "seen"
    return "the opposite" if high < 0 else "not seen"
