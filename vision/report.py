"""What a run says of itself: means while it trains, and all that the paper's figures need at each validation."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from codistill_ext.diagnostics import distance
from codistill_ext.exchange.wire.whole_files import put_in_place
from codistill_ext.groups import ModelGroups
from codistill_ext.job.runlog import RunLog
from codistill_ext.job.storage import writing
from codistill_ext.loss import CodistillTerm
from codistill_ext.parallel import CodistillParallel
from vision import checkpointing
from vision.averages import Averages
from vision.budget import Budget
from vision.device import Place
from vision.evaluate import evaluate, evaluate_here

_AVERAGES = ("loss", "codistill_loss", "divergence", "top1")


class Report:
    """Collects a model's figures and writes them. Every rank makes one and calls the same methods.

    Attributes:
        history: a record for each validation, in order.
    """

    def __init__(
        self,
        model: CodistillParallel,
        *,
        groups: ModelGroups,
        place: Place,
        log: RunLog,
        valid_loader: Any,
        budget: Budget,
        print_freq: int,
        ema: AveragedModel | None,
    ) -> None:
        self.model, self.groups, self.place, self.log, self.ema = model, groups, place, log, ema
        self.valid_loader, self.budget, self.print_freq = valid_loader, budget, print_freq
        # New weights come from the model's seed, so a resumed run has the same ones here.
        self._initial = _weights(model.plain) if groups.is_lead else {}
        self.history: list[dict[str, float]] = []
        self._since_validation = Averages(_AVERAGES, place.device)
        self._since_line = Averages(_AVERAGES, place.device)
        self._validated_at = time.perf_counter()

    def add(self, samples: int, task_loss: Tensor, term: CodistillTerm, top1: Tensor) -> None:
        """One mini-batch: means over its samples."""
        for averages in (self._since_validation, self._since_line):
            averages.add(samples, task_loss, term.loss, term.divergence, top1)

    def after_update(self, update: int, settings: dict[str, float]) -> None:
        """A line every so many updates; ``settings`` are those that the update was made with."""
        if update % self.print_freq:
            return
        means = self._since_line.means(self.groups)
        self._since_line.restart()
        values = {f"train/{name}": value for name, value in (means | settings).items()}
        self._log(values | self.model.report(), update)

    def validate(self, update: int, settings: dict[str, float], *, keep: bool) -> None:
        """Validate without the codistillation term. All ranks of the job must call it at the same update.

        Args:
            keep: the record goes into the history and the next one begins; else the run is only interrupted here.
        """
        train = self._since_validation.means(self.groups)
        valid = self._evaluate()
        self._save_weights(valid, keep=keep)
        state = self._distance() | self._bytes() | {"images": self.budget.images(update)}
        seconds = time.perf_counter() - self._validated_at
        names = {"valid_loss": "valid/loss"}
        values = {names.get(name, f"valid/{name}"): value for name, value in valid.items()}
        self._log(values | {f"train/{name}": value for name, value in state.items()} | self.model.report(), update)
        if self.groups.is_lead:
            print(self._line(update, train, valid, seconds), flush=True)
        if keep:
            ages = {name: age for name, age in self.model.report().items() if name.startswith("staleness/")}
            where = {"update": update, "epoch": update / self.budget.updates_an_epoch}
            trained = {f"train_{name}": value for name, value in train.items()}
            self.history.append(where | trained | valid | settings | state | ages)
            self._since_validation.restart()
        self._validated_at = time.perf_counter()

    def _evaluate(self) -> dict[str, float]:
        valid = evaluate_here(self.model.plain, self.valid_loader, self.groups, self.place)
        if self.ema is None:
            return valid
        average = evaluate(self.ema.module, self.valid_loader, self.groups, self.place)
        return valid | {f"ema_{name}": value for name, value in average.items()}

    def _save_weights(self, valid: dict[str, float], *, keep: bool) -> None:
        """Bare weights, for any program: the last ones, and the best ones by top-1, the first of equals.

        What is only an interruption is not among those that the best ones are chosen from, or a run that is continued
        would have others than one that is not; before the first of those there is nothing better, and the next one
        replaces it.
        """
        if not self.groups.is_lead:
            return
        modules = {"": self.model.plain} if self.ema is None else {"": self.model.plain, "ema_": self.ema.module}
        for prefix, module in modules.items():
            last = self.log.model_dir / f"{prefix}last.pt"
            checkpointing.save_weights(last, module)
            known = [record[f"{prefix}top1"] for record in self.history]
            if not known or (keep and valid[f"{prefix}top1"] > max(known)):
                best = last.with_name(f"{prefix}best.pt")
                with writing(best):
                    put_in_place(last, best)

    def _distance(self) -> dict[str, float]:
        """How far the weights have come from where they began (Euclidean, parameters alone), on the lead."""
        if not self.groups.is_lead:
            return {}
        return {"distance_from_start": distance(self._initial, _weights(self.model.plain))}

    def _bytes(self) -> dict[str, float]:
        """What this model's ranks have sent and received in all. All of them must call it."""
        exchange = self.model.exchange
        mine = {} if exchange is None else exchange.traffic.to_dict()
        total: Counter[str] = Counter()
        for rank in self.groups.gather_in_model(mine):
            for kind, count in rank.items():
                total[f"bytes_{kind.partition('/')[0]}"] += count
        return {name: total[name] for name in ("bytes_sent", "bytes_received")}

    def _log(self, values: dict[str, float], update: int) -> None:
        self.log.log(values, update=update, epoch=update / self.budget.updates_an_epoch)

    def _line(self, update: int, train: dict[str, float], valid: dict[str, float], seconds: float) -> str:
        epoch = update / self.budget.updates_an_epoch
        return (
            f"model {self.groups.model_index}  epoch {epoch:.4g}/{self.budget.epochs:g}  train loss "
            f"{train['loss']:.3f} + codistillation {train['codistill_loss']:.3f}, top-1 {train['top1']:.1f} %  "
            f"valid loss {valid['valid_loss']:.3f}, top-1 {valid['top1']:.2f} %  {seconds:.1f} s"
        )

    def state_dict(self) -> dict[str, Any]:
        """All ranks of the model must call it."""
        return {
            "history": self.history,
            "epoch_averages": self._since_validation.total(self.groups).cpu(),
            "recent_averages": self._since_line.total(self.groups).cpu(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = state["history"]
        if self.groups.is_lead:
            self._since_validation.restart(state["epoch_averages"])
            self._since_line.restart(state["recent_averages"])

    def bar(self, batches: Any, *, epoch: int, done: int, total: int) -> Any:
        """Progress on a terminal, for model 0 alone."""
        return tqdm(
            batches,
            desc=f"epoch {epoch + 1}/{self.budget.epochs:g}",
            initial=done,
            total=total,
            unit="batch",
            leave=False,
            disable=self.groups.rank != 0 or not sys.stderr.isatty(),
        )


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters in host memory; statistics of BatchNorm are no part of a distance between weights."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.named_parameters()}
