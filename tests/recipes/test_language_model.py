"""The recipe for causal language models: sharded runs, their figures, and what a kill leaves."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.language_model.gpt import GPT
from recipes.language_model.table import main as print_table
from tests.ranks import RankError, run_ranks
from tests.recipes.language_models import (
    BY_FILES,
    KILLED_AFTER,
    SIZES,
    TWO,
    UPDATES,
    mistakes,
    options,
    text_of,
    train,
)
from tests.states import assert_same, without

pytest.importorskip("sentencepiece", reason="the extra 'translation' is not installed")


def _naive(states: list[dict[str, Tensor]], blocks: Tensor) -> list[float]:
    """Perplexity of each model and of the mean of their probabilities, block by block on one process."""
    probabilities = []
    for state in states:
        net = GPT(SIZES).eval()
        net.load_state_dict(state)
        own = [F.softmax(net(block[None, :-1])[0], -1)[torch.arange(SIZES.context), block[1:]] for block in blocks]
        probabilities.append(torch.cat(own).double().detach())
    probabilities.append(torch.stack(probabilities).mean(0))
    return [math.exp(-chances.log().mean().item()) for chances in probabilities]


@pytest.fixture(scope="module")
def codistilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Two models on two ranks each, by predictions, without a break."""
    root = tmp_path_factory.mktemp("language_model")
    return root, run_ranks(4, train, options(str(root), "codistilled", *TWO))


@pytest.mark.slow
def test_the_figures_are_those_of_the_models_on_one_process(codistilled: tuple[Path, list[dict[str, Any]]]) -> None:
    root, ranks = codistilled
    summary = ranks[0]["summary"]
    for split in ("valid", "test"):
        found = [model[f"{split}_perplexity"] for model in summary["models"]]
        found.append(summary[f"ensemble_{split}_perplexity"])
        naive = _naive([ranks[0]["state"], ranks[2]["state"]], text_of(root)[split])
        assert found == pytest.approx(naive, rel=1e-5)
        assert summary[f"mean_{split}_perplexity"] == pytest.approx(sum(naive[:2]) / 2, rel=1e-5)
    assert [model["model"] for model in summary["models"]] == [0, 1]
    assert summary["models"][0]["test_perplexity"] < 0.8 * SIZES.vocabulary  # it has learnt
    assert summary["pieces"] == UPDATES * 4 * 2 * SIZES.context and summary["bytes"]["sent/predictions"] > 0


@pytest.mark.slow
def test_a_run_leaves_what_other_runs_leave(codistilled: tuple[Path, list[dict[str, Any]]]) -> None:
    run = codistilled[0] / "codistilled"
    written = json.loads((run / "summary.json").read_text())
    assert written.pop("environment")["torch"] == torch.__version__
    assert written == codistilled[1][0]["summary"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for model in range(2):
        losses = [line[f"model{model}/train/codistill_loss"] for line in lines if f"model{model}/train/loss" in line]
        assert len(losses) == UPDATES and min(losses) > 0
        assert [line["update"] for line in lines if f"model{model}/valid/perplexity" in line] == [3]
    assert (run / "config.yaml").exists()


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bits(codistilled: tuple[Path, list[dict[str, Any]]]) -> None:
    root, whole = codistilled
    again = options(str(root), "killed", *TWO)
    with pytest.raises(RankError):
        run_ranks(4, train, again, True)
    assert not (root / "killed" / "summary.json").exists()
    continued = run_ranks(4, train, again)
    updates = [json.loads(line)["update"] for line in (root / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert updates.index(UPDATES) > max(i for i, update in enumerate(updates) if update == KILLED_AFTER)
    for before, after in zip(whole, continued, strict=True):
        assert_same(before["state"], after["state"])
        assert_same(*(without(rank["summary"], ("seconds", "output_dir")) for rank in (before, after)))


@pytest.mark.slow
def test_one_model_on_all_ranks_stands_in_the_same_table(
    codistilled: tuple[Path, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, ranks = codistilled
    alone = run_ranks(4, train, options(str(root), "all_reduce"))[0]["summary"]
    assert alone["ensemble_test_perplexity"] == pytest.approx(alone["models"][0]["test_perplexity"])
    assert alone["pieces"] == ranks[0]["summary"]["pieces"], "equal work"
    print_table([str(root / "all_reduce"), str(root / "codistilled")])
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[:2] for row in cells] == [["all_reduce", "model 0"]] + [
        ["codistilled", name] for name in ("model 0", "model 1", "mean", "ensemble")
    ]
    assert cells[0][-1] == f"{alone['models'][0]['test_perplexity']:.2f}"


def test_another_run_does_not_continue_this_one(codistilled: tuple[Path, list[dict[str, Any]]]) -> None:
    root = str(codistilled[0])
    argvs = [
        options(root, "codistilled", *TWO, "--lr", "0.1"),
        options(root, "files", *TWO[:2], *BY_FILES),
        options(root, "long", *TWO, "--context", "1000000"),
    ]
    for told in run_ranks(4, mistakes, argvs):
        assert "holds a run with other options (lr: 0.05 then, 0.1 now)" in told[0]
        assert "choose predictions or checkpoints" in told[1]
        assert "choose a shorter --context" in told[2]
