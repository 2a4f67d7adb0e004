"""Recipes as they are started, with something in the place of torchrun."""

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import Any


def call(recipe: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(recipe), *arguments], env=os.environ | variables, capture_output=True, text=True, timeout=60
    )


@functools.cache
def listed(recipe: Path, **variables: str) -> dict[str, dict[str, Any]]:
    """The runs of a recipe by name."""
    output = call(recipe, LIST="1", **variables)
    assert output.returncode == 0, output.stderr
    runs = [json.loads(line) for line in output.stdout.splitlines()]
    assert runs and len({run["name"] for run in runs}) == len(runs)
    return {run["name"]: run for run in runs}


def write_torchrun(directory: Path, option: str) -> Path:
    """Writes down how it was called, and a summary where ``option`` says, if it is let (STOP)."""
    script = directory / "torchrun"
    script.write_text(
        f'#!/usr/bin/env bash\necho "$PWD $*" >> {directory}/calls\n'
        f'while [[ $1 != {option} ]]; do shift; done\nmkdir -p "$2"\n'
        '[[ -n ${STOP:-} ]] || echo "{}" > "$2/summary.json"\n'
    )
    script.chmod(0o755)
    return script


def calls(torchrun: Path) -> list[list[str]]:
    path = torchrun.parent / "calls"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
