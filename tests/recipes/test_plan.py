"""Plans: what a few lines of YAML are written out to."""

import json
from pathlib import Path

import pytest

from recipes.plan import read_plan, read_seeds

PLAN = """
output: runs/x
command: train -n {processes} --seed {seed} --to {directory}
environment: {THREADS: 1}
groups:
  - name: main
    seeds: 0-1
    runs:
      a: {processes: 2, options: --lr 0.1}
      b: {options: "--name 'two words'"}
  - name: more
    seeds: [1, 2]
    runs:
      a: {processes: 2, options: --lr 0.1}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return path


def test_seeds_come_before_runs_and_a_run_of_two_groups_is_one_run(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, PLAN))
    assert [(run.name, run.group) for run in plan.runs] == [
        *(("a-s0", "main"), ("b-s0", "main"), ("a-s1", "main"), ("b-s1", "main")),
        ("a-s2", "more"),
    ]
    assert plan.environment == {"THREADS": "1"}
    first, second = plan.runs[:2]
    assert first.command == ("train", "-n", "2", "--seed", "0", "--to", "runs/x/a-s0", "--lr", "0.1")
    assert first.directory == Path("runs/x/a-s0") and first.processes == 2
    assert second.command[-1] == "two words" and second.processes == 1


def test_a_recipe_lists_its_own_runs(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.sh"
    line = json.dumps({"name": "NAME", "processes": 2, "command": ["go", "SEED", "RUNS", "SCALE"]})
    recipe.write_text(
        f"for name in a b; do echo '{line}' | sed \"s/NAME/$name/;s/SEED/$SEED/;s/SCALE/$SCALE/;s,RUNS,$RUNS,\"; done"
    )
    group = f"{{name: g, seeds: 5, recipe: {recipe}, variables: {{SCALE: small}}, only: [b]}}"
    (run,) = read_plan(write(tmp_path, f"output: out\ngroups: [{group}]")).runs
    assert (run.name, run.seed, run.processes, run.command) == ("b-s5", 5, 2, ("go", "5", "out", "small"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: x", "lacks .*groups"),
        (PLAN.replace("seeds: 0-1", "seed: 0"), "seed"),
        (PLAN + "      b: {options: --other}\n", "both have a run b-s1"),
        (PLAN.replace("seeds: [1, 2]", "seeds: [1, 2]\n    recipe: x.sh"), "either runs or a recipe"),
        (PLAN.rpartition("0.1")[0] + "0.2}\n", "both have a run a-s1"),
        (PLAN.replace("command:", "environmen:"), "environmen"),
        ("output: x\ngroups: [{name: g, seeds: 1, recipe: missing.sh}]", "cannot list its runs.*missing"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        read_plan(path)


def test_seeds_are_a_list_a_number_or_a_range() -> None:
    assert read_seeds("3-5") == [3, 4, 5] and read_seeds(7) == [7] and read_seeds([2, 0]) == [2, 0]
    for wrong in ("a", "1-b", None, ["1"]):
        with pytest.raises(ValueError, match="seeds are"):
            read_seeds(wrong)
