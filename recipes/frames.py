"""Runs as pandas frames: one row a run, and one row a point of a curve."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas

from recipes.runs import raw_summary, read_json

_SEED = re.compile(r"(?P<arm>.+)-s(?P<seed>\d+)")
# What runs of one arm may have of their own; how many images a process takes at once follows from their number.
_OWN = set(
    "seed output_dir resume data_path device workers batch_size accumulate print_freq save_every_updates".split()
)
_OWN |= {"codistill_timeout", "codistill_dir"}
# What the runner keeps: of a finished run, and of one that it has given up.
_KEPT = ({"curves", "models", "arm"}, {"failed", "arm", "seed"})
CURVE_COLUMNS = ("name", "arm", "seed", "model", "key", "update", "value")


@dataclass(frozen=True)
class Runs:
    """``table``: options, final figures, ``arm`` and ``seed`` of each run. ``curves``: see CURVE_COLUMNS. ``failed``:
    seeds, by arm, of runs that the runner has given up."""

    table: pandas.DataFrame
    curves: pandas.DataFrame
    failed: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def with_aliases(self, aliases: Mapping[str, str]) -> Runs:
        """An arm's runs once more under another name: ``{alias: arm}``."""
        table, curves, failed = [self.table], [self.curves], dict(self.failed)
        for alias, arm in aliases.items():
            chosen = self.table[self.table["arm"] == arm]
            if alias in set(self.table["arm"]):
                continue
            failed |= {alias: self.failed[arm]} if arm in self.failed else {}
            if not chosen.empty:
                table.append(chosen.assign(arm=alias))
                curves.append(self.curves[self.curves["name"].isin(chosen["name"])].assign(arm=alias))
        return Runs(*(pandas.concat(parts, ignore_index=True) for parts in (table, curves)), failed)


def load_runs(path: Path) -> Runs:
    """All runs below a directory: run directories of a trainer, or raw summaries.

    Raises:
        ValueError: there are none, or runs of one arm had other options.
    """
    everything = list(_read_all(path))
    raws, failures = ([raw for raw in everything if ("failed" in raw) == failed] for failed in (False, True))
    if not raws:
        raise ValueError(f"{path} holds neither run directories with a summary.json nor raw summaries (*.json)")
    _check_alike(raws)
    table = pandas.DataFrame([_row(raw) for raw in raws]).sort_values(["arm", "seed"], ignore_index=True)
    curves = pandas.DataFrame([point for raw in raws for point in _points(raw)], columns=list(CURVE_COLUMNS))
    failed = {
        raw["arm"]: frozenset(other["seed"] for other in failures if other["arm"] == raw["arm"]) for raw in failures
    }
    return Runs(table, curves, failed)


def _check_alike(raws: Iterable[dict[str, Any]]) -> None:
    """A short try among the runs, or another network, would go into a mean in silence."""
    firsts: dict[str, dict[str, Any]] = {}
    seen: set[tuple[str, int]] = set()
    for raw in raws:
        if (raw["arm"], raw["seed"]) in seen:
            raise ValueError(f"there are two runs {raw['name']}, or a run and its raw summary: move one of them away")
        seen.add((raw["arm"], raw["seed"]))
        first = firsts.setdefault(raw["arm"], raw)
        options, firsts_options = _comparable(raw), _comparable(first)
        for name in sorted(options.keys() & firsts_options.keys()):
            if options[name] != firsts_options[name]:
                raise ValueError(
                    f"{first['name']} and {raw['name']} are one arm by their names, but have {name} "
                    f"{firsts_options[name]} and {options[name]}: move one of them away, or rename it"
                )


def _comparable(raw: dict[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in raw["args"].items() if name not in _OWN}
    return options | {"batch_of_a_model": raw["finals"].get("work", {}).get("batch_of_a_model")}


def _read_all(path: Path) -> Iterator[dict[str, Any]]:
    directories = [path, *sorted(child for child in path.iterdir() if child.is_dir())] if path.is_dir() else []
    for directory in directories:
        if (directory / "summary.json").is_file():
            yield raw_summary(directory, about_directory(directory))
    for file in sorted(path.glob("*.json")):
        raw = read_json(file, "")
        if isinstance(raw, dict) and any(keys <= raw.keys() for keys in _KEPT):
            yield raw


def about_directory(directory: Path) -> dict[str, Any]:
    """Name, arm and seed of a run directory: ``adjusted-s3`` is seed 3 of the arm ``adjusted``."""
    match = _SEED.fullmatch(directory.name)
    arm, seed = (match["arm"], int(match["seed"])) if match else (directory.name, 0)
    return {"name": directory.name, "arm": arm, "seed": seed}


def _row(raw: dict[str, Any]) -> dict[str, Any]:
    """Options, then figures: those of model 0, which the paper would report, and those of all models."""
    models = raw["models"]
    row = {**raw["args"], **{key: value for key, value in raw["finals"].items() if not isinstance(value, dict)}}
    row |= {key: raw.get(key) for key in ("name", "arm", "group", "seed", "commit", "run_seconds")}
    row |= {key: value for key, value in models[0].items() if isinstance(value, int | float)}
    for name in set(_last_names(models)) - raw["args"].keys():  # an option keeps its name: --lr, not the last update's
        values = [model["last"][name] for model in models if name in model.get("last", {})]
        row[name] = sum(values) / len(values)
    if all("valid_loss" in model for model in models):
        row["mean_valid_loss"] = sum(model["valid_loss"] for model in models) / len(models)
    if work := raw["finals"].get("work"):
        row["images_an_update"] = work["batch_of_a_model"] * work["models"]
        row["images_a_worker"] = raw["args"]["batch_size"] * raw["args"]["accumulate"]
        scale = work["batch_of_a_model"] / 256 if raw["args"].get("lr_scaling") == "linear" else 1
        row["peak_lr"] = raw["args"]["lr"] * scale
    sent = raw["finals"].get("bytes", {})
    row["mb_sent"] = sum(value for kind, value in sent.items() if kind.startswith("sent/")) / 1e6
    return row


def _last_names(models: Iterable[dict[str, Any]]) -> list[str]:
    """Figures of the last epoch that the final evaluation does not have."""
    return sorted({name for model in models for name in model.get("last", {}) if name not in model})


def _points(raw: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for key, (updates, values) in raw["curves"].items():
        model, _, name = key.partition("/")
        for update, value in zip(updates, values, strict=True):
            yield raw["name"], raw["arm"], raw["seed"], model, name, update, value


def by_arm(table: pandas.DataFrame, measure: str) -> pandas.DataFrame:
    """Mean, standard deviation, standard error of the mean and number of seeds of a measure, by arm."""
    grouped = table.dropna(subset=[measure]).groupby("arm", sort=False)[measure]
    return pandas.DataFrame(
        {"mean": grouped.mean(), "sd": grouped.std(), "se": grouped.sem(), "seeds": grouped.count()}
    )
