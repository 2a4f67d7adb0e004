"""Hugging Face Accelerate for models that codistil: a plain loop, in which each accelerator has one model's ranks.

world = join(CodistillConfig(models=2))  # before Accelerator
accelerator = Accelerator()
coupling = AcceleratedCoupling(accelerator, net, world)  # before prepare
model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from codistill_ext.groups import model_directory
from codistill_ext.integrations.checkpoints import newest_common
from codistill_ext.integrations.coupling import HostedCoupling
from codistill_ext.integrations.own_world import OwnWorld, check_seen
from codistill_ext.loss import CodistillTerm
from codistill_ext.sampling import CodistillSampler

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)


class AcceleratedCoupling(HostedCoupling):
    """The coupling of a module that ``accelerator.prepare`` wraps afterwards.

    ``accelerator.save_state`` and ``load_state`` include it. Every rank of the job must construct it.

    Args:
        module: the plain one; it is moved to the accelerator's device.
        options: ``logits_of``, ``description`` and ``build_peer``, as ``CodistillParallel`` has them.

    Raises:
        ValueError: the accelerator would mix the models, or has wrapped the module already; says what to change.
    """

    def __init__(self, accelerator: Accelerator, module: nn.Module, world: OwnWorld, **options: Any) -> None:
        self.accelerator, self.module = accelerator, module
        check_seen(
            world, accelerator.process_index, accelerator.num_processes, accelerator.device.type, "the Accelerator"
        )
        for refused, why in _refused(accelerator, module, world):
            if refused and world.config.models > 1:
                raise ValueError(f"with {world.config.models} models: {why}")
        super().__init__(world, module.to(accelerator.device), mixed_precision=accelerator.mixed_precision, **options)
        self._marker = f"custom_checkpoint_{len(accelerator._custom_objects)}.pkl"
        accelerator.register_for_checkpointing(self)
        accelerator.register_save_state_pre_hook(self._before_saving)
        accelerator.register_load_state_pre_hook(self._before_loading)
        self._is_checked = False

    def codistill(
        self, inputs: Any, logits: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
    ) -> CodistillTerm:
        """The term of one mini-batch; give ``accelerator.backward`` its ``loss`` together with the task loss."""
        if not self._is_checked:
            self._check_prepared()
        return super().codistill(inputs, logits, mask=mask, reduction=reduction)

    def after_update(self) -> None:
        """To be called after ``optimizer.step()``, in every mini-batch: it counts where Accelerate made an update."""
        if self.accelerator.sync_gradients:
            super().after_update()

    def directory(self, run: str | Path) -> Path:
        """Where this model's checkpoints and logs belong."""
        return model_directory(Path(run), self.groups.model_index)

    def newest_checkpoint(self, run: str | Path) -> Path | None:
        """This model's newest checkpoint such that every model has one of that update, or None at the beginning.

        Every rank of the job must call it. Looks in ``directory(run)`` for names like ``checkpoint_20``.
        """
        with self.world.whole_job():
            return newest_common(Path(run), self._marker, self.groups)

    def _check_prepared(self) -> None:
        models = [self.accelerator.unwrap_model(model) for model in self.accelerator._models]
        if self.groups.ranks_a_model > 1 and all(model is not self.module for model in models):
            raise ValueError(
                "the accelerator has not prepared the module, so nothing averages its gradients over the ranks of the "
                "model: call accelerator.prepare after the coupling was made, and train what it returns"
            )
        shares = any(isinstance(_sampler(loader), CodistillSampler) for loader in self.accelerator._dataloaders)
        if self.groups.data_size > 1 and shares:
            raise ValueError(
                "CodistillSampler gives each rank its share already, and the accelerator shards it once more: prepare "
                "a loader with shuffle=True, and let use_seedable_sampler with a data_seed order it"
            )
        self._is_checked = True

    def _before_saving(self, models: Any, weights: Any, directory: str) -> None:
        self._check_directory(Path(directory))
        if self.accelerator.is_main_process:  # what another run left there is whole no more
            Path(directory, self._marker).unlink(missing_ok=True)

    def _before_loading(self, models: Any, directory: str) -> None:
        self._check_directory(Path(directory))

    def _check_directory(self, directory: Path) -> None:
        name = model_directory(Path(), self.groups.model_index).name
        if self.world.config.models > 1 and name not in directory.absolute().parts:
            raise ValueError(
                f"each model has a main process, and all would use {directory}: save and load below a directory {name} "
                f"of this model's own, such as coupling.directory(run) gives"
            )


def _sampler(loader: Any) -> Any:
    """What orders a prepared loader's samples."""
    return getattr(getattr(loader.batch_sampler, "batch_sampler", None), "sampler", None)


def _refused(accelerator: Accelerator, module: nn.Module, world: OwnWorld) -> list[tuple[bool, str]]:
    return [
        (
            accelerator.distributed_type in _SHARDED or getattr(accelerator, "parallelism_config", None) is not None,
            f"Accelerate's {accelerator.distributed_type.value} and parallelism_config shard or replace the module "
            f"after the coupling was made: use CodistillParallel itself (docs/fsdp.md)",
        ),
        (
            hasattr(module, "_is_accelerate_prepared") or hasattr(module, "_original_forward"),
            "the module has been prepared already: make the coupling before accelerator.prepare",
        ),
        (
            not accelerator.even_batches and world.groups.ranks_a_model > 1,
            "with even_batches=False a rank may have fewer mini-batches than the others of its model, which wait for "
            "it: leave even_batches on",
        ),
    ]
