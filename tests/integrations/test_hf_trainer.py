"""Hugging Face's Trainer beside other models: held against the host alone, a naive loop, and itself without a break."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codistill_ext import CodistillConfig, model_seed
from tests.integrations.tiny import Sequences, language_model
from tests.integrations.trainers import SEED, arguments, coupled, plain, refused, seq2seq
from tests.ranks import RankError, run_ranks
from tests.states import assert_same

pytest.importorskip("transformers", reason="the extra 'huggingface' is not installed")

NUMBERS = ("loss", "grad_norm", "learning_rate", "train_loss")


def _numbers(log: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: line[name] for name in NUMBERS if name in line} for line in log]


@pytest.mark.slow
def test_alpha_zero_is_each_model_by_the_host_alone_bit_for_bit(tmp_path: Path) -> None:
    job = run_ranks(4, coupled, 4, {"models": 2, "alpha": 0.0}, arguments(str(tmp_path / "job")))
    for model in range(2):
        alone = run_ranks(2, plain, 2, model, arguments(str(tmp_path / f"alone{model}")))
        for rank in range(2):
            assert_same(job[2 * model + rank]["state"], alone[rank]["state"])
        trained = job[2 * model]["log"][:-2]
        assert _numbers(trained) == _numbers(alone[0]["log"])


def test_one_model_is_the_host_alone_bit_for_bit(tmp_path: Path) -> None:
    job = run_ranks(2, coupled, 2, {"models": 1}, arguments(str(tmp_path / "job")))
    alone = run_ranks(2, plain, 2, 0, arguments(str(tmp_path / "alone")))
    assert_same(job[0]["state"], alone[0]["state"])


def _batch(step: int) -> tuple[Tensor, Tensor]:
    """What the two ranks of a model read in two micro-batches each."""
    rows = [Sequences()[index % 24] for index in range(8 * step, 8 * step + 8)]
    return torch.stack([row["input_ids"] for row in rows]), torch.stack([row["labels"] for row in rows])


def _naive(steps: int, lr: float) -> tuple[list[dict[str, Tensor]], list[list[float]], list[list[float]]]:
    """The paper's algorithm in one process; states, task losses and divergences by model."""
    models = [language_model(model_seed(SEED, index), dropout=0.0).train() for index in range(2)]
    tasks: list[list[float]] = [[], []]
    terms: list[list[float]] = [[], []]
    for step in range(steps):
        tokens, labels = _batch(step)
        items = (labels != -100).sum()  # of GPT-2 Trainer counts the first one, too, which is nobody's target
        labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        count = labels != -100
        logits = [model(tokens).logits[count] for model in models]
        for index, model in enumerate(models):
            teacher = logits[1 - index].detach().log_softmax(-1)
            task = F.cross_entropy(logits[index], labels[count], reduction="sum") / items
            term = (teacher.exp() * (teacher - logits[index].log_softmax(-1))).sum() / items
            model.zero_grad()
            (task + term).backward(retain_graph=True)
            tasks[index].append(task.item())
            terms[index].append(term.item())
        for model in models:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= lr * parameter.grad
    return [dict(model.state_dict()) for model in models], tasks, terms


def test_two_models_of_two_ranks_are_the_papers_algorithm(tmp_path: Path) -> None:
    like_naive = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "learning_rate": 0.3}
    given = arguments(str(tmp_path), **like_naive, train_sampling_strategy="sequential")
    job = run_ranks(4, coupled, 4, {"models": 2}, given, False, None, 0.0)
    states, tasks, terms = _naive(6, 0.3)
    for rank, result in enumerate(job):
        assert result["model"] == rank // 2 and result["updates"] == 6
        assert result["directory"] == str(tmp_path / f"model{rank // 2}")
        torch.testing.assert_close(result["state"], states[rank // 2])
    for model in range(2):
        lines = [line for line in job[2 * model]["log"] if "loss" in line]
        assert len(lines) == 3
        for number, line in enumerate(lines):
            here = slice(2 * number, 2 * number + 2)
            assert math.isclose(line["task_loss"], sum(tasks[model][here]) / 2, rel_tol=1e-5)
            assert math.isclose(line["codistillation_loss"], sum(terms[model][here]) / 2, rel_tol=1e-4)
            assert math.isclose(line["loss"], line["task_loss"] + line["codistillation_loss"], rel_tol=1e-5)
            assert line["alpha"] == 1.0 and line[f"staleness/{1 - model}"] == 0.0
        assert job[2 * model]["eval"] == job[2 * model]["eval_without"] < 3


CHECKPOINTS = {"exchange": "checkpoints", "period": 2, "lag": 1}


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True], ids=["predictions", "checkpoints-bf16"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not(bf16: bool, tmp_path: Path) -> None:
    given = arguments(str(tmp_path), save_strategy="steps", save_steps=1, max_steps=7, bf16=bf16)
    options = {"models": 2} | (CHECKPOINTS if bf16 else {})
    whole = run_ranks(4, coupled, 4, options, given)
    assert whole[0]["autocast"] == (torch.bfloat16 if bf16 else None)
    for update in (4, 5, 6, 7):  # killed while it saved, and model 1 has not come so far
        path = tmp_path / f"model{update % 2}" / f"checkpoint-{update}" / "codistill.pt"
        path.write_bytes(path.read_bytes()[:-100])
    resumed = run_ranks(4, coupled, 4, options, given, True)
    for before, after in zip(whole, resumed, strict=True):
        assert_same(before["state"], after["state"])
        assert after["updates"] == 7
        lines = [[line for line in run["log"] if "loss" in line][-1] for run in (before, after)]
        assert lines[0]["loss"] == lines[1]["loss"] and lines[0]["task_loss"] == lines[1]["task_loss"]
    state = json.loads((tmp_path / "model1" / "checkpoint-7" / "trainer_state.json").read_text())
    assert state["global_step"] == 7


def test_a_model_that_stops_early_leaves_the_other_alone_and_each_finds_its_own_best(tmp_path: Path) -> None:
    often = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    given = arguments(str(tmp_path), **often, load_best_model_at_end=True, save_total_limit=2)
    first, second = run_ranks(2, coupled, 2, {"models": 2}, given, False, 3)
    assert (first["updates"], second["updates"]) == (6, 3)
    for result in first, second:
        assert Path(result["best"]).parent == tmp_path / f"model{result['model']}"
    assert [line["codistillation_loss"] == 0.0 for line in first["log"] if "loss" in line] == [False, False, True]


def test_separate_jobs_exchange_files_and_alpha_knows_how_long_a_run_is(tmp_path: Path) -> None:
    given = arguments(str(tmp_path / "runs"), bf16=True)
    options = {"models": 2, "exchange": "files", "dir": str(tmp_path / "shared"), "period": 2, "lag": 0}
    options |= {"alpha": "0~1@50%"}
    (first,) = run_ranks(1, coupled, 1, options | {"model_index": 0}, given)
    (second,) = run_ranks(1, coupled, 1, options | {"model_index": 1}, given)
    assert [line["alpha"] for line in first["log"] if "loss" in line] == pytest.approx([2 / 3, 1.0, 1.0])
    terms = [[line["codistillation_loss"] for line in job["log"] if "loss" in line] for job in (first, second)]
    assert terms[0] == [0.0, 0.0, 0.0], "nobody else had begun"
    assert terms[1][0] == 0.0 and min(terms[1][1:]) > 0.0
    assert [Path(job["directory"]).name for job in (first, second)] == ["model0", "model1"]


def test_seq2seq_with_label_smoothing_and_generation(tmp_path: Path) -> None:
    given = arguments(str(tmp_path), eval_strategy="steps", eval_steps=3)
    for result in run_ranks(2, seq2seq, 2, given):
        lines = [line for line in result["log"] if "loss" in line]
        assert len(lines) == 3 and all(line["codistillation_loss"] > 0 for line in lines)
        assert any("eval_loss" in line and "codistillation_loss" not in line for line in result["log"])
        assert result["predictions"][0] == 4


def test_arguments_that_see_other_models_are_refused(tmp_path: Path) -> None:
    messages = run_ranks(2, refused, 2, arguments(str(tmp_path)))
    assert all("takes it for rank" in text and "make TrainingArguments after join" in text for text in messages)


def test_an_order_that_models_do_not_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RankError, match="group_by_length draws its order from each model's own random state"):
        given = arguments(str(tmp_path), train_sampling_strategy="group_by_length")
        run_ranks(2, coupled, 2, {"models": 2}, given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fsdp": "full_shard"}, "so its weights could not cross"),
        ({"deepspeed": "config.json"}, "so its weights could not cross"),
        ({"parallelism_config": object()}, "so its weights could not cross"),
        ({"n_gpu": 2}, "start one process a GPU with torchrun"),
        ({"auto_find_batch_size": True}, "starts one model over"),
        ({"push_to_hub": True}, "one repository for all models"),
        ({"save_on_each_node": True}, "of one model only"),
        ({"save_total_limit": 1}, "keep at least 2"),
        ({"use_liger_kernel": True}, "returns no logits"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_break_the_models_is_refused(given: dict[str, Any], words: str) -> None:
    from codistill_ext.integrations.hf_arguments import check_trainer

    usual: dict[str, Any] = dict.fromkeys(
        "fsdp deepspeed parallelism_config auto_find_batch_size push_to_hub save_on_each_node use_liger_kernel".split()
    )
    usual |= {"n_gpu": 1, "save_total_limit": None, "train_sampling_strategy": "random", "process_index": 0}
    usual |= {"world_size": 1, "device": torch.device("cpu")}
    groups = SimpleNamespace(rank_in_model=0, ranks_a_model=1)
    world: Any = SimpleNamespace(groups=groups, config=CodistillConfig(models=2))
    check_trainer(SimpleNamespace(args=SimpleNamespace(**usual)), world)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="each logs in its output_dir"):
        patch.setenv("TENSORBOARD_LOGGING_DIR", "runs")
        check_trainer(SimpleNamespace(args=SimpleNamespace(**usual)), world)
    with pytest.raises(ValueError, match=words):
        check_trainer(SimpleNamespace(args=SimpleNamespace(**usual | given)), world)
    world.config = CodistillConfig()
    check_trainer(SimpleNamespace(args=SimpleNamespace(**usual | given)), world)
