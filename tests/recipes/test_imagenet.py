"""The recipes of recipes/imagenet, at both scales: what they would run, and what findings and plan make of it."""

import functools
import json
import os
import re
import shlex
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recipes.figures import matching
from recipes.findings import read_aliases, read_findings
from recipes.plan import Run, read_plan
from tests import commands, warm
from tests.commands import ROOT
from tests.recipes.scripts import call, calls, listed, write_torchrun
from tests.vision.small import write_folders

pytest.importorskip("torchvision")

DIRECTORY = ROOT / "recipes" / "imagenet"
RECIPES = sorted(path for path in DIRECTORY.glob("*.sh") if path.name != "lib.sh")
FINDINGS = read_findings(DIRECTORY / "findings.yaml")
PLAN = ROOT / "results" / "cifar10" / "plan.yaml"


@functools.cache
def planned() -> list[Run]:
    return read_plan(PLAN).runs


def options_of(command: list[str]) -> list[str]:
    return command[command.index("vision.train") + 1 :]


@pytest.mark.parametrize("scale", ["imagenet", "cifar10"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_trainer_accepts_what_a_recipe_says(recipe: Path, scale: str) -> None:
    from vision.options import build_parser, parse_options

    for run in listed(recipe, SCALE=scale).values():
        options = parse_options(build_parser(), options_of(run["command"]))
        assert run["processes"] % options.config.models == 0
        # Equal work: n models share it, and the images of an update are those of the scale.
        assert options.args.budget == ("equal-updates" if options.config.models > 1 else "equal-epochs")
        images = options.args.batch_size * options.args.accumulate * run["processes"]
        more = {"three_models": [1.5], "four_models": [2], "batch_size": [2, 4, 8]}.get(recipe.stem, [1])
        assert images in [factor * (512 if scale == "imagenet" else 128) for factor in more]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_both_scales_have_the_same_runs(recipe: Path) -> None:
    small, large = listed(recipe, SCALE="cifar10").keys(), listed(recipe, SCALE="imagenet").keys()
    if recipe.stem == "less_data":  # the main runs are those with 1/8 and with all of the data
        small, large = ({re.sub(r"_k\d+", "", name) for name in names} for names in (small, large))
    if recipe.stem == "exchange":  # of 10 and of 1000 predictions
        small, large = ({re.sub(r"top_\d+", "top", name) for name in names} for names in (small, large))
    assert small == large


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_header_says_what_it_shows_what_it_costs_and_the_number_to_reach(recipe: Path) -> None:
    header = recipe.read_text().partition("\nsource ")[0]
    assert re.search(r"^# (Item \d|Control|Ours|The yardstick|A second)", header, re.M), header
    cost = header.partition("# Cost: ")[2].replace("\n# ", " ").partition("Should ")[0]
    assert re.search(r"(GPU|V100).* hours", cost), recipe
    assert re.search(r"Should (reach|show): ", header)


@pytest.mark.parametrize("scale", ["imagenet", "cifar10"])
def test_findings_are_about_runs_of_the_recipes(scale: str) -> None:
    names = {name for recipe in RECIPES for name in listed(recipe, SCALE=scale)}
    aliases = read_aliases(DIRECTORY / "findings.yaml", [scale])
    assert set(aliases.values()) <= names
    names |= set(aliases)
    for finding in FINDINGS:
        for pattern in finding.arms:
            assert matching(names, [pattern]), pattern
        for claim in finding.claims:
            assert claim.contrast.keys() <= names
            assert sum(claim.contrast.values()) == 0
    assert [finding.id for finding in FINDINGS if finding.id.isdigit()] == [str(number) for number in range(1, 11)]


def test_the_plan_has_enough_seeds_for_each_claim() -> None:
    seeds: dict[str, set[int]] = {}
    for run in planned():
        seeds.setdefault(run.arm, set()).add(run.seed)
    assert max(seed for chosen in seeds.values() for seed in chosen) < 100  # those are for pilots
    for finding in FINDINGS:
        for claim in finding.claims:
            common = set.intersection(*(seeds[arm] for arm in claim.contrast))
            assert len(common) >= (8 if finding.id in ("1", "2") and "milestones" not in claim.text else 3), claim


def test_the_plan_still_is_what_has_been_run() -> None:
    """The recipes, which the plan asks for its commands, give those that the kept results are of."""
    commands = {run.name: shlex.join(run.command) for run in planned()}
    kept = [json.loads(path.read_text()) for path in (ROOT / "results/cifar10/runs").glob("*.json")]
    assert kept
    assert {one["name"]: one["command"] for one in kept} == {one["name"]: commands[one["name"]] for one in kept}


@pytest.fixture
def torchrun(tmp_path: Path) -> Path:
    return write_torchrun(tmp_path, "--output-dir")


def test_runs_follow_each_other_and_finished_ones_are_used(torchrun: Path) -> None:
    variables = {"SCALE": "cifar10", "TORCHRUN": str(torchrun), "RUNS": str(torchrun.parent / "runs"), "SEED": "3"}
    first = call(DIRECTORY / "control_alone.sh", EXTRA="--max-updates 5", **variables)
    assert first.returncode == 0, first.stderr
    alone, adjusted = calls(torchrun)
    assert alone[0] == str(ROOT) and alone[-2:] == ["--max-updates", "5"]
    assert alone[alone.index("--output-dir") + 1] == f"{torchrun.parent}/runs/alone-s3"
    assert adjusted[adjusted.index("--weight-decay") + 1] == "5e-4,5e-5,0"
    again = call(DIRECTORY / "control_alone.sh", EXTRA="--max-updates 5", **variables)
    assert again.stdout.count("using the run in") == 2 and len(calls(torchrun)) == 2


def test_a_finished_run_with_other_options_is_not_taken_for_this_one(torchrun: Path) -> None:
    variables = {"SCALE": "cifar10", "TORCHRUN": str(torchrun), "RUNS": str(torchrun.parent / "runs")}
    call(DIRECTORY / "all_reduce.sh", **variables)
    other = call(DIRECTORY / "all_reduce.sh", MODEL="resnet14_stride2", **variables)
    assert other.returncode == 2 and len(calls(torchrun)) == 1
    assert "is of a run all_reduce with other options" in other.stderr and "choose another RUNS" in other.stderr
    assert "< resnet8_stride2\n> resnet14_stride2" in other.stderr
    # On another number of processes, from another place, it is the same run.
    moved = torchrun.parent / "moved"
    (torchrun.parent / "runs").rename(moved)
    again = call(DIRECTORY / "all_reduce.sh", **variables | {"RUNS": str(moved), "PER_NODE": "1"})
    assert "using the run in" in again.stdout, again.stderr
    (moved / "all_reduce-s0/summary.json").unlink()
    other = call(DIRECTORY / "all_reduce.sh", **variables | {"RUNS": str(moved)}, EXTRA="--max-updates 5")
    assert other.returncode == 2 and len(calls(torchrun)) == 1, "an unfinished one is compared too"


def test_models_that_nobody_asked_for_need_no_processes(torchrun: Path) -> None:
    variables = {"SCALE": "cifar10", "TORCHRUN": str(torchrun), "RUNS": str(torchrun.parent / "runs"), "PER_NODE": "1"}
    names = "rate_x0.5_all_reduce rate_x2_all_reduce"
    assert call(DIRECTORY / "learning_rate.sh", ONLY=names, **variables).returncode == 0
    assert len(calls(torchrun)) == 2


def test_an_interrupted_run_ends_the_recipe_with_a_status_of_its_own(torchrun: Path) -> None:
    variables = {"SCALE": "cifar10", "TORCHRUN": str(torchrun), "RUNS": str(torchrun.parent / "runs"), "STOP": "1"}
    assert call(DIRECTORY / "control_alone.sh", **variables).returncode == 75
    assert len(calls(torchrun)) == 1


def test_told_to_leave_by_sigterm_the_recipe_waits_for_the_trainer_and_says_so(torchrun: Path) -> None:
    """As SLURM preempts: everybody gets the signal. torchrun then ends with 1, as it does after errors."""
    script = torchrun.with_name("ended_by_sigterm")
    script.write_text('#!/usr/bin/env bash\nkill -TERM "$PPID"\nsleep 0.5\necho saved\nexit 1\n')
    script.chmod(0o755)
    variables = {"SCALE": "cifar10", "TORCHRUN": str(script), "RUNS": str(torchrun.parent / "runs")}
    ended = call(DIRECTORY / "control_alone.sh", **variables)
    assert ended.returncode == 75 and ended.stdout.count("saved") == 1
    # The signal may come when the run is about to end well: the next one is not begun.
    script.write_text(f'#!/usr/bin/env bash\nkill -TERM "$PPID"\nexec {torchrun} "$@"\n')
    assert call(DIRECTORY / "control_alone.sh", **variables).returncode == 75
    assert len(calls(torchrun)) == 1 and (torchrun.parent / "runs/alone-s0/summary.json").exists()
    script.write_text("#!/usr/bin/env bash\nexit 3\n")
    assert call(DIRECTORY / "control_alone.sh", **variables).returncode == 3


def test_nodes_meet_and_the_images_of_an_update_stay_the_same(torchrun: Path) -> None:
    variables = {"DATA": "/data", "TORCHRUN": str(torchrun), "RUNS": str(torchrun.parent / "runs")}
    call(DIRECTORY / "all_reduce.sh", NNODES="2", PER_NODE="4", HEAD="host:29500", **variables)
    (words,) = calls(torchrun)
    text = " ".join(words)
    assert "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint host:29500 --rdzv-id all_reduce-s0" in text
    assert "--nproc-per-node 4" in text
    assert "--batch-size 32 --accumulate 2" in text


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_recipe_trains_at_imagenets_scale_on_a_tree_of_pictures(nodes: int, tmp_path: Path) -> None:
    """512 images an update, with small crops and a small net; the two nodes are torchruns on one machine."""
    write_folders(tmp_path / "data", train=40, val=4)
    warm_torchrun = commands.stand_in(
        tmp_path, "torchrun", shlex.join(["exec", warm.python(), commands.script("torchrun")]) + ' "$@"'
    )
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    extra = "--device cpu --amp-dtype bfloat16 --train-crop-size 32 --val-resize-size 36 --val-crop-size 32 -j 0"
    variables = {
        **{"DATA": str(tmp_path / "data"), "RUNS": str(tmp_path / "runs"), "TORCHRUN": str(warm_torchrun)},
        **{"NNODES": str(nodes), "PER_NODE": str(2 // nodes), "HEAD": f"localhost:{port}", "MODEL": "resnet18"},
        "EXTRA": f"{extra} --max-updates 2",
    }
    command = [commands.script("bash"), str(DIRECTORY / "adjusted.sh")]
    with ThreadPoolExecutor(nodes) as pool:
        outputs = list(pool.map(lambda _: commands.run(command, variables=variables), range(nodes)))
    assert "preset goyal: " in "".join(outputs) and "codistilled_adjusted: " in outputs[0]
    summary = json.loads((tmp_path / "runs/codistilled_adjusted-s0/summary.json").read_text())
    assert summary["updates"] == 2 and len(summary["models"]) == 2


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 5, 6, 8, 16])
def test_any_number_of_gpus_has_the_same_images_in_an_update_or_is_refused(nodes: int, gpus: int) -> None:
    variables = {"NNODES": str(nodes), "PER_NODE": str(gpus), "HEAD": "host:1", "LIST": "1", "AT_ONCE": "24"}
    output = call(DIRECTORY / "all_reduce.sh", **variables)
    if 512 % (nodes * gpus):
        assert output.returncode == 2 and f"{nodes * gpus} processes cannot share the 512 images" in output.stderr
        return
    command = json.loads(output.stdout)["command"]
    batch, accumulated = (int(command[command.index(flag) + 1]) for flag in ("--batch-size", "--accumulate"))
    assert batch <= 24 and nodes * gpus * batch * accumulated == 512


def test_goyals_warmup_begins_at_a_tenth_whatever_the_rate_is() -> None:
    """Paper, section 4: from 0.1 over 5 of 90 epochs; 0.2 for a codistilled model is one of its two rates."""
    from vision.options import build_parser, parse_options

    runs = listed(DIRECTORY / "learning_rate.sh", SCALE="imagenet")
    for name, rate in {"rate_x2_codistilled": 0.2, "rate_x4_codistilled": 0.4, "rate_x2_all_reduce": 0.4}.items():
        args = parse_options(build_parser(), options_of(runs[name]["command"])).args
        assert (args.lr, args.lr_scaling, args.lr_warmup_epochs) == (pytest.approx(rate), "none", 5)
        assert args.lr * args.lr_warmup_decay == pytest.approx(0.1)


def test_mistakes_are_said() -> None:
    assert "set DATA=DIR" in call(DIRECTORY / "all_reduce.sh", DATA="").stderr
    assert "imagenet or cifar10, not x" in call(DIRECTORY / "all_reduce.sh", SCALE="x").stderr
    assert "set it to HOST:PORT of one of them" in call(DIRECTORY / "all_reduce.sh", DATA="/d", NNODES="2").stderr
    three = call(DIRECTORY / "three_models.sh", DATA="/d", PER_NODE="8")
    assert "3 models cannot share 8 processes evenly" in three.stderr
    slip = call(DIRECTORY / "cosine.sh", SCALE="cifar10", ONLY="cosine", TORCHRUN="true")
    assert slip.returncode == 2 and "this recipe has no run cosine, but cosine_all_reduce" in slip.stderr


def test_slurm_starts_the_recipe_on_each_node_and_queues_what_is_unfinished(torchrun: Path) -> None:
    commands = torchrun.parent / "commands"
    commands.mkdir()
    for name, body in {
        "scontrol": 'echo "first"; echo "$*" >> $CALLS',
        "srun": '[[ $1 != --cpus* ]] || shift; exec "$@"',
    }.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (commands / name).chmod(0o755)
    variables = {
        **{"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"},
        **{"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "77", "CALLS": str(torchrun.parent / "scontrol")},
        **{"PATH": f"{commands}:{os.environ['PATH']}", "TORCHRUN": str(torchrun), "DATA": "/data", "STOP": "1"},
    }
    variables["RUNS"] = str(torchrun.parent / "runs")
    command = ["bash", str(DIRECTORY / "slurm.sbatch"), str(DIRECTORY / "adjusted.sh")]
    ended = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 75, ended.stderr
    assert "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint first:29500" in " ".join(calls(torchrun)[0])
    assert (torchrun.parent / "scontrol").read_text().splitlines()[-1] == "requeue 77"
