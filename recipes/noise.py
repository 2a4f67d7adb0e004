"""How much runs of one arm differ for no reason, from the runs of all arms: three seeds of one say little of it.

A measure of a run is the effect of its arm, and that of its seed, which all arms share: both are fitted. What is left
has two sources. One is shared by the runs of a *method* with the same seed (one model, codistilled models, models
without the term): arms that differ in a late part of a schedule alone are one run until then, and a pair of models that
teach each other has its luck together. It cancels between two arms of a method and counts fully between two methods.
The other is each run's own, and is another one for one model than for a mean of several. Their variances are those that
would give the observed sums of squares on average (Henderson's and Rao's quadratic estimators); for balanced runs they
are those of the analysis of variance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import pandas
from numpy.typing import NDArray
from pandas.api.typing import SeriesGroupBy
from scipy import stats

ERRATIC = 0.999  # confidence that an arm varies more than the others: a run that failed says nothing about these
FEW = 2  # degrees of freedom: too few for a variance of its own
ROUNDING = 1e-6
Matrix = NDArray[numpy.float64]


@dataclass(frozen=True)
class Noise:
    """Of a contrast's mean over seeds.

    Args:
        variance: the square of its standard error.
        freedom: degrees of freedom of that (Satterthwaite), at most those of all residuals.
    """

    variance: float
    freedom: float

    @property
    def se(self) -> float:
        return math.sqrt(self.variance)

    @classmethod
    def of(cls, table: pandas.DataFrame, measure: str, contrast: Mapping[str, float], seeds: int) -> Noise | None:
        """From the runs of all arms with as many data as an arm of the contrast has, or None.

        Fewer data make more noise, so each part of the data has variances of its own. An arm that is erratic among
        those of its part is left out. There is none if too little is left, or if the weights of a part of the data do
        not add up to 0, since the seeds' own effect would then be in the contrast.
        """
        if measure not in table:
            return None
        rows = _with_columns(table.dropna(subset=[measure]))
        arms = rows.drop_duplicates("arm").set_index("arm")
        if not set(contrast) <= set(arms.index):
            return None
        if "name" in rows:
            rows = rows.drop_duplicates("name")  # an arm under two names is one run all the same
        variance = uncertainty = freedom = 0.0
        for part, names in arms.loc[list(contrast)].groupby("part").groups.items():
            weights = pandas.Series({arm: contrast[arm] for arm in names}, dtype=float)
            if abs(weights.sum()) > ROUNDING:
                return None
            of_part = rows[rows["part"] == part]
            estimate = _estimate(of_part[~of_part["arm"].isin(_erratic(of_part.groupby("arm")[measure]))], measure)
            if estimate is None:
                return None
            factors = estimate.factors(weights, arms) / seeds
            variance += float(factors @ estimate.variances)
            uncertainty += float(factors @ estimate.covariance @ factors)
            freedom += estimate.freedom
        return cls(variance, min(2 * variance**2 / uncertainty, freedom) if uncertainty else freedom)


def _with_columns(table: pandas.DataFrame) -> pandas.DataFrame:
    """Add what decides how runs vary: ``part`` of the data, ``several`` models or one, ``method``."""
    models = table["codistill_models"].fillna(1).astype(int) if "codistill_models" in table else 1
    coupled = True
    if "codistill_alpha" in table:
        coupled = pandas.to_numeric(table["codistill_alpha"], errors="coerce").ne(0)  # a schedule is no number
    table = table.assign(
        part=table["train_fraction"].astype(str) if "train_fraction" in table else "", several=models, coupled=coupled
    )
    table["several"] = table["several"] > 1
    return table.assign(method=table["several"].astype(str) + (table["several"] & table["coupled"]).astype(str))


@dataclass(frozen=True)
class _Estimate:
    """Variances of one part of the data by source, with their covariances.

    ``sources``: of ``_SOURCES``; ``freedom``: of all residuals.
    """

    sources: Sequence[str]
    variances: Matrix
    covariance: Matrix
    freedom: float

    def factors(self, weights: pandas.Series, arms: pandas.DataFrame) -> Matrix:
        """How often each source's variance is in that of a contrast in one seed."""
        several = arms["several"].loc[weights.index]
        of_method = weights.groupby(arms["method"].loc[weights.index]).sum()
        found = {
            "one": (weights[~several] ** 2).sum(),
            "several": (weights[several] ** 2).sum(),
            "each": (weights**2).sum(),
            "method": (of_method**2).sum(),
        }
        return numpy.array([found[source] for source in self.sources], dtype=float)


# The first of which the runs say enough, and which is nowhere negative.
_SOURCES = (("one", "several", "method"), ("each", "method"), ("one", "several"), ("each",))


def _estimate(rows: pandas.DataFrame, measure: str) -> _Estimate | None:
    effects = pandas.get_dummies(pandas.DataFrame({"arm": rows["arm"], "seed": rows["seed"].astype(str)}))
    design = effects.to_numpy(dtype=float)
    residual = numpy.eye(len(rows)) - design @ numpy.linalg.pinv(design)  # projects onto what they leave
    freedom = float(numpy.trace(residual))
    if freedom < 1 - ROUNDING:
        return None
    values = residual @ rows[measure].to_numpy(dtype=float)
    several = rows["several"].to_numpy(dtype=bool)
    group = (rows["method"] + " " + rows["seed"].astype(str)).to_numpy()
    shapes = {
        "one": numpy.diag(~several).astype(float),
        "several": numpy.diag(several).astype(float),
        "each": numpy.eye(len(rows)),
        "method": (group[:, None] == group[None, :]).astype(float),
    }
    for sources in _SOURCES:
        estimate = _solve(sources, [shapes[source] for source in sources], residual, values, freedom)
        if estimate is not None:
            return estimate
    return None


def _solve(
    sources: Sequence[str], shapes: Sequence[Matrix], residual: Matrix, values: Matrix, freedom: float
) -> _Estimate | None:
    """Sums of squares are on average a linear function of the variances: solve it for these."""
    own = [shape for source, shape in zip(sources, shapes, strict=True) if source in ("one", "several")]
    if any(numpy.trace(residual @ shape) < FEW - ROUNDING for shape in own):
        return None
    squares = [residual @ shape @ residual for shape in shapes]
    system = numpy.array([[numpy.trace(square @ shape) for shape in shapes] for square in squares])
    if numpy.linalg.matrix_rank(system, tol=ROUNDING) < len(shapes):
        return None
    inverse = numpy.linalg.inv(system)
    variances = inverse @ [values @ shape @ values for shape in shapes]
    if len(sources) > 1 and variances.min() <= 0:
        return None
    total = sum(variance * shape for variance, shape in zip(variances, shapes, strict=True))
    spread = numpy.array([[2 * numpy.trace(a @ total @ b @ total) for a in squares] for b in squares])
    return _Estimate(sources, variances, inverse @ spread @ inverse, freedom)


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
