"""The coupling of a module that a host wraps, runs and saves: CodistillParallel without its data parallelism."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from codistill_ext.exchange import ModelDescription, PeerBuilder, copies_only
from codistill_ext.integrations.own_world import OwnWorld
from codistill_ext.loss import CodistillTerm
from codistill_ext.parallel import CodistillParallel
from codistill_ext.schedules import Horizon

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class HostedCoupling:
    """What the codistilling loss needs, beside a module that is the host's.

    It must be made before the host wraps the module, and on every rank of the job: teachers are copies of it.

    Args:
        mixed_precision: the host's word for what it casts the forward pass to: no, bf16 or fp16.
        logits_of, description, build_peer: as ``CodistillParallel`` has them.

    Raises:
        ValueError: as ``CodistillParallel``; or the host's precision and an option contradict each other.
    """

    def __init__(
        self,
        world: OwnWorld,
        module: nn.Module,
        *,
        mixed_precision: str = "no",
        logits_of: Callable[[Any], Tensor] | None = None,
        description: ModelDescription | None = None,
        build_peer: PeerBuilder = copies_only,
    ) -> None:
        config = world.config
        if config.exchange == "files" and config.teacher_precision != "auto" and mixed_precision != "no":
            # A teacher that is copied from a wrapped module casts as the host has told that to.
            raise ValueError(
                f"--codistill-teacher-precision {config.teacher_precision} has no effect with files and the host's "
                f"mixed precision {mixed_precision}: leave it out"
            )
        self.world, self.groups = world, world.groups
        with world.whole_job():
            self.parallel = CodistillParallel(
                module,
                world.groups,
                config,
                logits_of=logits_of,
                data_parallel=_left_to_the_host,
                description=description,
                build_peer=build_peer,
            )
        self.parallel.autocast = _AUTOCAST.get(mixed_precision)

    @property
    def active(self) -> bool:
        """Whether anything crosses: not with one model, or alpha 0."""
        return self.parallel.exchange is not None

    @property
    def updates(self) -> int:
        return self.parallel.updates

    def set_horizon(self, horizon: Horizon) -> None:
        """As ``CodistillParallel.set_horizon``. Every rank of the job must call it."""
        with self.world.whole_job():
            self.parallel.set_horizon(horizon)

    def codistill(
        self, inputs: Any, logits: Tensor, *, mask: Tensor | None = None, reduction: str = "mean"
    ) -> CodistillTerm:
        """As ``CodistillParallel.codistill``: once a training mini-batch, on every rank of every model."""
        with self.world.whole_job():
            return self.parallel.codistill(inputs, logits, mask=mask, reduction=reduction)

    def after_update(self) -> None:
        """To be called after each optimizer step, on every rank; also when the step was skipped."""
        with self.world.whole_job():
            self.parallel.after_update()

    def report(self) -> dict[str, float]:
        """alpha and the age of what each peer teaches, for the log."""
        return {"alpha": self.parallel.alpha} | self.parallel.report()

    def leave(self) -> None:
        """This model has finished training; the others go on without it. On all its ranks."""
        with self.world.whole_job():
            self.parallel.leave()

    def close(self) -> None:
        """Leave, and wait until every model has finished. Every rank of the job must call it before it ends."""
        with self.world.whole_job():
            self.parallel.close()

    def state_dict(self) -> dict[str, Any]:
        """What the coupling needs to resume, without the module. All ranks of the model must call it."""
        with self.world.whole_job():
            return self.parallel.codistill_state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the coupling. All ranks of the model must call it."""
        with self.world.whole_job():
            self.parallel.load_codistill_state_dict(state)


def _left_to_the_host(module: nn.Module, groups: Any) -> nn.Module:
    return module
