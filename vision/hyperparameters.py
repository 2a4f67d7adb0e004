"""Learning rate, weight decay and label smoothing as functions of the update."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from codistill_ext.schedules import Curve, Horizon, Place, Schedule, warmup_cosine_lr, warmup_steps_lr

GOYAL_BATCH = 256
GOYAL_MILESTONES = tuple(Place(epoch, "ep") for epoch in (30.0, 60.0, 80.0))


@dataclass(frozen=True, kw_only=True)
class HyperParameters:
    """What changes in a run, each a function of the update (from 0).

    Attributes:
        rates: what the learning rate is made of; ``lr``: the rate itself.
        weight_decay, and norm_weight_decay of normalisation layers; ``label_smoothing``.
    """

    rates: LearningRates
    lr: Callable[[float], float]
    weight_decay: Curve
    norm_weight_decay: Curve
    label_smoothing: Curve

    @classmethod
    def of(cls, args: argparse.Namespace, horizon: Horizon, batch: int) -> HyperParameters:
        """For a run of this length; ``horizon`` knows the decays of the learning rate.

        Args:
            batch: images of one model in an update.

        Raises:
            ValueError: a schedule does not fit the run.
        """

        def resolve(name: str) -> Curve:
            schedule: Schedule = getattr(args, name)
            return schedule.resolve(horizon, "--" + name.replace("_", "-"))

        rates = LearningRates.of(args, batch)
        return cls(
            rates=rates,
            lr=build_lr(args, rates, horizon),
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


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """The rate behind the warm-up, where the warm-up begins, and how many epochs of --epochs it takes."""

    base: float
    warmup_start: float
    warmup_epochs: float

    @classmethod
    def of(cls, args: argparse.Namespace, batch: int) -> LearningRates:
        """As the options say, or scaled: --lr is then of 256 images, and larger batches of ``batch`` images get a
        warm-up from it (Goyal et al., sections 2.1, 2.2 and 5.1)."""
        if args.lr_scaling == "none":
            return cls(base=args.lr, warmup_start=args.lr * args.lr_warmup_decay, warmup_epochs=args.lr_warmup_epochs)
        warmup_epochs = args.lr_warmup_epochs if batch > GOYAL_BATCH else 0.0
        return cls(base=args.lr * batch / GOYAL_BATCH, warmup_start=args.lr, warmup_epochs=warmup_epochs)

    def __str__(self) -> str:
        warmup = f" after {self.warmup_epochs:g} epochs from {self.warmup_start:g}" if self.warmup_epochs else ""
        return f"learning rate {self.base:g}{warmup}"


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


def build_lr(args: argparse.Namespace, rates: LearningRates, horizon: Horizon) -> Callable[[float], float]:
    """The learning rate: linear warm-up, then steps or half a cosine."""
    assert horizon.updates is not None
    updates, decays = horizon.updates, horizon.decays or ()
    warmup = horizon.position(Place(rates.warmup_epochs, "ep"))
    base, warmup_start = rates.base, rates.warmup_start

    def steps(update: float) -> float:
        return warmup_steps_lr(
            update, base=base, milestones=decays, gamma=args.lr_gamma, warmup=warmup, warmup_start=warmup_start
        )

    def cosine(update: float) -> float:
        return warmup_cosine_lr(
            update, base=base, total=updates, warmup=warmup, warmup_start=warmup_start, minimum=args.lr_min
        )

    return steps if args.lr_scheduler == "multisteplr" else cosine
