"""What an evaluation leaves in RUN/evaluation, and sacrebleu's paired bootstrap between two runs' translations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from translation.corpus import read_lines
from translation.metrics import paired_bootstrap

FOLDER = "evaluation"
ENSEMBLE = "ensemble"
_ALIKE = ("direction", "sentences", "lowercase", "averaged", "beam", "lenpen")  # of two runs that are compared


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """One a line."""
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_result(stem: Path, result: dict[str, Any], text: str) -> None:
    """As STEM.json and, for reading, STEM.md; the first one is there only if all is."""
    stem.with_name(f"{stem.name}.md").write_text(text + "\n", encoding="utf-8")
    partial = stem.with_name(f"{stem.name}.json.partial")
    partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    partial.replace(stem.with_name(f"{stem.name}.json"))


def evaluation_of(run: Path, name: str) -> dict[str, Any] | None:
    """What an earlier evaluation of this test set has written, if there was one."""
    path = run / FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def check_alike(run: Path, evaluation: dict[str, Any], other: Path) -> None:
    """A run's evaluation against that of another run, if there is one yet.

    Raises:
        ValueError: other sentences, or other options.
    """
    name = evaluation["test"]
    against = evaluation_of(other, name)
    if against is None:
        return
    for key in _ALIKE:
        values = evaluation[key], against[key]
        if values[0] != values[1]:
            raise ValueError(
                f"{run} and {other} were not evaluated on {name} alike: {key} {values[0]} and {values[1]}. Evaluate "
                f"{other} again with the same options, or remove its {FOLDER}/{name}.json and it is done here"
            )


def compare(run: Path, evaluation: dict[str, Any], other: Path, samples: int) -> dict[str, Any]:
    """Every system of both runs against model 0 of the other one, by paired bootstrap; both have been evaluated.

    Raises:
        ValueError: they were not evaluated on the same sentences, or not alike.
    """
    name = evaluation["test"]
    check_alike(run, evaluation, other)
    references = [_evaluated(one, name, "reference*") for one in (run, other)]
    if list(references[0].values()) != list(references[1].values()):
        raise ValueError(f"{run} and {other} were not evaluated on the same {name}: evaluate both again")
    systems = [(f"{one.name}/{key}", lines) for one in (other, run) for key, lines in _systems(one, name).items()]
    rows = paired_bootstrap(systems, list(references[0].values()), samples, lowercase=evaluation["lowercase"])
    result = {"run": run.name, "against": other.name, "test": name, "samples": samples, "systems": rows}
    shown = [
        (row["system"], *(f"{row[key]:.2f} ± {row[key + '_ci']:.2f}{_p(row[key + '_p'])}" for key in ("bleu", "chrf")))
        for row in rows
    ]
    text = tabulate(shown, headers=("", "sacreBLEU", "chrF2"), tablefmt="github", disable_numparse=True)
    text += (
        f"\n\n{name}: 95 % intervals and p-values by {samples} paired bootstrap resamples; the first is the baseline."
    )
    write_result(run / FOLDER / f"{name}.against.{other.name}", result, text)
    return result | {"table": text}


def _p(value: float | None) -> str:
    return "" if value is None else f" (p = {value:.4f})"


def _evaluated(run: Path, name: str, pattern: str) -> dict[str, list[str]]:
    files = sorted((run / FOLDER).glob(f"{name}.{pattern}.txt"))
    if not files:
        raise FileNotFoundError(f"{run} has not been evaluated on {name}: python -m translation.evaluate {run}")
    return {path.name.removeprefix(f"{name}.").removesuffix(".txt"): read_lines(path) for path in files}


def _systems(run: Path, name: str) -> dict[str, list[str]]:
    models = _evaluated(run, name, "model*")
    return models | (_evaluated(run, name, ENSEMBLE) if len(models) > 1 else {})
