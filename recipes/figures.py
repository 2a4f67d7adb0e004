"""Figures that can be read in black and white: lines differ in style, marker and shade."""

from __future__ import annotations

import fnmatch
import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib
import numpy
import pandas

from recipes.frames import Runs, by_arm

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogFormatter  # noqa: E402

# Told apart without colour; with it, a palette that colour-blind readers can use (Okabe and Ito).
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#0072B2", "linestyle": "-.", "marker": "^"},
    {"color": "#009E73", "linestyle": ":", "marker": "D"},
    {"color": "#CC79A7", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": "#7F7F7F", "linestyle": (0, (1, 1)), "marker": "x"},
    {"color": "#56B4E9", "linestyle": (0, (8, 3)), "marker": "P"},
    {"color": "#E69F00", "linestyle": (0, (3, 1, 1, 1)), "marker": "*"},
)
MARKERS_A_LINE = 8
BESIDE = 1.025  # of a point to the same point of the next line
LETTERS_A_LINE = 36  # of a label beside a panel
LABELS = {
    "train/loss": "training loss (task)",
    "train/nll_loss": "training NLL",
    "train/codistill_loss": "codistillation loss",
    "train/top1": "training top-1 (%)",
    "train/lr": "learning rate",
    "train/weight_decay": "weight decay",
    "train/alpha": "alpha",
    "train/distance_from_start": "distance from the initial weights",
    "train/bytes_sent": "bytes sent",
    "staleness": "staleness (updates)",
    "valid/top1": "validation top-1 (%)",
    "valid/loss": "validation loss",
    "valid/nll_loss": "validation NLL",
    "valid/agreement": "agreement of the models",
    "valid/ensemble_top1": "top-1 of the ensemble (%)",
    "mean_top1": "top-1, mean of the models (%)",
    "top1": "top-1 of model 0 (%)",
    "ensemble_top1": "top-1 of the ensemble (%)",
    "train_loss": "training loss in the last epoch, mean of the models",
    "mean_valid_loss": "validation loss, mean of the models",
    "distance_from_start": "distance from the initial weights, mean of the models",
    "mean_valid_nll": "validation NLL at the end, mean of the models (bits)",
    "mean_best_valid_nll": "validation NLL at its best, mean of the models (bits)",
    "mean_bleu": "BLEU, mean of the models",
    "ensemble_bleu": "BLEU of the ensemble",
    "bleu": "BLEU of model 0",
    "train_fraction": "part of the training data",
    "mean_train_nll": "training NLL at the end, mean of the models (bits)",
    "valid_nll": "validation NLL at the end, model 0 (bits)",
    "best_valid_nll": "validation NLL at its best, model 0 (bits)",
    "best_update": "update of model 0's best",
    "mb_sent": "MB between models, whole run",
    "run_seconds": "seconds of the run",
    "peak_lr": "learning rate, behind the warm-up",
    "images_a_worker": "images a worker",
    "images_an_update": "images an update, of all workers",
    "codistill_alpha": "alpha",
    "codistill_period": "period (updates)",
    "codistill_models": "models",
    "codistill_distill_every": "codistillation term every ... updates",
    "codistill_topk": "outputs sent (top-k)",
}


def label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def panels(count: int, *, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels; the places left over are empty."""
    columns = 2 if count == 4 else min(columns, count)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.6 * columns, 3.6 * rows), layout="constrained")
    flat = [axes] if count == 1 else list(axes.flat)
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat[:count]


def styles_of(arms: Iterable[str], methods: Sequence[str]) -> list[int]:
    """The place in ``STYLES`` of each arm: that of the first method (a pattern, ``*all_reduce``) that it matches.

    So a method looks the same in all figures. Other arms, and a method's second one, take the styles that are left.
    """
    matches = ([at for at, method in enumerate(methods) if fnmatch.fnmatchcase(arm, method)] for arm in arms)
    wanted = [places[0] if places else None for places in matches]
    own = [None if place in wanted[:at] else place for at, place in enumerate(wanted)]
    places = itertools.chain(range(len(methods), len(STYLES)), range(len(methods)), itertools.count(len(STYLES)))
    free = (place for place in places if place not in own)
    return [next(free) if place is None else place for place in own]


def line(axis: Axes, xs: Sequence[float], ys: Sequence[float], index: int, name: str) -> None:
    """A line in the style of its place; markers here and there, not at the same places as its neighbours'."""
    every = max(1, len(xs) // MARKERS_A_LINE)
    style = STYLES[index % len(STYLES)]
    axis.plot(xs, ys, label=name, markersize=4, markevery=(index % every, every), linewidth=1.4, **style)


class _PlainNumbers(LogFormatter):
    """As one says them: 0.1, and 6 and not 6 times ten to the 0."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def log_scale(axis: Axes) -> None:
    axis.set_yscale("log")
    for set_formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        set_formatter(_PlainNumbers(labelOnlyBase=False))


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # so that the same runs give the same file
    pyplot.close(figure)


def matching(arms: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Arms in the order of the patterns (``less_data_*``) that they match."""
    known = list(dict.fromkeys(arms))
    found = [arm for pattern in patterns for arm in known if fnmatch.fnmatchcase(arm, pattern)]
    return list(dict.fromkeys(found))


def mean_curve(curves: pandas.DataFrame, arm: str, key: str) -> pandas.DataFrame:
    """Mean and standard error over seeds (of the mean over models), by update."""
    chosen = curves[(curves["arm"] == arm) & (curves["key"] == key)]
    seeds = chosen.groupby(["update", "seed"])["value"].mean()
    grouped = seeds.groupby("update")
    frame = pandas.DataFrame({"mean": grouped.mean(), "se": grouped.sem(), "seeds": grouped.count()})
    return frame[frame["seeds"] == frame["seeds"].max()] if len(frame) else frame


def draw_curves(runs: Runs, *, keys: Sequence[str], arms: Sequence[str], methods: Sequence[str] = ()) -> Figure | None:
    """A panel a key over the updates: the arms' means, with a band of one standard error. None without data."""
    known = [key for key in keys if key in set(runs.curves["key"])]
    chosen = matching(runs.table["arm"], arms)
    if not known or not chosen:
        return None
    figure, axes = panels(len(known))
    styles = styles_of(chosen, methods)
    for axis, key in zip(axes, known, strict=True):
        for index, arm in zip(styles, chosen, strict=True):
            frame = mean_curve(runs.curves, arm, key)
            line(axis, frame.index.to_list(), frame["mean"].to_list(), index, arm)
            low, high = frame["mean"] - frame["se"], frame["mean"] + frame["se"]
            axis.fill_between(frame.index, low, high, color=STYLES[index % len(STYLES)]["color"], alpha=0.15)
        axis.set(xlabel="update", title=label(key))
        if "loss" in key:
            log_scale(axis)
        if key.endswith("top1"):
            _show_end(axis)
    axes[0].legend(fontsize="small")
    return figure


def _show_end(axis: Axes) -> None:
    """Begin the axis where the second half of the run does: accuracies of arms differ little beside what all gained."""
    lines = [numpy.asarray(drawn.get_ydata(), dtype=float) for drawn in axis.get_lines()]
    ends = [values[len(values) // 2 :] for values in lines if len(values) > 1]
    if ends:
        low, high = min(float(end.min()) for end in ends), max(float(end.max()) for end in ends)
        margin = 0.15 * (high - low) or 1.0
        axis.set_ylim(low - margin, high + margin)


def draw_by(
    runs: Runs, *, x: str, y: str, lines: Mapping[str, str | Sequence[str]], methods: Sequence[str] = ()
) -> Figure | None:
    """A figure over an option: a line for each set of arms, with standard errors. None where nothing can be compared.

    Where a set lacks a place that another has, its line is interrupted; and the sets stand a little beside each other.
    """
    sets, firsts = {}, []
    for name, patterns in lines.items():
        arms = matching(runs.table["arm"], [patterns] if isinstance(patterns, str) else patterns)
        firsts.append(arms[0] if arms else name)
        sets[name] = {place: (text, mean, se) for place, text, mean, se in _points(runs.table, arms, x, y)}
    if all(len(points) < 2 for points in sets.values()):
        return None
    figure, (axis,) = panels(1)
    ticks = dict(sorted((place, text) for points in sets.values() for place, (text, _, _) in points.items()))
    missing = ("", math.nan, math.nan)
    for index, (place, (name, points)) in enumerate(zip(styles_of(firsts, methods), sets.items(), strict=True)):
        if not points:
            continue
        style = {**STYLES[place % len(STYLES)], "markersize": 5, "capsize": 3, "linewidth": 1.4}
        beside = BESIDE ** (index - (len(sets) - 1) / 2)
        _, means, errors = zip(*(points.get(tick, missing) for tick in ticks), strict=True)
        axis.errorbar([tick * beside for tick in ticks], means, yerr=errors, label=name, **style)
    axis.set_xscale("log")
    axis.set_xticks(list(ticks), labels=list(ticks.values()))
    axis.minorticks_off()
    axis.set(xlabel=label(x), ylabel=textwrap.fill(label(y), LETTERS_A_LINE))
    axis.legend(fontsize="small")
    return figure


def _points(table: pandas.DataFrame, arms: Sequence[str], x: str, y: str) -> Iterator[tuple[float, str, float, float]]:
    """(place, its name, mean, standard error) of each arm."""
    if x not in table or y not in table:
        return
    chosen = table[table["arm"].isin(arms)]
    for arm, row in by_arm(chosen, y).iterrows():
        value = chosen[chosen["arm"] == arm][x].iloc[0]
        text = f"{value:g}" if isinstance(value, float) else str(value)
        yield float(Fraction(text)), text, row["mean"], 0.0 if row["seeds"] < 2 else row["se"]
