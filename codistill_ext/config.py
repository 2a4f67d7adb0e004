"""Every option of the method, declared once and used by both trainers."""

import argparse
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from codistill_ext.schedules import Schedule
from codistill_ext.topology import peers_of_each

FLAG_PREFIX = "codistill_"

EXCHANGES = ("predictions", "checkpoints", "files")
DIVERGENCES = ("kl_teacher_student", "kl_student_teacher", "cross_entropy", "mse")
TARGETS = ("each", "mean")
DATA_ORDERS = ("auto", "coordinated", "independent", "disjoint")
PLACEMENTS = ("contiguous", "interleaved")
ENCODINGS = ("full", "half", "topk")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
TEACHER_DEVICES = ("same", "cpu")
STALE_POLICIES = ("wait", "go_on", "drop")


_WEIGHTS_ONLY = (
    *("period", "lag", "max_staleness", "stale_policy"),
    *("teacher_precision", "teacher_device", "teacher_compile"),
)


def _option(
    default: Any,
    text: str,
    choices: tuple[str, ...] | None = None,
    *,
    unit: str = "",
    least: int | None = None,
    above: int | None = None,
) -> Any:
    """An option: what it is, and what it may be (the unit of a number and its least value, or what it is more than)."""
    metadata = {"help": text, "choices": choices, "unit": unit, "least": least, "above": above}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class CodistillConfig:
    """Options of the method. ``models=1`` or ``alpha=0`` is plain training, bit for bit.

    Raises:
        ValueError: a value out of range, or an option that has no effect with the others.
    """

    models: int = _option(1, "how many models train at the same time; 1 is plain training", unit="models", least=1)
    exchange: str = _option(
        "predictions",
        "how knowledge crosses: predictions of every mini-batch; checkpoints every --codistill-period updates, over "
        "the process group; or files, the same between separate jobs that share a directory",
        EXCHANGES,
    )
    alpha: float | str = _option(
        1.0,
        "weight of the codistillation term, relative to the task loss",
        unit="a number of 0 or more, or a schedule such as 0~1@1000up",
    )
    burn_in: int = _option(0, "updates before the term is switched on", unit="updates", least=0)
    distill_every: int = _option(
        1, "use the term in every so-many-th update; in the others it costs nothing", unit="updates", least=1
    )
    divergence: str = _option(
        "kl_teacher_student",
        "kl_teacher_student is KL(teacher || student), kl_student_teacher is KL(student || teacher), "
        "cross_entropy has soft targets, mse is the mean squared difference of the logits",
        DIVERGENCES,
    )
    temperature: float = _option(
        1.0, "both logits are divided by it, and the divergence multiplied by its square", unit="no unit", above=0
    )
    target: str = _option(
        "each",
        "each: the mean of the divergences to each peer; mean: one divergence to the peers' mean prediction",
        TARGETS,
    )
    topology: str = _option(
        "all",
        "who learns from whom: all, ring, or edges student<-teacher",
        unit="all, ring, or edges such as '0<-1,1<-0,2<-0'",
    )
    data: str = _option(
        "auto",
        "coordinated: the models read the same mini-batches; independent: each its own; disjoint: each its own, of "
        "a part of the data that no other model sees; auto: coordinated for predictions, else independent",
        DATA_ORDERS,
    )
    placement: str = _option(
        "contiguous",
        "which ranks train a model: contiguous keeps its gradients inside a node, interleaved takes every n-th rank",
        PLACEMENTS,
    )
    encoding: str = _option(
        "full",
        "how numbers cross: full precision; half, 16 bits (of weights the parameters); topk, of predictions the "
        "--codistill-topk largest log-probabilities and the rest of the mass in one bin",
        ENCODINGS,
    )
    topk: int = _option(64, "encoding topk: how many outputs of each prediction are sent", unit="outputs", least=1)
    period: int = _option(2500, "checkpoints, files: updates from one exchange to the next", unit="updates", least=1)
    lag: int = _option(
        -1,
        "checkpoints, files: updates from fetching the weights to using them, in which they travel in the "
        "background; -1 is period // 50",
        unit="updates, less than the period",
        least=-1,
    )
    teacher_precision: str = _option(
        "auto",
        "checkpoints, files: precision of the teachers' forward pass; auto is 16 bits on CUDA, elsewhere the student's",
        PRECISIONS,
    )
    teacher_device: str = _option(
        "same", "checkpoints, files: keep the teachers on the same device as the model, or on the cpu", TEACHER_DEVICES
    )
    teacher_compile: bool = _option(False, "checkpoints, files: run the teachers through torch.compile")
    max_staleness: int = _option(
        0,
        "checkpoints, files: a teacher older than so many updates is too old; 0 is no limit",
        unit="updates",
        least=0,
    )
    stale_policy: str = _option(
        "wait",
        "checkpoints, files: what to do about late weights and teachers that are too old: wait for new ones; go_on "
        "with the old ones; drop the term of teachers that are too old, and go on",
        STALE_POLICIES,
    )
    dir: str = _option("", "files: where all jobs put and read weights", unit="a directory that the jobs share")
    model_index: int = _option(
        -1, "files: which of the models this job trains", unit="an index less than the number of models", least=-1
    )
    settings: str = _option("", "options of single models, such as '1: {lr: 0.05}'", unit="a YAML file")
    check_every: int = _option(
        1,
        "coordinated data: compare the fingerprints of the batches every so many exchanges; 0 never",
        unit="exchanges",
        least=0,
    )
    timeout: float = _option(
        1800.0, "how long to wait for a peer before giving up with an error", unit="seconds", above=0
    )

    def __post_init__(self) -> None:
        # As a number if it is one, so that options are equal however they were written.
        object.__setattr__(self, "alpha", self.alpha_schedule.plain)
        self._check_ranges()
        self._check_effects()

    def _check_ranges(self) -> None:
        for option in dataclasses.fields(self):
            choices = option.metadata["choices"]
            value = getattr(self, option.name)
            if choices is not None and value not in choices:
                raise ValueError(f"{flag(option.name)} is one of {', '.join(choices)}, not {value!r}")
            if option.type is float and not math.isfinite(value):
                raise ValueError(f"{flag(option.name)} must be a finite number, not {value}")
            least, above = option.metadata["least"], option.metadata["above"]
            if least is not None and value < least:
                raise ValueError(f"{flag(option.name)} must be at least {least}, not {value}")
            if above is not None and not value > above:
                raise ValueError(f"{flag(option.name)} must be more than {above}, not {value}")
        if self.lag >= self.period and self.exchange != "predictions":
            raise ValueError(
                f"{flag('lag')} must be less than {flag('period')}, so that the weights of one exchange are in "
                f"use before the next begins: got {self.lag} and {self.period}"
            )
        peers_of_each(self.topology, self.models)

    def _check_effects(self) -> None:
        """Refuse options without effect. ``models=1`` is the control run: it may keep all other options."""
        if self.models == 1:
            return
        if self.exchange == "predictions":
            for name in _WEIGHTS_ONLY:
                self._refuse_unless_default(name, "with --codistill-exchange predictions")
        elif self.encoding == "topk":
            raise ValueError("--codistill-encoding topk is for predictions; weights can cross in full or half")
        if self.encoding != "topk":
            self._refuse_unless_default("topk", f"with --codistill-encoding {self.encoding}")
        elif self.divergence == "mse" or self.target == "mean":
            raise ValueError(
                "--codistill-encoding topk sends no logits and other outputs from each peer: it does not go with "
                "--codistill-divergence mse or --codistill-target mean"
            )
        self._check_files()
        if self.stale_policy == "drop" and self.max_staleness == 0:
            raise ValueError("--codistill-stale-policy drop needs a --codistill-max-staleness to tell what is too old")
        if self.exchange == "predictions" and not self.coordinated:
            raise ValueError(
                "predictions are exchanged on the same mini-batch: use --codistill-data coordinated, "
                f"or --codistill-exchange checkpoints for {self.data} data"
            )
        if not self.coordinated:
            self._refuse_unless_default("check_every", "without coordinated data")
        if self.divergence == "mse":
            self._refuse_unless_default("temperature", "with --codistill-divergence mse")
        if self.target == "mean" and max(map(len, self.peers)) < 2:
            raise ValueError(
                "--codistill-target mean has no effect: no model has two peers to take the mean of "
                f"({self.models} models, topology {self.topology})"
            )

    def _check_files(self) -> None:
        if self.exchange != "files":
            for name in ("dir", "model_index"):
                self._refuse_unless_default(name, f"with --codistill-exchange {self.exchange}")
            return
        if not self.dir or not 0 <= self.model_index < self.models:
            raise ValueError(
                "--codistill-exchange files needs --codistill-dir, the directory that the jobs share, and "
                f"--codistill-model-index from 0 to {self.models - 1}: got {self.dir!r} and {self.model_index}"
            )
        if self.stale_policy == "wait" and 0 < self.max_staleness < self.period:
            raise ValueError(
                f"--codistill-max-staleness must be at least {flag('period')} with --codistill-exchange files, or jobs "
                f"would wait for one another: got {self.max_staleness} and {self.period}"
            )
        if self.data == "coordinated":
            raise ValueError("separate jobs do not keep step: --codistill-exchange files has no coordinated data")
        if self.placement != "contiguous":
            raise ValueError("--codistill-placement has no effect with --codistill-exchange files: leave it out")

    def _refuse_unless_default(self, name: str, circumstance: str) -> None:
        default = next(option.default for option in dataclasses.fields(self) if option.name == name)
        if getattr(self, name) != default:
            raise ValueError(f"{flag(name)} {getattr(self, name)} has no effect {circumstance}: leave it out")

    @property
    def active(self) -> bool:
        """Whether any model may ever feel another."""
        return self.models > 1 and max(self.alpha_schedule.values) > 0

    @property
    def alpha_schedule(self) -> Schedule:
        """alpha_k of the paper's equation, but for ``burn_in`` and ``distill_every``."""
        try:
            return Schedule.parse(self.alpha)
        except ValueError as error:
            raise ValueError(f"{flag('alpha')}: {error}") from None

    @property
    def coordinated(self) -> bool:
        """Whether the models read the same mini-batches."""
        if self.data == "auto":
            return self.exchange == "predictions"
        return self.data == "coordinated"

    @property
    def disjoint(self) -> bool:
        """Whether each model has a part of the data to itself."""
        return self.data == "disjoint" and self.models > 1

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
            if option.type is bool:
                group.add_argument(flag(option.name), action="store_true", help=help_text(option))
                continue
            group.add_argument(
                flag(option.name),
                type=argument_type(option),
                default=option.default,
                choices=option.metadata["choices"],
                help=help_text(option),
            )

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "CodistillConfig":
        return cls.from_flat(vars(args))

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> "CodistillConfig":
        """Pick the ``codistill_*`` entries out of a flat mapping; absent ones keep their defaults."""
        known = {option.name: FLAG_PREFIX + option.name for option in dataclasses.fields(cls)}
        return cls(**{name: values[key] for name, key in known.items() if key in values})


def argument_type(option: "dataclasses.Field[Any]") -> type:
    """What a command line reads the option as; text stands for a number or a schedule."""
    assert not isinstance(option.type, str)  # this module does not postpone annotations
    return option.type if isinstance(option.type, type) else str


def help_text(option: "dataclasses.Field[Any]") -> str:
    """For argparse: what an option is, its unit and range, and its default."""
    of = option.metadata
    takes = of["unit"] or ", ".join(of["choices"] or ()) or "a switch"
    if of["least"] is not None:
        takes += f", {of['least']} or more"
    elif of["above"] is not None:
        takes += f", more than {of['above']}"
    default = "off" if option.default is False else option.default if option.default != "" else "none"
    return f"{of['help']} [{takes}; default: {default}]".replace("%", "%%")


def flag(name: str) -> str:
    """The command line's name of an option."""
    return "--" + (FLAG_PREFIX + name).replace("_", "-")
