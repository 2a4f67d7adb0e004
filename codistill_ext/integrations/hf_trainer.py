"""Hugging Face's Trainer for models that codistil: each Trainer trains its own model, as it would alone.

world = join(CodistillConfig(models=2))  # before TrainingArguments
trainer = CodistillTrainer(model, TrainingArguments("runs/two"), world=world, train_dataset=...)
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer

from codistill_ext.exchange import ModelDescription, PeerBuilder, copies_only
from codistill_ext.integrations.coupling import HostedCoupling
from codistill_ext.integrations.hf_arguments import check_trainer, own_arguments, own_part_of
from codistill_ext.integrations.hf_loss import counted_positions, logits_of, term_and_share
from codistill_ext.integrations.hf_run import COUPLING, Updates, own_checkpoint
from codistill_ext.integrations.own_world import OwnWorld
from codistill_ext.job.storage import load_whole, save_checkpoint


class CodistillMixin(Trainer):
    """Adds the codistillation term to a Trainer's loss: put it before the Trainer in a class's bases.

    Each model has its own directory, ``model{i}`` under ``output_dir``, and its own ``seed``. The log has ``task_loss``
    and ``codistillation_loss`` (alpha times the divergence) beside ``loss``, their sum. Every rank of the job must
    construct it, and call ``train`` at the same place.

    Args:
        world: what ``join`` returned.
        description, build_peer: as ``CodistillParallel`` has them, for models of other architectures.

    Raises:
        ValueError: something in the arguments would mix the models or break them; says why.
    """

    coupling: HostedCoupling | None = None  # made by create_optimizer, when the model is there
    train_dataset: Any

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *rest: Any,
        world: OwnWorld,
        description: ModelDescription | None = None,
        build_peer: PeerBuilder = copies_only,
        **options: Any,
    ) -> None:
        super().__init__(model, own_arguments(args, world), *rest, **options)
        self.world = world
        self.train_dataset = own_part_of(self.train_dataset, world, args)
        self._description, self._build_peer = description, build_peer
        self._losses = torch.zeros(2, device=self.args.device)  # task, codistillation: since the last log
        self._logged_at = 0
        check_trainer(self, world)
        self.add_callback(Updates(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, **options: Any) -> Any:
        """As Trainer's. ``True`` resumes from the newest checkpoint that all models have."""
        if trial is not None and self.world.config.models > 1:
            raise ValueError("a search for hyperparameters trains in trials, whose models would wait for one another")
        if resume_from_checkpoint:
            resume_from_checkpoint = str(own_checkpoint(resume_from_checkpoint, self.args.output_dir, self.world))
        self.coupling = None  # of an earlier call
        return super().train(resume_from_checkpoint, trial, **options)

    def create_optimizer(self, *args: Any, **options: Any) -> Any:
        if self.coupling is None:  # the last place at which the model is not wrapped yet
            self.coupling = HostedCoupling(
                self.world,
                self.model,
                mixed_precision=self.accelerator.mixed_precision,
                logits_of=logits_of,
                description=self._description,
                build_peer=self._build_peer,
            )
        return super().create_optimizer(*args, **options)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **options: Any,
    ) -> Any:
        if self.coupling is None or not self.coupling.active or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch, **options)
        given = dict(inputs)  # a label smoother takes the labels out
        task, outputs = super().compute_loss(model, inputs, True, num_items_in_batch, **options)
        term, share = term_and_share(self, self.coupling, given, outputs, num_items_in_batch)
        self._losses += torch.stack([task.detach(), term.detach()]).float() * share
        return (task + term, outputs) if return_outputs else task + term

    def counted_positions(self, inputs: dict[str, Any], outputs: Any) -> Tensor | None:
        """Where the term counts, in the shape of the logits without the last dimension: where the task loss does.

        Override it for a model whose loss counts other positions than its labels say.
        """
        return counted_positions(inputs, outputs, self)

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        if "loss" in logs and self.coupling is not None and self.coupling.active:
            updates = max(1, self.coupling.updates - self._logged_at)
            task, term = (self.accelerator.reduce(self._losses, reduction="mean") / updates).tolist()
            logs |= {"task_loss": task, "codistillation_loss": term} | self.coupling.report()
            self._losses.zero_()
            self._logged_at = self.coupling.updates
        super().log(logs, *args, **options)

    def is_local_process_zero(self) -> bool:
        """The first rank of each model shows its progress, wherever it runs."""
        return bool(self.is_world_process_zero())

    def _save_checkpoint(self, *args: Any, **options: Any) -> None:
        path = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / COUPLING
        if self.args.should_save:
            path.unlink(missing_ok=True)  # of a run that was resumed before it: this checkpoint is not whole any more
        super()._save_checkpoint(*args, **options)
        assert self.coupling is not None
        state = self.coupling.state_dict()  # all ranks of the model have written by then
        if self.args.should_save:
            save_checkpoint(state, path)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.coupling is not None:
            self.coupling.load_state_dict(load_whole(Path(checkpoint) / COUPLING))
            self._logged_at = self.coupling.updates


class CodistillTrainer(CodistillMixin, Trainer):
    """Trainer with the codistillation term."""


class CodistillSeq2SeqTrainer(CodistillMixin, Seq2SeqTrainer):
    """Seq2SeqTrainer with the codistillation term."""
