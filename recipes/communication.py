"""Measures in the network lab what communication costs, and writes results/network (``recipes/communication.sh``)."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.netlab.accuracy import Training
from benchmarks.netlab.hosts import LabError
from benchmarks.netlab.job import Job
from benchmarks.netlab.run import run_job, run_training, table
from recipes.figures import line, panels, save
from recipes.tables import write_page

OUT = Path(__file__).parents[1] / "results/network"
HOSTS, GBITS = (1, 2, 4, 8), (1, 10, 25)
SCALE = 100  # of the talk's setting: 8 hosts of 229 M parameters are played on two cores
COMPUTE_MS = 412  # [talk]
PARAMETERS = 229_000_000
_TALK_GBITS = 10  # the talk says Ethernet; at this rate its two nodes are ours
TALK_MS = {1: 412, 2: 956, 4: 1568, 8: 1593}
# Hosts alone, as the control, and with one and two hosts a model; checkpoints cross as often as in Anil et al., because
# the runs are short. SlowMo is missing: the table of steps has the error.
ACCURACY = ("alone", "ddp", "ddp-fp16", "ddp-powersgd", "local-sgd-4", "local-sgd-16", "torchft-local-sgd-16")
ACCURACY += ("torchft-diloco-16", "predictions-full/1", "predictions-full/2", "checkpoints-t50/1", "checkpoints-t50/2")
SEEDS, UPDATES, SHORT_UPDATES = (0, 1, 2), 1500, 100  # 7.7 passes of four hosts over CIFAR-10
_STEPS, _SLOW_STEPS, _WARM_UP = 10, 4, 9  # slow ones are at 1 Gbit/s; teachers are there from the 8th on
_ONE_NODE = ("predictions-topk", "predictions-half", "predictions-full", "checkpoints-t2500")


def jobs() -> Iterator[tuple[str, Job]]:
    """Every measurement of the tables of steps, by the name of its file."""
    for hosts in (2, 4, 8):
        for gbits in (0.01, 0.1, 1.0, 2.5):
            yield (
                f"links_{hosts}x{gbits:g}",
                Job(ways=("all-reduce",), hosts=hosts, bits_per_second=gbits * 1e9, steps=5),
            )
    yield f"talk_1x{_TALK_GBITS}", _talk(1, _TALK_GBITS)  # no link is used
    for hosts in HOSTS[1:]:
        for gbits in GBITS:
            yield f"talk_{hosts}x{gbits}", _talk(hosts, gbits)
    for hosts in HOSTS[1:]:
        for gbits in GBITS:
            yield f"every50_{hosts}x{gbits}", _often(hosts, gbits)
    real = {"hosts": 2, "rows": 192, "steps": 44, "warm_up": 32}
    yield (
        "two_hosts",
        Job(ways=("alone", "ddp", "ddp-fp16", *_ONE_NODE[:3], "checkpoints", "checkpoints-every4"), **real),
    )
    local = {"hosts": 2, "rows": 192, "steps": 48, "warm_up": 32}
    yield "others", Job(ways=("alone", "ddp-powersgd", "local-sgd-4", "local-sgd-16"), **local)
    for name in ("slowmo-16", "torchft-local-sgd-16", "torchft-diloco-16"):
        yield f"others_{name}", Job(ways=("alone", name), **local)
    large = {"rows": 512, "vocabulary": 32768, "dim": 768, "layers": 8, "steps": 12, "warm_up": 2}
    yield "vocabulary", Job(ways=("alone", "predictions-topk"), hosts=2, **large)
    for models in (2, 4, 8):
        yield f"growth_{models}", _growth(models)


def _talk(hosts: int, gbits: float) -> Job:
    """Way after way, in a few steps each."""
    ways = ["alone", "ddp"] if hosts > 1 else ["alone"]
    for hosts_a_model in (1, 2, 4):
        if hosts >= 2 * hosts_a_model:
            names = _ONE_NODE if hosts_a_model == 1 else ("predictions-topk", "checkpoints-t2500")
            ways += [_of_models(name, hosts, hosts_a_model) for name in names]
    return _played(ways, hosts, gbits, steps=_STEPS if gbits > 1 else _SLOW_STEPS)


def _often(hosts: int, gbits: float) -> Job:
    """Weights every 50 updates, in as many steps, so that they cross in one of them."""
    return _played(["alone", _of_models("checkpoints-t50", hosts, 1)], hosts, gbits, steps=50)


def _of_models(name: str, hosts: int, hosts_a_model: int) -> str:
    """The way with so many hosts a model; more than two models form a ring."""
    ring = "-ring" if hosts > 2 * hosts_a_model else ""
    return f"{name}{ring}/{hosts_a_model}"


def _played(ways: list[str], hosts: int, gbits: float, *, steps: int) -> Job:
    """The talk's setting, divided by SCALE."""
    return Job(
        ways=tuple(ways),
        hosts=hosts,
        bits_per_second=gbits * 1e9 / SCALE,
        scale=SCALE,
        compute_ms=COMPUTE_MS,
        parameters=PARAMETERS // SCALE,
        rows=3584 // SCALE,
        vocabulary=32768,
        steps=steps,
        warm_up=_WARM_UP,
    )


def _growth(models: int) -> Job:
    """Many models: what each further one adds, to a step and to the start."""
    ways = ("alone", "predictions-topk", "predictions-topk-ring", "checkpoints-ring")
    sizes = {"compute_ms": 200.0, "parameters": 2_000_000, "rows": 64, "vocabulary": 8192}
    return Job(ways=ways, hosts=models, bits_per_second=1e8, steps=20, warm_up=14, **sizes)


def trainings() -> Iterator[tuple[str, float, Training]]:
    """Short runs on a slower link, for its seconds, and runs to the end, for accuracy."""
    for way in ACCURACY:
        short = Training(way=way, hosts=4, seed=0, updates=SHORT_UPDATES)
        yield f"seconds_{way.replace('/', '_')}", 1e8, short
    for seed in SEEDS:  # seed after seed, so that what has been run is balanced
        for way in ACCURACY:
            name = f"accuracy_{way.replace('/', '_')}_{seed}"
            yield name, 1e9, Training(way=way, hosts=4, seed=seed, updates=UPDATES)


def train(out: Path, pattern: str) -> None:
    """Run what has no file yet."""
    runs = {name: (training, bits_per_second) for name, bits_per_second, training in trainings()}
    for name, path in _missing(out, pattern, runs):
        path.write_text(json.dumps(run_training(*runs[name], deadline_s=4 * 3600)) + "\n")


def measure(out: Path, pattern: str) -> None:
    """Measure what has no file yet."""
    named = dict(jobs())
    for name, path in _missing(out, pattern, named):
        job = named[name]
        try:
            result = run_job(job, deadline_s=1200)
        except LabError as error:
            if len(job.ways) > 2 or job.ways[0] != "alone":
                raise
            result = {"job": json.loads(job.to_json()), "ways": {job.ways[1]: {"error": _last_line(error)}}}
        path.write_text(json.dumps(result) + "\n")


def _missing(out: Path, pattern: str, names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Those with the pattern in their name and without a file, which the caller then writes."""
    (out / "raw").mkdir(parents=True, exist_ok=True)
    for name in names:
        path = out / "raw" / f"{name}.json"
        if not path.exists() and pattern in name:
            print(f"== {name}", flush=True)
            yield name, path


def _last_line(error: Exception) -> str:
    """Of a traceback the line that says what went wrong."""
    lines = [text.strip() for text in str(error).splitlines() if "Error" in text]
    return (lines or [str(error)])[-1][:300]


def report(out: Path) -> str:
    """The page, and its figures."""
    raw = {path.stem: json.loads(path.read_text()) for path in sorted((out / "raw").glob("*.json"))}
    parts = [
        *_talk_section(raw, out),
        *_others_section(raw),
        *_accuracy_section(raw),
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
        columns = [(1, found.get(f"1x{_TALK_GBITS}")), *((hosts, found.get(f"{hosts}x{gbits}")) for hosts in HOSTS[1:])]
        rows = [f"| {gbits} Gbit/s | " + " | ".join(f"{hosts} nodes" for hosts, _ in columns) + " |", "|---" * 5 + "|"]
        for name in names:
            cells = [_cell(ways, name) for _, ways in columns]
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
        if gbits == _TALK_GBITS:
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
        if gbits == _TALK_GBITS:
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


def _accuracy_section(raw: dict[str, Any]) -> Iterator[str]:
    rows = []
    for way in ACCURACY:
        key = way.replace("/", "_")
        runs = [raw[f"accuracy_{key}_{seed}"] for seed in SEEDS if f"accuracy_{key}_{seed}" in raw]
        if len(runs) < len(SEEDS):
            continue
        top1, mean, seconds, sent = (
            [run[name] for run in runs] for name in ("top1", "mean_top1", "seconds", "sent_mb")
        )
        slow = raw.get(f"seconds_{key}")
        slow_s = f"{slow['seconds'] / SHORT_UPDATES * UPDATES:.0f}" if slow else ""
        figures = (f"{statistics.mean(top1):.2f}", f"{statistics.stdev(top1):.2f}", f"{statistics.mean(mean):.2f}")
        rows.append((way, *figures, f"{statistics.mean(sent):.0f}", f"{statistics.mean(seconds):.0f}", slow_s))
    if rows:
        yield "## Time to accuracy"
        names = ("way", "top-1 of model 0", "standard deviation", "mean of models", "MB a host sends", "s at 1 Gbit/s")
        lines = [(*names, "s at 100 Mbit/s"), ("---",) * 7, *rows]
        yield "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("steps", "accuracy", "report"), nargs="?", default="steps")
    parser.add_argument("--only", default="", help="measurements with this in their name")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    try:
        if args.what != "report":
            measure(args.out, args.only)
        if args.what == "accuracy":
            train(args.out, args.only)
    except LabError as error:
        sys.exit(str(error))
    print(write_page(args.out, report(args.out)))


if __name__ == "__main__":
    main()
