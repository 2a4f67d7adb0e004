"""What a run directory of either trainer holds, and the small raw summary that is kept of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recipes.translated import model_figures, run_figures, run_options

Curve = list[tuple[float, float]]
CURVE_POINTS = 40
CURVE_KEYS = (  # behind ``modelN/``, of both trainers
    *("train/loss", "train/nll_loss", "train/codistill_loss", "train/divergence", "train/top1"),
    *(
        "train/lr",
        "train/weight_decay",
        "train/label_smoothing",
        "train/dropout",
        "train/alpha",
        "train/distance_from_start",
        "train/bytes_sent",
    ),
    *("valid/top1", "valid/loss", "valid/nll_loss", "valid/ensemble_top1", "valid/agreement"),
)
STALENESS = "staleness/"  # and the peer's index
_LINE_KEYS = ("update", "epoch", "seconds")


def read_json(path: Path, hint: str) -> Any:
    """The content of a JSON file; ``hint`` says what makes it.

    Raises:
        FileNotFoundError: it is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: {hint}")
    return json.loads(path.read_text(encoding="utf-8"))


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: it is written by a run, beside its summary.json")
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def read_curves(path: Path) -> dict[str, Curve]:
    """(update, value) by key; of two values at the same update the later counts, as after a resume."""
    points: dict[str, dict[float, float]] = {}
    for line in read_metrics(path):
        for key, value in line.items():
            if key not in _LINE_KEYS:
                points.setdefault(key, {})[line["update"]] = value
    return {key: sorted(values.items()) for key, values in points.items()}


def thin(curve: Curve, points: int = CURVE_POINTS) -> Curve:
    """At most so many points, evenly spread, with the first and the last; short numbers."""
    last = len(curve) - 1
    chosen = range(last + 1) if last < points else [round(i * last / (points - 1)) for i in range(points)]
    return [(curve[i][0], float(f"{curve[i][1]:.5g}")) for i in chosen]


def raw_summary(directory: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a finished run: ``about`` it, its options and final figures, and thinned curves.

    Raises:
        FileNotFoundError: the run has not ended.
    """
    summary = read_json(directory / "summary.json", "the run has not ended")
    finals = {key: value for key, value in summary.items() if key not in ("args", "models")}
    all_curves = read_curves(directory / "metrics.jsonl")
    models = [
        _without_history(model) | model_figures(directory, all_curves, index)
        for index, model in enumerate(summary["models"])
    ]
    finals |= run_figures(directory, models)
    curves = {
        key: [list(axis) for axis in zip(*thin(curve), strict=True)]
        for key, curve in sorted(all_curves.items())
        if (name := key.partition("/")[2]) in CURVE_KEYS or name.startswith(STALENESS)
    }
    args = summary.get("args") or run_options(directory)
    return {**about, "args": args, "finals": finals, "models": models, "curves": curves}


def _without_history(model: Mapping[str, Any]) -> dict[str, Any]:
    """Its last epoch is kept: the training loss is there."""
    kept = {key: value for key, value in model.items() if key != "history"}
    return kept | ({"last": model["history"][-1]} if model.get("history") else {})


def write_raw_summary(path: Path, raw: Mapping[str, Any]) -> None:
    """One line a key, so that a run's difference to another can be read in a diff."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in raw.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
