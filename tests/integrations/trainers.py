"""Runs of Hugging Face's Trainer, with and without the coupling; importable by the ranks."""

from pathlib import Path
from typing import Any

from codistill_ext import CodistillConfig, model_seed
from codistill_ext.integrations.own_world import join
from tests.integrations.tiny import Sequences, language_model, like_torchrun, state_of, translator

SEED = 3


def arguments(directory: str, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "output_dir": directory,
        "use_cpu": True,
        "seed": SEED,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "learning_rate": 0.01,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return values | more


def plain(rank: int, world_size: int, model_index: int, given: dict[str, Any]) -> dict[str, Any]:
    """What the host does alone, with the seed of one of the models."""
    like_torchrun(rank, world_size)
    from transformers import Trainer, TrainingArguments

    seed = model_seed(SEED, model_index)
    args = TrainingArguments(**given | ({"seed": seed, "data_seed": SEED} if model_index else {}))
    trainer = Trainer(language_model(seed), args, train_dataset=Sequences())
    trainer.train()
    return {"state": state_of(trainer.model), "log": trainer.state.log_history}


def coupled(
    rank: int,
    world_size: int,
    options: dict[str, Any],
    given: dict[str, Any],
    resume: bool = False,
    stops: int | None = None,
    dropout: float = 0.1,
) -> dict[str, Any]:
    """A job of models as a user would write it.

    Args:
        stops: the update after which model 1 stops of itself.
    """
    like_torchrun(rank, world_size)
    from transformers import TrainerCallback, TrainingArguments

    from codistill_ext.integrations.hf_trainer import CodistillTrainer

    class Stops(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= index == 1 and state.global_step == stops

    world = join(CodistillConfig(timeout=60.0, **options), "cpu")
    index = world.groups.model_index
    model = language_model(model_seed(SEED, index), dropout)
    data = Sequences()
    trainer = CodistillTrainer(
        model,
        TrainingArguments(**given),
        world=world,
        train_dataset=data,
        eval_dataset=data,
        callbacks=[Stops()],
    )
    trainer.train(resume_from_checkpoint=resume)
    coupling, evaluated = trainer.coupling, trainer.evaluate()["eval_loss"]
    assert coupling is not None
    trainer.coupling = None  # as the host alone does it
    return {
        "model": index,
        "state": state_of(trainer.model),
        "log": trainer.state.log_history,
        "updates": coupling.updates,
        "directory": str(Path(trainer.args.output_dir)),
        "best": trainer.state.best_model_checkpoint,
        "autocast": coupling.parallel.autocast,
        "eval": evaluated,
        "eval_without": trainer.evaluate()["eval_loss"],
    }


def seq2seq(rank: int, world_size: int, given: dict[str, Any]) -> dict[str, Any]:
    """A translator with label smoothing, and generation in its evaluation."""
    like_torchrun(rank, world_size)
    from transformers import Seq2SeqTrainingArguments, default_data_collator

    from codistill_ext.integrations.hf_trainer import CodistillSeq2SeqTrainer

    world = join(CodistillConfig(models=2, timeout=60.0), "cpu")
    model = translator(model_seed(SEED, world.groups.model_index))
    args = Seq2SeqTrainingArguments(**given, label_smoothing_factor=0.1, predict_with_generate=True)

    def collate(samples: list[Any]) -> dict[str, Any]:
        batch = default_data_collator(samples)
        return batch | {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])}

    data = {"train_dataset": Sequences(), "eval_dataset": Sequences(4)}
    trainer = CodistillSeq2SeqTrainer(model, args, collate, world=world, **data)
    trainer.train()
    return {"log": trainer.state.log_history, "predictions": trainer.predict(Sequences(4)).predictions.shape}


def refused(rank: int, world_size: int, given: dict[str, Any]) -> str:
    """Arguments that were made before ``join`` take the whole job for the model's ranks."""
    like_torchrun(rank, world_size)
    from transformers import TrainingArguments

    from codistill_ext.integrations.hf_trainer import CodistillTrainer

    args = TrainingArguments(**given)
    _ = args.device
    world = join(CodistillConfig(models=2, timeout=60.0), "cpu")
    try:
        CodistillTrainer(language_model(0), args, world=world, train_dataset=Sequences())
    except ValueError as error:
        return str(error)
    return ""
