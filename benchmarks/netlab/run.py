"""Measures jobs in a lab of their own."""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.netlab.accuracy import Training
from benchmarks.netlab.agents import run_on
from benchmarks.netlab.hosts import lab
from benchmarks.netlab.job import Job


def run_job(job: Job, *, deadline_s: float = 600.0) -> dict[str, Any]:
    """Make the hosts, measure, remove them; what ``measure.py`` wrote, and the job.

    Raises:
        LabError: no lab can be made here, or a host failed.
    """
    with tempfile.TemporaryDirectory(prefix="netlab") as directory:
        job = dataclasses.replace(job, result=str(Path(directory, "result.json")))
        with lab(job.hosts, job.bits_per_second) as hosts:
            program = ["-m", "benchmarks.netlab.measure", job.to_json()]
            run_on(hosts, program, ranks=job.ranks, deadline_s=deadline_s, pin=not job.compute_ms)
        measured = json.loads(Path(job.result).read_text())
    return {"job": dataclasses.asdict(dataclasses.replace(job, result="")), **measured}


def run_training(training: Training, bits_per_second: float, *, deadline_s: float) -> dict[str, Any]:
    """The same for a run to the end; what ``accuracy.py`` wrote, and the links' rate."""
    with tempfile.TemporaryDirectory(prefix="netlab") as directory:
        training = dataclasses.replace(training, result=str(Path(directory, "result.json")))
        with lab(training.hosts, bits_per_second) as hosts:
            program = ["-m", "benchmarks.netlab.accuracy", training.to_json()]
            run_on(hosts, program, ranks=1, deadline_s=deadline_s, pin=True)
        measured: dict[str, Any] = json.loads(Path(training.result).read_text())
    return {"bits_per_second": bits_per_second, **measured}


def table(result: dict[str, Any]) -> str:
    """A Markdown table of the ways of one job; steps as multiples of the way ``alone`` if it is among them."""
    ways: dict[str, dict[str, Any]] = {name: way for name, way in result["ways"].items() if "median_ms" in way}
    one = ways["alone"]["median_ms"] if "alone" in ways else None
    unit = "of alone" if one else "ms"
    columns = ("way", f"median {unit}", f"mean {unit}", f"worst {unit}", f"of it waiting {unit}")
    rows: list[Sequence[object]] = [(*columns, "MB sent a step", "ready in s"), ("---",) * 7]
    for name, way in ways.items():
        steps = [way[key] / (one or 1) for key in ("median_ms", "mean_ms", "worst_ms", "waited_ms")]
        rows.append((name, *(f"{step:.2f}" for step in steps), f"{way['sent_mb']:.3f}", way["ready_s"]))
    failed = [f"- {name}: {way['error']}" for name, way in result["ways"].items() if "error" in way]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([*lines, *(["", "Does not run here:", "", *failed] if failed else [])])
