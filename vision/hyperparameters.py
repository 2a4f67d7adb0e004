"""Learning rate, weight decay and label smoothing as functions of the update."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from codistill_ext.schedules import Curve, Horizon, Place, Schedule, warmup_cosine_lr, warmup_steps_lr

GOYAL_MILESTONES = tuple(Place(epoch, "ep") for epoch in (30.0, 60.0, 80.0))


@dataclass(frozen=True, kw_only=True)
class HyperParameters:
    """What changes in a run, each a function of the update (from 0).

    Attributes:
        lr: learning rate; ``weight_decay``, and ``norm_weight_decay`` of normalisation layers; ``label_smoothing``.
    """

    lr: Callable[[float], float]
    weight_decay: Curve
    norm_weight_decay: Curve
    label_smoothing: Curve

    @classmethod
    def of(cls, args: argparse.Namespace, horizon: Horizon) -> HyperParameters:
        """For a run of this length; ``horizon`` knows the decays of the learning rate.

        Raises:
            ValueError: a schedule does not fit the run.
        """

        def resolve(name: str) -> Curve:
            schedule: Schedule = getattr(args, name)
            return schedule.resolve(horizon, "--" + name.replace("_", "-"))

        return cls(
            lr=build_lr(args, horizon),
            weight_decay=resolve("weight_decay"),
            norm_weight_decay=resolve("norm_weight_decay"),
            label_smoothing=resolve("label_smoothing"),
        )

    def set(self, optimizer: torch.optim.Optimizer, update: int) -> None:
        """Give the optimizer the values of an update; each of its groups says which weight decay it has."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr(update)
            group["weight_decay"] = getattr(self, group["decay"])(update)

    def values(self, update: int) -> dict[str, float]:
        """For the log."""
        return {
            "lr": self.lr(update),
            "weight_decay": self.weight_decay(update),
            "label_smoothing": self.label_smoothing(update),
        }


def lr_decays(args: argparse.Namespace, horizon: Horizon) -> tuple[float, ...]:
    """The updates at which the learning rate decays in this run; none with a cosine.

    Raises:
        ValueError: they are not in order, or an update that is never reached.
    """
    if args.lr_scheduler != "multisteplr":
        return ()
    assert horizon.updates is not None
    places: list[Place] = args.lr_milestones
    positions = [horizon.position(place) for place in places]
    if positions != sorted(set(positions)) or positions[0] <= 0:
        listed = " ".join(map(str, places))
        raise ValueError(f"--lr-milestones must be ascending and positive, not {listed} (updates {positions})")
    late = [place for place, at in zip(places, positions, strict=True) if at >= horizon.updates and place.unit != "ep"]
    if late:
        raise ValueError(
            f"--lr-milestones {' '.join(map(str, late))} has no effect in {horizon.updates} updates: leave it out or "
            "train longer"
        )
    return tuple(position for position in positions if position < horizon.updates)


def build_lr(args: argparse.Namespace, horizon: Horizon) -> Callable[[float], float]:
    """The learning rate: linear warm-up, then steps or half a cosine."""
    assert horizon.updates is not None
    updates, decays = horizon.updates, horizon.decays or ()
    warmup = horizon.position(Place(args.lr_warmup_epochs, "ep"))
    warmup_start = args.lr * args.lr_warmup_decay

    def steps(update: float) -> float:
        return warmup_steps_lr(
            update, base=args.lr, milestones=decays, gamma=args.lr_gamma, warmup=warmup, warmup_start=warmup_start
        )

    def cosine(update: float) -> float:
        return warmup_cosine_lr(
            update, base=args.lr, total=updates, warmup=warmup, warmup_start=warmup_start, minimum=args.lr_min
        )

    return steps if args.lr_scheduler == "multisteplr" else cosine
