"""The page of results/network, from the raw files of the measurements."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.netlab.run import table
from recipes.figures import STYLES, line, panels, save
from recipes.network import ACCURACY, GBITS, HOSTS, SEEDS, TALK_GBITS, TALK_MS, UPDATES, accuracy_name, short_runs

_MARKERS = "os^DvxP*<>ph"  # of the ways whose accuracy was measured


def report(out: Path) -> str:
    """The page, and its figures."""
    raw = {path.stem: json.loads(path.read_text()) for path in sorted((out / "raw").glob("*.json"))}
    parts = [
        *_talk_section(raw, out),
        *_others_section(raw),
        *_accuracy_section(raw, out),
        *_vocabulary_section(raw),
        *_growth_section(raw),
        *_links_section(raw),
    ]
    return "\n\n".join(parts) + "\n"


def _talk_section(raw: dict[str, Any], out: Path) -> Iterator[str]:
    found = {name.removeprefix("talk_"): result["ways"] for name, result in raw.items() if name.startswith("talk_")}
    if not found:
        return
    for name, ways in found.items():
        # Of weights that cross every 50 steps the mean of as many is what counts; no file of fewer steps says it.
        every50 = raw.get(f"every50_{name}", {"ways": {}})["ways"]
        found[name] = {way: its for way, its in ways.items() if "t50" not in way}
        found[name] |= {way: its | {"median_ms": its["mean_ms"]} for way, its in every50.items() if way != "alone"}
    yield "## The talk's table"
    names = list(dict.fromkeys(way.replace("-ring", "") for ways in found.values() for way in ways))
    for gbits in GBITS:
        if gbits not in _measured(found):
            continue
        columns = [(1, found.get(f"1x{TALK_GBITS}")), *((hosts, found.get(f"{hosts}x{gbits}")) for hosts in HOSTS[1:])]
        rows = [f"| {gbits} Gbit/s | " + " | ".join(f"{hosts} nodes" for hosts, _ in columns) + " |", "|---" * 5 + "|"]
        for name in names:
            cells = [_cell(ways, name) for _, ways in columns]
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
        if gbits == TALK_GBITS:
            rows.append("| the talk's, measured | " + " | ".join(str(TALK_MS[hosts]) for hosts in HOSTS) + " |")
        yield "\n".join(rows)
    _draw(found, out / "talk.png")
    yield "![Milliseconds a step by the number of nodes](talk.png)"


def _measured(found: dict[str, Any]) -> list[int]:
    """Rates of links with two hosts or more."""
    return [gbits for gbits in GBITS if any(f"{hosts}x{gbits}" in found for hosts in HOSTS[1:])]


def _cell(ways: dict[str, Any] | None, name: str) -> str:
    plain, _, hosts_a_model = name.partition("/")
    for candidate in (name, f"{plain}-ring/{hosts_a_model}"):
        if ways and candidate in ways:
            return f"{ways[candidate]['median_ms']:.0f}"
    return ""


def _draw(found: dict[str, Any], path: Path) -> None:
    measured = _measured(found)
    figure, axes = panels(len(measured))
    for axis, gbits in zip(axes, measured, strict=True):
        if gbits == TALK_GBITS:
            line(axis, list(TALK_MS), list(TALK_MS.values()), 4, "all-reduce, as the talk measured it")
        for index, name in enumerate(("ddp", "predictions-topk/1", "checkpoints-t2500/1", "checkpoints-t2500/4")):
            points = [(hosts, _cell(found.get(f"{hosts}x{gbits}"), name)) for hosts in HOSTS]
            xs, ys = [hosts for hosts, cell in points if cell], [float(cell) for _, cell in points if cell]
            if xs:
                line(axis, xs, ys, index, name)
        axis.set(title=f"{gbits} Gbit/s", xlabel="nodes", ylabel="ms a step", xticks=HOSTS, ylim=(0, None))
        axis.set_ylim(0, 1.4 * axis.get_ylim()[1])  # above the lines there is room for their names
        axis.legend(fontsize=7, loc="upper left")
    save(figure, path)


def _others_section(raw: dict[str, Any]) -> Iterator[str]:
    names = [name for name in raw if name.startswith(("two_hosts", "others"))]
    if names:
        yield "## Beside what else one would pick"
        yield table(*(raw[name] for name in sorted(names, key=lambda name: name != "two_hosts")))


@dataclass(frozen=True)
class _Accuracy:
    """A way's runs to the end, one a seed.

    Attributes:
        slow_s: at 100 Mbit/s, from the updates of a short run; None if it was not run.
    """

    way: str
    top1: list[float]
    mean_top1: list[float]
    sent_mb: float
    seconds: float
    slow_s: float | None


def _accuracies(raw: dict[str, Any]) -> Iterator[_Accuracy]:
    """Of the ways that have run with every seed."""
    for way in ACCURACY:
        runs = [raw[name] for seed in SEEDS if (name := accuracy_name(way, seed)) in raw]
        if len(runs) < len(SEEDS):
            continue
        top1, mean, seconds, sent = (
            [run[name] for run in runs] for name in ("top1", "mean_top1", "seconds", "sent_mb")
        )
        yield _Accuracy(way, top1, mean, statistics.mean(sent), statistics.mean(seconds), _slow_s(raw, way))


def _slow_s(raw: dict[str, Any], way: str) -> float | None:
    """Of all updates, those behind the last short run being as long as its last ones."""
    runs = [(raw[name]["seconds"], updates) for name, updates in short_runs(way) if name in raw]
    if len(runs) < len(short_runs(way)):
        return None
    (before_s, before), (last_s, last) = ((0.0, 0), *runs)[-2:]
    return float(last_s + (last_s - before_s) / (last - before) * (UPDATES - last))


def _accuracy_section(raw: dict[str, Any], out: Path) -> Iterator[str]:
    found = list(_accuracies(raw))
    if not found:
        return
    yield "## Time to accuracy"
    names = ("way", "top-1 of model 0", "standard deviation", "mean of models", "MB a host sends", "s at 1 Gbit/s")
    rows = ["| " + " | ".join((*names, "s at 100 Mbit/s")) + " |", "|---" * 7 + "|"]
    for its in found:
        figures = (statistics.mean(its.top1), statistics.stdev(its.top1), statistics.mean(its.mean_top1))
        slow_s = f"{its.slow_s:.0f}" if its.slow_s else ""
        cells = (*(f"{figure:.2f}" for figure in figures), f"{its.sent_mb:.0f}", f"{its.seconds:.0f}", slow_s)
        rows.append("| " + " | ".join((its.way, *cells)) + " |")
    yield "\n".join(rows)
    _draw_accuracy(found, out / "accuracy.png")
    yield "![Top-1 by the seconds of the run, at two speeds of the links](accuracy.png)"


def _draw_accuracy(found: list[_Accuracy], path: Path) -> None:
    figure, axes = panels(2)
    for axis, speed in zip(axes, ("1 Gbit/s", "100 Mbit/s"), strict=True):
        for its in found:
            seconds = its.seconds if speed == "1 Gbit/s" else its.slow_s
            if seconds is None:
                continue
            y, spread = statistics.mean(its.mean_top1), statistics.stdev(its.mean_top1)
            place = ACCURACY.index(its.way)  # which a way keeps, whatever else has been measured
            color, marker = STYLES[place % len(STYLES)]["color"], _MARKERS[place]
            points = {"color": color, "marker": marker, "linestyle": "", "markersize": 5, "linewidth": 0.8}
            axis.errorbar([seconds], [y], yerr=[spread], capsize=2, label=its.way, **points)
        axis.set(title=speed, xlabel="seconds of the run", ylabel="top-1, mean of the models (%)", xlim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    save(figure, path)


def _vocabulary_section(raw: dict[str, Any]) -> Iterator[str]:
    if "vocabulary" in raw:
        yield "## A large vocabulary"
        yield table(raw["vocabulary"])


def _growth_section(raw: dict[str, Any]) -> Iterator[str]:
    found = {name: result for name, result in raw.items() if name.startswith("growth_")}
    if found:
        yield "## More models"
        for name, result in found.items():
            yield f"{name.removeprefix('growth_')} models; the processes met after {result['start_s']:.1f} s:"
            yield table(result)


def _links_section(raw: dict[str, Any]) -> Iterator[str]:
    found = {name.removeprefix("links_"): result for name, result in raw.items() if name.startswith("links_")}
    if found:
        yield "## The links"
        rows = ["| hosts x Gbit/s | seconds | formula | ratio |", "|---|---|---|---|"]
        for name, result in found.items():
            link = result["ways"]["all-reduce"]
            rows.append(f"| {name} | {link['median_s']:.3f} | {link['formula_s']:.3f} | {link['ratio']:.2f} |")
        yield "\n".join(rows)
