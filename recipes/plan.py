"""A plan of runs, read from YAML: groups of named runs, each for several seeds.

    output: runs/cifar10                      # a directory a run below it
    command: torchrun --standalone --nproc-per-node {processes} -m vision.train --seed {seed} --output-dir {directory}
    groups:
      - name: main
        seeds: 0-7
        runs:
          all_reduce: {processes: 2, options: --lr 0.1}
          codistilled: {processes: 2, options: --lr 0.1 --codistill-models 2}
      - name: period
        seeds: [0, 1, 2]
        recipe: recipes/imagenet/period.sh    # its own list of runs, or of several recipes
        variables: {SCALE: cifar10}
        only: [period_x2]                     # default: all of them

Which trainer runs is nothing but the command. A recipe is a script that lists its runs when LIST=1 is set: a line of
JSON each, with ``name``, ``processes`` and ``command``, for the seed in SEED and the directory in RUNS.
Groups are in the order of their importance, and a group's seeds before its runs: whatever part of the plan has been
run, all arms have been run equally often.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_PLAN_KEYS = {"output", "command", "environment", "groups"}
_GROUP_KEYS = {"name", "seeds", "runs", "recipe", "variables", "only"}
_RUN_KEYS = {"processes", "options"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One job. ``name`` is that of its arm and its seed; ``group``: where the plan asks for it first."""

    name: str
    arm: str
    group: str
    seed: int
    processes: int
    command: tuple[str, ...]
    directory: Path


@dataclass(frozen=True, kw_only=True)
class Plan:
    output: Path
    runs: list[Run]
    environment: dict[str, str] = field(default_factory=dict)


def read_plan(path: Path) -> Plan:
    """Read a plan and write out all of its runs, in order.

    Raises:
        ValueError: the plan is not as it should be: what was expected, what came, what to change.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"the plan {path} cannot be read: {error}") from error
    _check_keys(values, _PLAN_KEYS, f"the plan {path}", needed=("output", "groups"))
    output = Path(values["output"])
    environment = {name: str(value) for name, value in values.get("environment", {}).items()}
    runs: dict[str, Run] = {}
    for group in values["groups"]:
        _check_keys(group, _GROUP_KEYS, f"a group of {path}", needed=("name", "seeds"))
        for run in _runs_of(group, output, values.get("command")):
            known = runs.setdefault(run.name, run)
            if known.command != run.command:
                raise ValueError(
                    f"{path}: groups {known.group} and {run.group} both have a run {run.name}, with other commands "
                    f"({shlex.join(known.command)} and {shlex.join(run.command)}): rename one"
                )
    return Plan(output=output, runs=list(runs.values()), environment=environment)


def _check_keys(values: Any, known: set[str], what: str, *, needed: Sequence[str] = ()) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{what} must be a mapping, not {values!r}")
    unknown, missing = sorted(values.keys() - known), [key for key in needed if key not in values]
    if unknown or missing:
        raise ValueError(f"{what} has {unknown or 'nothing'} that is not known, and lacks {missing or 'nothing'}")


def _runs_of(group: Mapping[str, Any], output: Path, template: str | None) -> Iterator[Run]:
    if ("runs" in group) == ("recipe" in group):
        raise ValueError(f"group {group['name']} must have either runs or a recipe")
    for seed in read_seeds(group["seeds"]):
        arms = _of_recipe(group, output, seed) if "recipe" in group else _of_options(group, output, seed, template)
        for arm, processes, command in arms:
            name = f"{arm}-s{seed}"
            yield Run(
                name=name,
                arm=arm,
                group=group["name"],
                seed=seed,
                processes=processes,
                command=tuple(command),
                directory=output / name,
            )


def read_seeds(value: Any) -> list[int]:
    """``[0, 2]``, ``3`` or ``0-7``.

    Raises:
        ValueError: it is none of these.
    """
    first, _, last = str(value).partition("-")
    if isinstance(value, list) and all(isinstance(seed, int) for seed in value):
        return value
    if not first.isdigit() or not (last or first).isdigit():
        raise ValueError(f"seeds are a list, a number or a range such as 0-7, not {value!r}")
    return list(range(int(first), int(last or first) + 1))


def _of_options(
    group: Mapping[str, Any], output: Path, seed: int, template: str | None
) -> Iterator[tuple[str, int, list[str]]]:
    if template is None:
        raise ValueError(f"group {group['name']} has runs with options: the plan needs a command that they belong to")
    for arm, values in group["runs"].items():
        _check_keys(values, _RUN_KEYS, f"run {arm}")
        processes = values.get("processes", 1)
        places = {"processes": processes, "seed": seed, "directory": output / f"{arm}-s{seed}"}
        words = [word.format(**places) for word in shlex.split(template)]
        yield arm, processes, words + shlex.split(values.get("options", ""))


def _of_recipe(group: Mapping[str, Any], output: Path, seed: int) -> Iterator[tuple[str, int, list[str]]]:
    """Of one recipe or several, all of their runs or those that the group names."""
    recipes = [group["recipe"]] if isinstance(group["recipe"], str) else group["recipe"]
    variables = {name: str(value) for name, value in group.get("variables", {}).items()}
    variables |= {"LIST": "1", "SEED": str(seed), "RUNS": str(output)}
    lines = [line for recipe in recipes for line in _listed(recipe, variables)]
    only = group.get("only", [line["name"] for line in lines])
    if unknown := set(only) - {line["name"] for line in lines}:
        raise ValueError(f"{', '.join(recipes)} has no runs {sorted(unknown)}")
    for line in lines:
        if line["name"] in only:
            yield line["name"], line["processes"], line["command"]


def _listed(recipe: str, variables: Mapping[str, str]) -> list[dict[str, Any]]:
    listed = subprocess.run(
        ["bash", recipe], env=os.environ | dict(variables), capture_output=True, text=True, check=False
    )
    if listed.returncode:
        raise ValueError(f"{recipe} cannot list its runs: {listed.stderr.strip()}")
    return [json.loads(line) for line in listed.stdout.splitlines()]
