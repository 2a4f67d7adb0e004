"""The translation recipes: what they would run, under each budget and on any number of workers."""

import functools
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from recipes.figures import matching
from recipes.findings import read_findings
from recipes.plan import Run, read_plan
from tests.commands import ROOT
from tests.recipes.scripts import call, calls, listed, write_torchrun

pytest.importorskip("fairseq")

NAMES = ("libreoffice_en_de", "iwslt14_de_en", "wmt16_en_de")
TRAINING = [
    path
    for name in NAMES
    for path in sorted((ROOT / "recipes" / name).glob("*.sh"))
    if path.stem not in ("lib", "prepare", "evaluate")
]
SMALL = ROOT / "recipes" / "libreoffice_en_de"


def parsed(run: dict[str, Any]) -> Any:
    """The options as fairseq reads them."""
    from fairseq import options

    import codistill_ext.tasks.codistill_translation  # noqa: F401  registers the criterion

    command = run["command"]
    words = command[command.index("fairseq_cli.train") + 1 :]
    at = words.index("--user-dir")
    return options.parse_args_and_arch(options.get_training_parser(), words[:at] + words[at + 2 :])


def by_recipe(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("recipe", TRAINING, ids=by_recipe)
def test_fairseq_accepts_what_a_recipe_says(recipe: Path) -> None:
    for run in listed(recipe).values():
        options = parsed(run)
        assert options.codistill_models == (1 if "all_reduce" in run["name"] else 2)
        assert len(options.lr) == len(options.update_freq) == 1
        batches = run["processes"] * options.update_freq[0]
        assert batches == {"libreoffice_en_de": 2, "iwslt14_de_en": 8, "wmt16_en_de": 128}[recipe.parent.name]


@pytest.mark.parametrize("name", NAMES)
def test_headers_say_what_it_shows_what_it_costs_and_the_number_to_reach(name: str) -> None:
    scripts = sorted((ROOT / "recipes" / name).glob("*.sh"))
    assert {"prepare", "allreduce", "codistill", "evaluate"} <= {path.stem for path in scripts}
    for path in scripts:
        header = path.read_text().partition("\nsource ")[0]
        if path.stem == "lib":
            continue
        assert re.search(r"^# Cost: .*(core|GPU|V100)", header, re.M), path
        if path.stem not in ("prepare", "evaluate"):
            assert re.search(r"Should (reach|show): ", header), path


def test_the_published_settings_of_wmt16() -> None:
    """As fairseq's example for Ott et al. has them, with batches of 128 GPUs."""
    options = parsed(listed(ROOT / "recipes" / "wmt16_en_de" / "allreduce.sh")["all_reduce"])
    expected = {
        **{"encoder_layers": 6, "decoder_layers": 6, "encoder_embed_dim": 1024, "encoder_ffn_embed_dim": 4096},
        **{"encoder_attention_heads": 16, "encoder_normalize_before": False, "share_all_embeddings": True},
        **{"dropout": 0.3, "attention_dropout": 0.0, "weight_decay": 0.0, "label_smoothing": 0.1, "clip_norm": 0.0},
        **{"optimizer": "adam", "adam_betas": "(0.9, 0.98)", "lr": [1e-3], "lr_scheduler": "inverse_sqrt"},
        **{"warmup_updates": 4000, "warmup_init_lr": 1e-7, "max_tokens": 3584, "fp16": True, "keep_last_epochs": 10},
    }
    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_setups_of_the_talk_are_one_variable(name: str) -> None:
    """Updates of a worker, workers, and batches in an update of the whole job."""
    folder = ROOT / "recipes" / name

    def found(recipe: str, run: str, **variables: str) -> tuple[int, int, int]:
        listing = listed(folder / f"{recipe}.sh", ONLY=run, **variables)[run]
        options = parsed(listing)
        return options.max_update, listing["processes"], listing["processes"] * options.update_freq[0]

    updates, workers, batches = found("allreduce", "all_reduce")
    assert found("codistill", "codistilled") == (updates, workers, batches)
    assert found("allreduce", "all_reduce_half", BUDGET="half") == (2 * updates, workers // 2, batches // 2)
    equal_epochs = found("codistill", "codistilled_equal_epochs", BUDGET="equal-epochs")
    assert equal_epochs == (2 * updates, workers, batches)


def test_lowered_regularisation_is_a_schedule_over_the_run() -> None:
    from codistill_ext.schedules import Horizon, Schedule

    for name in NAMES:
        run = listed(ROOT / "recipes" / name / "codistill.sh")["codistilled_lowered"]
        options = parsed(run)
        horizon = Horizon(updates=options.max_update)
        for schedule, constant in (("label_smoothing", options.label_smoothing), ("dropout", options.dropout)):
            curve = Schedule.parse(getattr(options, f"codistill_{schedule}")).resolve(horizon, schedule)
            assert curve(0) == constant > curve(options.max_update)


@pytest.fixture
def torchrun(tmp_path: Path) -> Path:
    return write_torchrun(tmp_path, "--save-dir")


def test_runs_follow_each_other_and_finished_ones_are_used(torchrun: Path) -> None:
    variables = {"TORCHRUN": str(torchrun), "RUNS": str(torchrun.parent / "runs"), "SEED": "3", "EVALUATE": ""}
    first = call(SMALL / "alone.sh", EXTRA="--max-update 5", **variables)
    assert first.returncode == 0, first.stderr
    alone, lowered = calls(torchrun)
    assert alone[0] == str(ROOT) and alone[-2:] == ["--max-update", "5"]
    assert alone[alone.index("--save-dir") + 1] == f"{torchrun.parent}/runs/alone-s3"
    assert "--codistill-dropout" in lowered and "--codistill-dropout" not in alone
    again = call(SMALL / "alone.sh", EXTRA="--max-update 5", **variables)
    assert again.stdout.count("using the run in") == 2 and len(calls(torchrun)) == 2
    other = call(SMALL / "alone.sh", **variables)
    assert other.returncode == 2 and "with other options" in other.stderr and "< --max-update" in other.stderr


def test_a_run_that_was_trained_and_not_scored_has_not_ended(torchrun: Path) -> None:
    variables = {"TORCHRUN": str(torchrun), "RUNS": str(torchrun.parent / "runs"), "ONLY": "alone"}
    directory = torchrun.parent / "runs/alone-s1"
    (directory / "evaluation").mkdir(parents=True)
    (directory / "summary.json").write_text("{}")
    assert "has no model0" in call(SMALL / "alone.sh", **variables).stderr  # by translation.evaluate
    assert len(calls(torchrun)) == 1
    (directory / "evaluation/test.json").write_text("{}")
    assert "using the run in" in call(SMALL / "alone.sh", **variables).stdout


def test_nodes_meet_and_the_batches_of_an_update_stay_the_same(torchrun: Path) -> None:
    variables = {"TORCHRUN": str(torchrun), "RUNS": str(torchrun.parent / "runs"), "ONLY": "all_reduce"}
    recipe = ROOT / "recipes" / "wmt16_en_de" / "allreduce.sh"
    call(recipe, NNODES="4", PER_NODE="8", HEAD="host:29500", **variables)
    text = " ".join(calls(torchrun)[0])
    assert "--nnodes 4 --rdzv-backend c10d --rdzv-endpoint host:29500 --rdzv-id all_reduce-s1" in text
    assert "--nproc-per-node 8" in text and "--update-freq 4" in text


def test_mistakes_are_said() -> None:
    assert "BUDGET is equal-updates, equal-epochs or half, not x" in call(SMALL / "allreduce.sh", BUDGET="x").stderr
    assert "BUDGET=half is of all_reduce" in call(SMALL / "codistill.sh", BUDGET="half").stderr
    wmt16 = ROOT / "recipes" / "wmt16_en_de" / "codistill.sh"
    assert "6 processes cannot share the 128 batches of an update" in call(wmt16, PER_NODE="6").stderr
    slip = call(SMALL / "allreduce.sh", BUDGET="half", ONLY="all_reduce")
    assert slip.returncode == 2 and "no run all_reduce, but all_reduce_half all_reduce_lowered_half" in slip.stderr
    assert "needs an even PER_NODE, not 1" in call(SMALL / "allreduce.sh", BUDGET="half", PER_NODE="1").stderr
    assert "set ARCHIVE=" in call(ROOT / "recipes" / "wmt16_en_de" / "prepare.sh").stderr


def test_slurm_starts_the_recipe_on_each_node_and_queues_it_again_before_its_time_is_over(torchrun: Path) -> None:
    commands = torchrun.parent / "commands"
    commands.mkdir()
    bodies = {
        "scontrol": 'echo "first"; echo "$*" >> $CALLS',
        "srun": '[[ -z ${LATE:-} ]] || exec kill -USR1 $PPID\n[[ $1 != --cpus* ]] || shift\nexec "$@"',
    }
    for name, body in bodies.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (commands / name).chmod(0o755)
    variables = {
        **{"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"},
        **{"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "77", "CALLS": str(torchrun.parent / "scontrol")},
        **{"PATH": f"{commands}:{os.environ['PATH']}", "TORCHRUN": str(torchrun), "ONLY": "codistilled"},
        **{"RUNS": str(torchrun.parent / "runs")},
    }
    template, recipe = ROOT / "recipes/lib/translation.sbatch", ROOT / "recipes/wmt16_en_de/codistill.sh"
    assert call(template, str(recipe), **variables).returncode == 0
    assert "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint first:29500" in " ".join(calls(torchrun)[0])
    call(template, str(recipe), LATE="1", **variables)
    assert (torchrun.parent / "scontrol").read_text().splitlines()[-1] == "requeue 77"


@functools.cache
def planned() -> list[Run]:
    return read_plan(ROOT / "results/libreoffice_en_de/plan.yaml").runs


def test_findings_are_about_planned_runs_with_enough_seeds() -> None:
    seeds: dict[str, set[int]] = {}
    for run in planned():
        seeds.setdefault(run.arm, set()).add(run.seed)
    assert max(seed for chosen in seeds.values() for seed in chosen) < 100  # those are for pilots
    for finding in read_findings(SMALL / "findings.yaml"):
        for pattern in finding.arms:
            assert matching(seeds, [pattern]), pattern
        for claim in finding.claims:
            assert sum(claim.contrast.values()) == 0
            common = set.intersection(*(seeds[arm] for arm in claim.contrast))
            assert len(common) >= (5 if finding.id == "1" or "1/8" in claim.text else 3), claim


def test_the_plan_still_is_what_has_been_run_and_all_runs_end_with_their_scores() -> None:
    """The recipes, which the plan asks for its commands, give those that the kept results are of."""
    commands = {run.name: shlex.join(run.command) for run in planned()}
    kept = [json.loads(path.read_text()) for path in (ROOT / "results/libreoffice_en_de/runs").glob("*.json")]
    assert kept
    assert {one["name"]: one["command"] for one in kept} == {one["name"]: commands[one["name"]] for one in kept}
    for run in planned():
        assert run.command[:3] == ("bash", "recipes/lib/evaluated.sh", f"runs/libreoffice_en_de/{run.name}")
