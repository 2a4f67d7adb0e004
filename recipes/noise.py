"""How much runs of one arm differ for no reason, from the runs of all arms: three seeds of one say little of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy
import pandas
from pandas.api.typing import SeriesGroupBy
from scipy import stats

ERRATIC = 0.999  # confidence that an arm varies more than the others: a run that failed says nothing about these
FEW = 2  # degrees of freedom: too few for a variance of its own
ROUNDING = 1e-6


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

        Of all arms that are trained on as many data as one of ``arms``, since fewer data make more noise. An arm that
        is erratic is left out. Runs of as many models that have less than ``FEW`` degrees of freedom among them have
        the variance of all.
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
        rows = rows[~rows["arm"].isin(_erratic(rows.groupby("arm")[measure]))]
        effects = {"arm": rows["arm"], "seed": rows["seed"].astype(str) + " " + rows["part"]}
        design = pandas.get_dummies(pandas.DataFrame(effects)).to_numpy(dtype=float)
        values = rows[measure].to_numpy(dtype=float)
        explained = design @ numpy.linalg.pinv(design)
        squares, free = (values - explained @ values) ** 2, 1 - numpy.diag(explained)
        if free.sum() < 1 - ROUNDING:
            return None
        variances = {}
        for size in set(sizes.values()):
            chosen = (rows["size"] == size).to_numpy()
            if free[chosen].sum() < FEW - ROUNDING:
                chosen = numpy.ones_like(chosen)
            freedom = float(free[chosen].sum())
            variances[size] = (float(squares[chosen].sum()) / freedom, freedom)
        return cls(sizes, variances, float(free.sum()))

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


def _erratic(by_arm: SeriesGroupBy) -> list[str]:
    """Arms whose variance is beyond chance larger than that of the others together (F test), the largest first.

    A multiple of the median variance would not do: variances of two or three seeds differ a hundredfold by chance.
    """
    found: list[str] = []
    squares, freedom = by_arm.var() * (by_arm.count() - 1), by_arm.count() - 1
    squares, freedom = squares[freedom > 0], freedom[freedom > 0]
    while len(squares) > 1:
        arm = (squares / freedom).idxmax()
        others, others_freedom = squares.drop(arm), freedom.drop(arm)
        limit = stats.f.ppf(ERRATIC, freedom[arm], others_freedom.sum())
        ratio = squares[arm] / freedom[arm] * others_freedom.sum()
        if not others.sum() or ratio <= limit * others.sum():
            break
        found.append(arm)
        squares, freedom = others, others_freedom
    return found
