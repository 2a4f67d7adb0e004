"""Findings as data: what is claimed, in which runs it would show, and by which test; then what was seen.

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
(Noise), unless the contrast's own is plainly larger.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy
import pandas
import yaml
from scipy import stats

CONFIDENCE = 0.95
ENOUGH_SEEDS = 8  # for a contrast's own noise
ERRATIC = 10  # times the median variance within an arm: one that failed in some seeds says nothing about the others
FEW = 2  # degrees of freedom: too few for a variance of its own
ROUNDING = 1e-6
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

    ``pooled``: whether the noise is that of all arms.
    """

    mean: float
    se: float
    low: float
    high: float
    seeds: int
    verdict: Verdict
    pooled: bool = False


@dataclass(frozen=True)
class Noise:
    """Variance of a run's measure that neither its arm nor its seed explains.

    Args:
        sizes: how many models a run of an arm has. Runs of as many are as noisy: a mean of two models has less noise
            than one model.
        variances: by that number, with degrees of freedom.
        freedom: of all residuals.
    """

    sizes: Mapping[str, int]
    variances: Mapping[int, tuple[float, float]]
    freedom: float

    @classmethod
    def of(cls, table: pandas.DataFrame, measure: str, arms: Iterable[str]) -> Noise | None:
        """Residuals of a least-squares fit of an effect an arm and one a seed (of each part of the data), or None.

        Of all arms that are trained on as many data as one of ``arms``, since fewer data make more noise. An arm whose
        own variance is more than ``ERRATIC`` times the median one is left out. Runs of as many models that have less
        than ``FEW`` degrees of freedom among them have the variance of all.
        """
        if measure not in table:
            return None
        rows = table.dropna(subset=[measure])
        rows = rows.assign(
            part=rows["train_fraction"].astype(str) if "train_fraction" in rows else "",
            size=rows["codistill_models"].fillna(1).astype(int) if "codistill_models" in rows else 1,
        )
        sizes = dict(zip(rows["arm"], rows["size"], strict=True))
        rows = rows[rows["part"].isin(rows["part"][rows["arm"].isin(list(arms))])]
        if "name" in rows:
            rows = rows.drop_duplicates("name")  # an arm under two names is one run all the same
        variances = rows.groupby("arm")[measure].var()
        rows = rows[~(rows["arm"].map(variances) > ERRATIC * variances.median())]
        effects = {"arm": rows["arm"], "seed": rows["seed"].astype(str) + " " + rows["part"]}
        design = pandas.get_dummies(pandas.DataFrame(effects)).to_numpy(dtype=float)
        values = rows[measure].to_numpy(dtype=float)
        explained = design @ numpy.linalg.pinv(design)
        squares, free = (values - explained @ values) ** 2, 1 - numpy.diag(explained)
        if free.sum() < 1 - ROUNDING:
            return None
        total = float(free.sum())
        of_size = {}
        for size in set(sizes.values()):
            chosen = (rows["size"] == size).to_numpy()
            freedom = float(free[chosen].sum())
            enough = freedom >= FEW - ROUNDING
            of_size[size] = (float((squares[chosen] if enough else squares).sum()), freedom if enough else total)
        return cls(sizes, {size: (square / freedom, freedom) for size, (square, freedom) in of_size.items()}, total)

    def of_mean(self, contrast: Mapping[str, float], seeds: int) -> tuple[float, float]:
        """Standard error of a contrast's mean over seeds, with its degrees of freedom (Welch and Satterthwaite)."""
        parts: Counter[int] = Counter()
        for arm, weight in contrast.items():
            size = self.sizes[arm]
            parts[size] += weight**2 * self.variances[size][0] / seeds
        total = sum(parts.values())
        uncertain = sum(part**2 / self.variances[size][1] for size, part in parts.items())
        freedom = total**2 / uncertain if uncertain else sum(self.variances[size][1] for size in parts)
        return math.sqrt(total), min(freedom, self.freedom)  # the variance of all is of the same residuals as another


def read_findings(path: Path) -> list[Finding]:
    """
    Raises:
        ValueError: a finding or claim has an unknown key or lacks one.
    """
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return [_finding(entry) for entry in values["findings"]]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a list of findings as recipes/findings.py describes it: {error}") from error


def read_aliases(path: Path, datasets: Iterable[str]) -> dict[str, str]:
    """What arms are called as well, on those of the datasets that the file says it for:
    ``aliases: {imagenet: {data_k1_all_reduce: all_reduce}}``."""
    by_dataset: dict[str, dict[str, str]] = yaml.safe_load(path.read_text(encoding="utf-8")).get("aliases", {})
    return {alias: arm for name in datasets for alias, arm in by_dataset.get(name, {}).items()}


def _finding(entry: Mapping[str, Any]) -> Finding:
    claims = [Claim(**claim) for claim in entry.get("claims", [])]
    for claim in claims:
        if claim.expect not in ("positive", "negative", *_WITH_MARGIN) or (claim.expect in _WITH_MARGIN) != bool(
            claim.margin
        ):
            raise TypeError(f"claim {claim.text!r} expects positive, negative, or with a margin {_WITH_MARGIN}")
        if unknown := claim.measure_of.keys() - claim.contrast.keys():
            raise TypeError(f"claim {claim.text!r} has a measure of {sorted(unknown)}, which its contrast lacks")
    return Finding(**{**entry, "id": str(entry["id"]), "claims": claims})


def contrast_by_seed(table: pandas.DataFrame, claim: Claim) -> pandas.Series:
    """The contrast in each seed that has all of its arms."""
    columns = {}
    for arm in claim.contrast:
        measure = claim.measure_of.get(arm, claim.measure)
        if measure not in table:
            return pandas.Series(dtype=float)
        columns[arm] = table[table["arm"] == arm].set_index("seed")[measure]
    wide = pandas.DataFrame(columns).dropna()
    return sum((weight * wide[arm] for arm, weight in claim.contrast.items()), pandas.Series(0.0, index=wide.index))


def examine(table: pandas.DataFrame, claim: Claim) -> Result:
    """Mean, interval and verdict of a claim; of one seed there is no more than its difference."""
    values = contrast_by_seed(table, claim)
    seeds = len(values)
    mean = float(values.mean()) if seeds else math.nan
    if seeds < 2:
        verdict: Verdict = "one seed" if seeds else "not yet run"
        return Result(mean=mean, se=math.nan, low=math.nan, high=math.nan, seeds=seeds, verdict=verdict)
    se, freedom, pooled = float(values.sem()), float(seeds - 1), False
    few = seeds < ENOUGH_SEEDS and claim.measure.endswith("top1") and not claim.measure_of
    noise = Noise.of(table, claim.measure, claim.contrast) if few else None
    if noise is not None:
        common, more = noise.of_mean(claim.contrast, seeds)
        if more > freedom and se <= common * math.sqrt(stats.f.ppf(CONFIDENCE, freedom, more)):
            se, freedom, pooled = common, more, True
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * se
    verdict = judge(claim, mean - half, mean + half)
    return Result(mean=mean, se=se, low=mean - half, high=mean + half, seeds=seeds, verdict=verdict, pooled=pooled)


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
