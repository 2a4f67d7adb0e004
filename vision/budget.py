"""How much work a run is: what --epochs means for one model, in updates, and on how many workers.

The set-ups of the talk's table are one option apart (paper, section 3): with N workers and M updates A is plain
training; B1 is the same on 2N workers, M/2 updates; on 2N workers for two models ``equal-epochs`` is earlier work's B2,
M updates each, and ``equal-updates`` the paper's, M/2.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from codistill_ext.groups import ModelGroups
from codistill_ext.sampling import CodistillSampler
from codistill_ext.schedules import Horizon

BUDGETS = ("equal-epochs", "equal-updates")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The length of a run.

    Attributes:
        name: of ``BUDGETS``.
        given_epochs: --epochs, the work of all models or of each, by the budget's name.
        models: of the method; ``workers``: processes of this job.
        ranks: of one model; ``rank_images``: of one rank in an epoch; ``update_images``: of one rank in an update.
    """

    name: str
    given_epochs: float
    models: int
    workers: int
    ranks: int
    rank_images: int
    update_images: int

    @classmethod
    def of(cls, args: argparse.Namespace, groups: ModelGroups, sampler: CodistillSampler) -> Budget:
        return cls(
            name=args.budget,
            given_epochs=args.epochs,
            models=groups.num_models,
            workers=groups.world_size,
            ranks=groups.data_size,
            rank_images=len(sampler),
            update_images=args.batch_size * args.accumulate,
        )

    @property
    def share(self) -> float:
        """How much of the given epochs each model trains."""
        return 1 / self.models if self.name == "equal-updates" else 1.0

    @property
    def epochs(self) -> float:
        """Of each model."""
        return self.given_epochs * self.share

    @property
    def batch(self) -> int:
        """Images of one model in an update, kn of Goyal et al."""
        return self.update_images * self.ranks

    @property
    def updates_an_epoch(self) -> int:
        return math.ceil(self.rank_images / self.update_images)

    @property
    def updates(self) -> int:
        """Of each worker; half an update counts as one."""
        return max(1, math.floor(self.epochs * self.updates_an_epoch + 0.5))

    def images(self, update: int) -> int:
        """What all models of this job have seen after so many updates."""
        whole, rest = divmod(update, self.updates_an_epoch)
        of_rank = whole * self.rank_images + min(rest * self.update_images, self.rank_images)
        return of_rank * self.workers

    def horizon(self, decays: Sequence[float] | None = None) -> Horizon:
        """What places in schedules refer to: epochs as they are given, so they shrink with the run."""
        updates_an_epoch = self.updates_an_epoch * self.share
        return Horizon(updates=self.updates, updates_an_epoch=updates_an_epoch, decays=decays)

    def to_dict(self, update: int | None = None) -> dict[str, Any]:
        """For the log: of the whole run, or until an update."""
        update = self.updates if update is None else update
        return {
            "budget": self.name,
            "models": self.models,
            "workers": self.workers,
            "batch_of_a_model": self.batch,
            "epochs_of_a_model": update / self.updates_an_epoch,
            "updates_of_a_worker": update,
            "updates_in_total": update * self.workers,
            "images": self.images(update),
        }

    def __str__(self) -> str:
        return (
            f"budget {self.name}: {_count(self.models, 'model')} on {_count(self.workers, 'worker')}, "
            f"{self.epochs:g} epochs of batch {self.batch} a model: {self.updates} updates a worker, "
            f"{self.updates * self.workers} in total, {self.images(self.updates)} images"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
