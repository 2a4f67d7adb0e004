"""Lightning Fabric for models that codistil: a strategy in which each model has its own ranks.

strategy = CodistillStrategy(CodistillConfig(models=2), seed=1)
fabric = Fabric(devices=4, strategy=strategy)
fabric.launch()
model, optimizer = fabric.setup(net, optimizer)  # afterwards strategy.coupling knows the peers
"""

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lightning_fabric.strategies.strategy import _BackwardSyncControl
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from codistill_ext.config import CodistillConfig
from codistill_ext.groups import ModelGroups, model_directory
from codistill_ext.integrations.checkpoints import newest_common
from codistill_ext.integrations.fabric_refused import check_loader, check_optimizers, check_path, check_seeds
from codistill_ext.integrations.fabric_world import OneModelStrategy
from codistill_ext.job.randomness import random_states, restore_random_state
from codistill_ext.job.storage import load_whole, save_whole
from codistill_ext.loss import CodistillTerm
from codistill_ext.parallel import CodistillParallel

_COUPLING = "codistill.pt"  # beside what Fabric saves, written last


class CodistillStrategy(OneModelStrategy):
    """A module that knows its peers, data-parallel among the ranks of its model, and its checkpoints.

    Args:
        config: the options of the method, the same on all ranks.
        seed: of the job; ``fabric.launch`` seeds each model with one of its own, model 0 with this.
        coupling: ``logits_of``, ``data_parallel``, ``description``, ``build_peer``, as ``CodistillParallel`` has them.
        options: of ``DDPStrategy``, and through it of DistributedDataParallel.

    Attributes:
        coupling: the module among its peers, once it is set up.
    """

    def __init__(
        self, config: CodistillConfig, *, seed: int = 0, coupling: dict[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__(config, seed, **options)
        self._coupling: CodistillParallel | None = None
        self._options = {"data_parallel": self._wrap if self._ddp_kwargs else None} | (coupling or {})
        self._backward_sync_control = _OfTheCoupling()

    @property
    def coupling(self) -> CodistillParallel:
        if self._coupling is None:
            raise ValueError("there is no module yet: call fabric.setup first")
        return self._coupling

    def setup_module(self, module: nn.Module) -> CodistillParallel:
        """Every rank of the job must call it."""
        if self._coupling is not None:
            raise ValueError("one module is codistilled, and one has been set up: use another strategy for a second")
        check_seeds(self.groups, os.environ.get("PL_GLOBAL_SEED"))
        self._coupling = CodistillParallel(module, self.groups, self.config, **self._options)
        return self._coupling

    def setup_module_and_optimizers(
        self, module: nn.Module, optimizers: list[Optimizer], scheduler: Any = None
    ) -> tuple[nn.Module, list[Optimizer], Any]:
        found: tuple[nn.Module, list[Optimizer], Any] = super().setup_module_and_optimizers(
            module, optimizers, scheduler
        )
        check_optimizers(found[0], optimizers)
        return found

    def _wrap(self, module: nn.Module, groups: ModelGroups) -> nn.Module:
        ids = self._determine_ddp_device_ids()
        return DistributedDataParallel(module, device_ids=ids, process_group=groups.model_group, **self._ddp_kwargs)

    def process_dataloader(self, dataloader: Any) -> Any:
        check_loader(dataloader)
        return super().process_dataloader(dataloader)

    def codistill(
        self, inputs: Any, logits: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
    ) -> CodistillTerm:
        """As ``CodistillParallel.codistill``, with the inputs in the type that Fabric gave the module."""
        return self.coupling.codistill(self.precision.convert_input(inputs), logits, mask=mask, reduction=reduction)

    def directory(self, run: str | Path) -> Path:
        """Where this model's checkpoints and logs belong."""
        return model_directory(Path(run), self.groups.model_index)

    def newest_checkpoint(self, run: str | Path) -> Path | None:
        """The newest directory such as ``RUN/model0/checkpoint_20`` of an update that all models have saved, or None.

        Every rank of the job must call it.
        """
        return newest_common(Path(run), _COUPLING, self.groups)

    def save_checkpoint(self, path: Any, state: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        check_path(Path(path), self.groups, self._coupling)
        beside = Path(path).parent / _COUPLING
        is_coupled = any(value is self._coupling for value in state.values())
        if is_coupled and self.is_global_zero:  # what another run left there is whole no more
            beside.unlink(missing_ok=True)
        super().save_checkpoint(path, state, *args, **kwargs)
        if is_coupled:
            random = random_states(self.groups, self.root_device)
            facts = self.coupling.codistill_state_dict() | {"random": random, "precision": self.precision.state_dict()}
            if self.is_global_zero:
                save_whole(facts, beside)

    def load_checkpoint(self, path: Any, state: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A file without a coupling beside it is of a run without codistillation: update 0 for the coupling."""
        left: dict[str, Any] = super().load_checkpoint(path, state, *args, **kwargs)
        beside = Path(path).parent / _COUPLING
        if isinstance(state, dict) and any(value is self._coupling for value in state.values()) and beside.exists():
            facts = load_whole(beside)
            self.precision.load_state_dict(facts.pop("precision"))
            random = facts.pop("random")
            self.coupling.load_codistill_state_dict(facts)
            restore_random_state(random, self.groups, self.root_device)
        return left


class _OfTheCoupling(_BackwardSyncControl):
    def no_backward_sync(self, module: CodistillParallel, enabled: bool) -> AbstractContextManager[None]:
        return module.no_sync() if enabled else nullcontext()
