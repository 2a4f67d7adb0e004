"""(fairseq) ``--criterion codistill_label_smoothed_ce``: fairseq's criterion plus the codistillation term."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from fairseq.logging import metrics
from torch import Tensor, nn

from codistill_ext.config import FLAG_PREFIX, CodistillConfig, argument_type, flag, help_text
from codistill_ext.errors import Mistake
from codistill_ext.parallel import CodistillParallel
from codistill_ext.schedules import Curve, Horizon, Schedule

NAME = "codistill_label_smoothed_ce"
_SHARE = "a share from 0 to less than 1, or a schedule such as 0.1~0@50%%"
# Regularisation as schedules over the run: what it is, its values, and its default.
SCHEDULED = {
    "label_smoothing": ("label smoothing in training; validation keeps --label-smoothing", _SHARE, "--label-smoothing"),
    "dropout": ("share that is dropped in training; replaces --dropout", _SHARE, "--dropout"),
    "weight_decay": (
        "weight decay of the optimizer; replaces --weight-decay",
        "0 or more, or a schedule such as 1e-4,0@50%%",
        "--weight-decay",
    ),
}

# The core declares the options; fairseq wants them as fields of the criterion.
CodistillLabelSmoothedCEConfig = dataclasses.make_dataclass(
    "CodistillLabelSmoothedCEConfig",
    [
        (
            FLAG_PREFIX + option.name,
            argument_type(option),
            dataclasses.field(
                default=argument_type(option)(option.default),
                metadata={"help": help_text(option)},
            ),
        )
        for option in dataclasses.fields(CodistillConfig)
    ]
    + [
        (
            FLAG_PREFIX + name,
            str,
            dataclasses.field(default="", metadata={"help": f"{text} [{values}; default: {now}]"}),
        )
        for name, (text, values, now) in SCHEDULED.items()
    ],
    bases=(LabelSmoothedCrossEntropyCriterionConfig,),
    namespace={"__module__": __name__},
)


def regularisation(cfg: Any) -> dict[str, Schedule]:
    """What of ``SCHEDULED`` is not fairseq's constant, by name.

    Raises:
        ValueError: it is no schedule, or not of shares of a whole.
    """
    return {name: _schedule(name, text) for name in SCHEDULED if (text := getattr(cfg, FLAG_PREFIX + name))}


def _schedule(name: str, text: str) -> Schedule:
    try:
        schedule = Schedule.parse(text)
    except ValueError as error:
        raise ValueError(f"{flag(name)}: {error}") from None
    if SCHEDULED[name][1] == _SHARE and max(schedule.values) >= 1:
        raise ValueError(f"{flag(name)} must be less than 1 throughout, not {text}")
    return schedule


class _Recorder:
    """Stands in for a model for one call, and remembers what the model returned."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.output: Any = None

    def __call__(self, **net_input: Any) -> Any:
        self.output = self._model(**net_input)
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _logits(output: Any, target: Tensor) -> Tensor:
    """Of a model's output, shape (batch, length, vocabulary).

    Raises:
        Mistake: the model is of another kind.
    """
    logits = output[0] if isinstance(output, (tuple, list)) and output else None
    if not isinstance(logits, Tensor) or logits.shape[:-1] != target.shape:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise Mistake(
            f"{NAME} needs a model that returns first of all the logits of each target, of shape "
            f"{[*target.shape, 'vocabulary']}; this one returned {found}"
        )
    return logits


@register_criterion(NAME, dataclass=CodistillLabelSmoothedCEConfig)
class CodistillLabelSmoothedCE(LabelSmoothedCrossEntropyCriterion):
    """Label-smoothed cross entropy, and in training the codistillation term, summed over the tokens.

    ``loss`` and ``nll_loss`` in the log are the task's alone, in training as in validation;
    ``codistill_loss`` is alpha times the divergence, in the same unit (base 2, a token).
    """

    models = 1
    eps: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.schedules: dict[str, Schedule] = {}
        self._curves: dict[str, Curve] = {}

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> "CodistillLabelSmoothedCE":
        criterion = cls(task, cfg.sentence_avg, cfg.label_smoothing, cfg.ignore_prefix_size, cfg.report_accuracy)
        criterion.models = cfg.codistill_models
        criterion.schedules = regularisation(cfg)
        return criterion

    def set_horizon(self, horizon: Horizon) -> None:
        """Say how long the run is, before the first batch.

        Raises:
            ValueError: the schedule does not fit the run.
        """
        self._curves = {name: schedule.resolve(horizon, flag(name)) for name, schedule in self.schedules.items()}

    def regularisation_at(self, update: int) -> dict[str, float]:
        """The label smoothing that an update is made with, and dropout and weight decay if they have schedules."""
        return {"label_smoothing": self.eps} | {name: curve(update) for name, curve in self._curves.items()}

    @contextlib.contextmanager
    def _smoothing(self, model: Any) -> Iterator[None]:
        """With the label smoothing in force; in validation it is fairseq's constant."""
        constant = self.eps
        if self._curves and model.training:
            self.eps = self.regularisation_at(model.updates)["label_smoothing"]
        try:
            yield
        finally:
            self.eps = constant

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, Any, dict[str, Any]]:
        if model.training and self.models > 1 and not isinstance(model, CodistillParallel):
            raise RuntimeError(
                f"{NAME} was asked for {self.models} models, but the plug-in does not run this job, so they would "
                f"overwrite one another: start it with `fairseq-train ... --user-dir codistill_ext`, or for hydra with "
                f"`-m codistill_ext.hydra_train`"
            )
        # fairseq's NaN detector repeats a batch on one model only: it is not in step.
        coupled = isinstance(model, CodistillParallel) and model.training and model.exchange is not None
        coupled = coupled and model.in_step
        if coupled:
            mask: Tensor = sample["target"].ne(self.padding_idx)
            mask[:, : self.ignore_prefix_size] = False
            model.announce(sample["net_input"], mask=mask)
        recorder = _Recorder(model)
        with self._smoothing(model):
            loss, sample_size, logging_output = super().forward(recorder, sample, reduce=reduce)
        if not coupled:
            return loss, sample_size, logging_output
        logits = _logits(recorder.output, sample["target"])
        term = model.codistill(sample["net_input"], logits, mask=mask, reduction="sum")
        logging_output["codistill_loss"] = term.loss.detach()
        return loss + term.loss, sample_size, logging_output

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        super().reduce_metrics(logging_outputs)
        if any("codistill_loss" in log for log in logging_outputs):
            total = sum(log.get("codistill_loss", 0) for log in logging_outputs)
            sample_size = sum(log.get("sample_size", 0) for log in logging_outputs)
            metrics.log_scalar("codistill_loss", total / sample_size / math.log(2), sample_size, round=3)
