"""Every option of the method, declared once and used by both trainers."""

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from codistill_ext.topology import peers_of_each

FLAG_PREFIX = "codistill_"

EXCHANGES = ("predictions", "checkpoints")
DIVERGENCES = ("kl_teacher_student", "kl_student_teacher", "cross_entropy", "mse")
TARGETS = ("each", "mean")
DATA_ORDERS = ("auto", "coordinated", "independent")
PLACEMENTS = ("contiguous", "interleaved")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def _option(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class CodistillConfig:
    """Options of the method. ``models=1`` or ``alpha=0`` is plain training, bit for bit.

    Raises:
        ValueError: a value out of range, or an option that has no effect with the others.
    """

    models: int = _option(1, "how many models train at the same time; 1 is plain training")
    exchange: str = _option(
        "predictions",
        "how knowledge crosses: predictions of every mini-batch, or checkpoints every --codistill-period updates",
        EXCHANGES,
    )
    alpha: float = _option(1.0, "weight of the codistillation term")
    burn_in: int = _option(0, "updates before the term is switched on")
    divergence: str = _option(
        "kl_teacher_student",
        "kl_teacher_student is KL(teacher || student), kl_student_teacher is KL(student || teacher), "
        "cross_entropy has soft targets, mse is the mean squared difference of the logits",
        DIVERGENCES,
    )
    temperature: float = _option(1.0, "both logits are divided by it, and the divergence multiplied by its square")
    target: str = _option(
        "each",
        "each: the mean of the divergences to each peer; mean: one divergence to the peers' mean prediction",
        TARGETS,
    )
    topology: str = _option(
        "all", "who learns from whom: all, ring, or edges student<-teacher such as '0<-1,1<-0,2<-0'"
    )
    data: str = _option(
        "auto",
        "coordinated: the models read the same mini-batches; independent: each its own; "
        "auto: coordinated for predictions, independent for checkpoints",
        DATA_ORDERS,
    )
    placement: str = _option(
        "contiguous",
        "which ranks train a model: contiguous keeps its gradients inside a node, interleaved takes every n-th rank",
        PLACEMENTS,
    )
    period: int = _option(2500, "checkpoints: updates from one exchange to the next")
    lag: int = _option(
        -1,
        "checkpoints: updates from sending the weights to using them, in which they travel in the background; "
        "-1 is period // 50",
    )
    teacher_precision: str = _option(
        "auto",
        "checkpoints: precision of the teachers' forward pass; auto is 16 bits on CUDA and float32 on CPU",
        PRECISIONS,
    )
    check_every: int = _option(
        1, "coordinated data: compare the fingerprints of the batches every so many exchanges; 0 never"
    )
    timeout: float = _option(1800.0, "seconds to wait for a peer before giving up with an error")

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_effects()

    def _check_ranges(self) -> None:
        for option in dataclasses.fields(self):
            choices = option.metadata["choices"]
            value = getattr(self, option.name)
            if choices is not None and value not in choices:
                raise ValueError(f"{flag(option.name)} is one of {', '.join(choices)}, not {value!r}")
        for name, low in (("models", 1), ("burn_in", 0), ("period", 1), ("lag", -1), ("check_every", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{flag(name)} must be at least {low}, not {getattr(self, name)}")
        if not self.alpha >= 0:
            raise ValueError(f"{flag('alpha')} must be 0 or more, not {self.alpha}")
        for name in ("temperature", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{flag(name)} must be more than 0, not {getattr(self, name)}")
        if self.lag >= self.period:
            raise ValueError(
                f"{flag('lag')} must be less than {flag('period')}, so that the weights of one exchange are in "
                f"use before the next begins: got {self.lag} and {self.period}"
            )
        peers_of_each(self.topology, self.models)

    def _check_effects(self) -> None:
        """Refuse options without effect. ``models=1`` is the control run: it may keep all other options."""
        if self.models == 1:
            return
        if self.exchange != "checkpoints":
            for name in ("period", "lag", "teacher_precision"):
                self._refuse_unless_default(name, f"with {flag('exchange')} {self.exchange}")
        if self.exchange == "predictions" and self.data == "independent":
            raise ValueError(
                "predictions are exchanged on the same mini-batch: use --codistill-data coordinated, "
                "or --codistill-exchange checkpoints for independent data"
            )
        if not self.coordinated:
            self._refuse_unless_default("check_every", "with independent data")
        if self.divergence == "mse":
            self._refuse_unless_default("temperature", "with --codistill-divergence mse")
        if self.target == "mean" and max(map(len, self.peers)) < 2:
            raise ValueError(
                "--codistill-target mean has no effect: no model has two peers to take the mean of "
                f"({self.models} models, topology {self.topology})"
            )

    def _refuse_unless_default(self, name: str, circumstance: str) -> None:
        default = next(option.default for option in dataclasses.fields(self) if option.name == name)
        if getattr(self, name) != default:
            raise ValueError(f"{flag(name)} {getattr(self, name)} has no effect {circumstance}: leave it out")

    @property
    def active(self) -> bool:
        """Whether any model may ever feel another."""
        return self.models > 1 and self.alpha > 0

    @property
    def coordinated(self) -> bool:
        """Whether the models read the same mini-batches."""
        if self.data == "auto":
            return self.exchange == "predictions"
        return self.data == "coordinated"

    @property
    def peers(self) -> tuple[tuple[int, ...], ...]:
        """For each model the models it learns from."""
        return peers_of_each(self.topology, self.models)

    @property
    def swap_delay(self) -> int:
        """Updates between the start of a checkpoint exchange and the first use of its weights."""
        return self.period // 50 if self.lag < 0 else self.lag

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add every option as a ``--codistill-*`` flag."""
        group = parser.add_argument_group("codistillation")
        for option in dataclasses.fields(CodistillConfig):
            group.add_argument(
                flag(option.name),
                type=option.type,  # a class: this module does not postpone annotations
                default=option.default,
                choices=option.metadata["choices"],
                help=f"{option.metadata['help'].replace('%', '%%')} (default: {option.default})",
            )

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "CodistillConfig":
        return cls.from_flat(vars(args))

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> "CodistillConfig":
        """Pick the ``codistill_*`` entries out of a flat mapping; absent ones keep their defaults."""
        known = {option.name: FLAG_PREFIX + option.name for option in dataclasses.fields(cls)}
        return cls(**{name: values[key] for name, key in known.items() if key in values})


def flag(name: str) -> str:
    """The command line's name of an option."""
    return "--" + (FLAG_PREFIX + name).replace("_", "-")
