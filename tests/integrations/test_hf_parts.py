"""What is asked of Trainer's arguments, inputs and outputs, without training."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codistill_ext import CodistillConfig, ModelGroups
from codistill_ext.integrations.coupling import HostedCoupling
from codistill_ext.integrations.own_world import OwnWorld

pytest.importorskip("transformers", reason="the extra 'huggingface' is not installed")


class GPT2LMHeadModel:
    """Of a name that transformers knows as a causal language model's."""


class BertForMaskedLM:
    pass


def _trainer(model: Any, divergence: str = "kl_teacher_student", *, shifts: bool = False) -> Any:
    return SimpleNamespace(
        model=model,
        accelerator=SimpleNamespace(unwrap_model=lambda module: module),
        world=SimpleNamespace(config=CodistillConfig(models=2, divergence=divergence)),
        _loss_shifts_labels=shifts,
    )


LABELS = torch.tensor([[1, 2, -100, 3], [4, -100, -100, -100]])
NEXT = [[True, False, True, False], [False, False, False, False]]


@pytest.mark.parametrize(
    ("trainer", "more", "expected"),
    [
        (_trainer(GPT2LMHeadModel()), {}, NEXT),
        (_trainer(BertForMaskedLM(), shifts=True), {}, NEXT),
        (_trainer(BertForMaskedLM()), {}, (LABELS != -100).tolist()),
        (_trainer(GPT2LMHeadModel()), {"shift_labels": LABELS}, (LABELS != -100).tolist()),
    ],
    ids=["by-name", "by-loss", "masked", "shifted-by-the-collator"],
)
def test_the_term_counts_where_the_loss_counts(trainer: Any, more: dict[str, Any], expected: list[list[bool]]) -> None:
    from codistill_ext.integrations.hf_loss import counted_positions

    outputs = {"logits": torch.zeros(2, 4, 5)}
    assert counted_positions({"labels": LABELS} | more, outputs, trainer).tolist() == expected


@pytest.mark.parametrize(
    ("labels", "outputs"), [(torch.zeros(3, 5), 5), (torch.zeros(3), 1)], ids=["several-labels", "regression"]
)
def test_labels_that_are_not_a_class_need_mse(labels: torch.Tensor, outputs: int) -> None:
    from codistill_ext.integrations.hf_loss import counted_positions

    inputs, given = {"labels": labels}, {"logits": torch.zeros(3, outputs)}
    with pytest.raises(ValueError, match="use --codistill-divergence mse"):
        counted_positions(inputs, given, _trainer(BertForMaskedLM()))
    assert counted_positions(inputs, given, _trainer(BertForMaskedLM(), "mse")) is None


def test_a_teacher_gets_labels_only_as_input_of_its_decoder() -> None:
    from codistill_ext.integrations.hf_loss import teacher_inputs

    given = {"input_ids": 1, "labels": 2}
    decoder, alone = (SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=flag)) for flag in (True, False))
    for model in alone, torch.nn.Linear(1, 1):
        assert teacher_inputs(given, model) == {"input_ids": 1}
    assert teacher_inputs(given, decoder) == given
    assert teacher_inputs(given | {"decoder_input_ids": 3}, decoder) == {"input_ids": 1, "decoder_input_ids": 3}


def test_without_logits_there_is_nothing_to_exchange() -> None:
    from codistill_ext.integrations.hf_loss import logits_of

    with pytest.raises(ValueError, match="the model returned no logits"):
        logits_of({"loss": torch.zeros(()), "logits": None})


@pytest.mark.parametrize("data", [range(7), None], ids=["of-7", "none"])
def test_disjoint_parts_are_all_of_the_data(data: Any) -> None:
    from codistill_ext.integrations.hf_arguments import own_part_of

    config = CodistillConfig(models=2, exchange="checkpoints", data="disjoint")
    args = SimpleNamespace(seed=1, data_seed=None)
    parts = [
        own_part_of(data, SimpleNamespace(config=config, groups=SimpleNamespace(model_index=index)), args)
        for index in range(2)
    ]
    if data is None:
        assert parts == [None, None]
    else:
        assert sorted([*parts[0], *parts[1]]) == list(data) and abs(len(parts[0]) - len(parts[1])) == 1


def test_trials_are_refused() -> None:
    from codistill_ext.integrations.hf_trainer import CodistillTrainer

    trainer: Any = SimpleNamespace(world=SimpleNamespace(config=CodistillConfig(models=2)))
    with pytest.raises(ValueError, match="a search for hyperparameters trains in trials"):
        CodistillTrainer.train(trainer, trial=object())


def test_files_and_a_precision_that_the_host_decides_contradict_each_other() -> None:
    config = CodistillConfig(models=2, exchange="files", dir="x", model_index=0, teacher_precision="float32")
    world = OwnWorld(ModelGroups.create(config), config)
    with pytest.raises(ValueError, match="has no effect with files and the host's mixed precision bf16"):
        HostedCoupling(world, torch.nn.Linear(2, 2), mixed_precision="bf16")
