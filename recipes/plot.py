"""Am I over-regularising? What one run shows of it, beside runs that it is compared with.

    python -m recipes.plot RUN --against OTHER_RUN --out curves.png

RUN is a run directory of either trainer: its metrics.jsonl is read, while it is being written too. A good run to
compare with is the same without the term (--codistill-alpha 0), or plain data parallelism on as many workers.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from recipes.figures import LABELS, line, log_scale, panels, save
from recipes.runs import Curve, read_curves

# Of each panel, the keys that may be in it: the first one that a run has.
PANELS: tuple[tuple[str, ...], ...] = (
    ("train/nll_loss", "train/loss"),
    ("train/codistill_loss",),
    ("valid/nll_loss", "valid/loss"),
    ("valid/top1",),
    ("train/distance_from_start",),
    ("staleness",),
    ("train/lr",),
    ("train/weight_decay",),
    ("train/bytes_sent",),
)
_FROM_ZERO = ("staleness", "train/weight_decay", "train/bytes_sent", "train/distance_from_start")
ENDING = 0.1  # the last part of a run that its final figures are means of
NOISE = 0.02  # of a figure: a smaller difference between two runs says nothing
_STALENESS = re.compile(r"(model\d+)/staleness/\d+")


@dataclass(frozen=True)
class View:
    """A run's curves by key and model: ``curves["valid/top1"]["model0"]``."""

    name: str
    curves: Mapping[str, Mapping[str, Curve]]

    @classmethod
    def of(cls, directory: Path) -> View:
        """
        Raises:
            FileNotFoundError: it has no metrics.jsonl.
        """
        curves: dict[str, dict[str, Curve]] = {}
        for key, curve in read_curves(directory / "metrics.jsonl").items():
            stale = _STALENESS.fullmatch(key)
            model, _, name = key.partition("/")
            if stale:  # of several peers the oldest
                name, known = "staleness", curves.get("staleness", {}).get(model, [])
                curve = sorted({x: max(y, dict(known).get(x, 0.0)) for x, y in [*known, *curve]}.items())
            curves.setdefault(name, {})[model] = curve
        return cls(directory.name, curves)

    def key(self, panel: Sequence[str]) -> str | None:
        return next((key for key in panel if key in self.curves), None)

    def final(self, panel: Sequence[str]) -> float | None:
        """Mean over the models of the mean over the end of the run."""
        key = self.key(panel)
        if key is None:
            return None
        ends = []
        for curve in self.curves[key].values():
            values = [y for x, y in curve if x >= (1 - ENDING) * curve[-1][0]]
            ends.append(sum(values) / len(values))
        return sum(ends) / len(ends)


def draw(views: Sequence[View], path: Path) -> None:
    """A panel a quantity, a line a model of a run."""
    known = [panel for panel in PANELS if any(view.key(panel) for view in views)]
    figure, axes = panels(len(known))
    for axis, panel in zip(axes, known, strict=True):
        index = 0
        for view in views:
            for model, curve in sorted(view.curves.get(view.key(panel) or "", {}).items()):
                name = f"{view.name} {model}" if len(views) > 1 else model
                line(axis, [x for x, _ in curve], [y for _, y in curve], index, name)
                index += 1
        axis.set(xlabel="update", title=_label(panel, views))
        if panel[0] in _FROM_ZERO:
            axis.set_ylim(bottom=0)
        if panel[0] == "train/codistill_loss":
            axis.set_yscale("symlog", linthresh=1e-3)  # it is zero before a burn-in ends
        elif panel[0] in ("train/nll_loss", "train/lr"):
            log_scale(axis)
    axes[0].legend(fontsize="small")
    save(figure, path)


def _label(panel: Sequence[str], views: Sequence[View]) -> str:
    key = next(key for view in views if (key := view.key(panel)) is not None)
    return LABELS.get(key, key)


def table(views: Sequence[View]) -> str:
    """The figures at the end of each run, side by side."""
    rows = []
    for panel in PANELS:
        if any(view.key(panel) for view in views):
            finals = (view.final(panel) for view in views)
            rows.append((_label(panel, views), *("" if value is None else f"{value:.4g}" for value in finals)))
    return tabulate(rows, headers=("at the end", *(view.name for view in views)), disable_numparse=True)


def advice(view: View, others: Sequence[View]) -> str:
    """What the paper's first figure would say: a higher training loss and weights that stayed closer to their start."""
    if not others:
        return (
            "To tell whether it is over-regularised, compare it with --against: a run without the term "
            "(--codistill-alpha 0) or plain training on as many workers. A higher training loss and weights closer to "
            "their start are the signs."
        )
    return "\n".join(_compare(view, other) for other in others)


def _compare(view: View, other: View) -> str:
    loss, reference = view.final(PANELS[0]), other.final(PANELS[0])
    near, far = view.final(PANELS[4]), other.final(PANELS[4])
    if loss is None or reference is None:
        return f"{view.name} or {other.name} has no training loss yet."
    higher = loss > (1 + NOISE) * reference
    words = f"training loss {loss:.4g} against {reference:.4g} of {other.name}"
    if near is not None and far is not None:
        words += f", distance from the start {near:.4g} against {far:.4g}"
        closer = near < (1 - NOISE) * far
    else:
        closer = higher
    if higher and closer:
        return (
            f"Over-regularised, it seems: {words}. Try less weight decay behind each decay of the learning rate "
            "(vision: --weight-decay 1e-4,1e-5,0), later milestones, less label smoothing or dropout. A smaller batch "
            "shows the same signs: a run with --codistill-alpha 0 tells how much of them is the term's."
        )
    if higher or closer:
        return f"One of the two signs of over-regularisation alone: {words}."
    return f"No sign of over-regularisation: {words}."


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="recipes.plot", description="Am I over-regularising?")
    parser.add_argument("run", type=Path, help="a run directory of vision.train or fairseq-train")
    parser.add_argument("--against", type=Path, nargs="+", default=[], metavar="RUN", help="runs to compare it with")
    parser.add_argument("--out", type=Path, help="the figure (default: curves.png in the run's directory)")
    args = parser.parse_args(argv)
    try:
        view, *others = [View.of(directory) for directory in (args.run, *args.against)]
    except FileNotFoundError as error:
        parser.error(str(error))
    out = args.out or args.run / "curves.png"
    draw([view, *others], out)
    print(table([view, *others]))
    print(advice(view, others))
    print(f"drawn into {out}")


if __name__ == "__main__":
    main()
