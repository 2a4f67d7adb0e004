"""One update of one model: the equation of the paper's section 1, over one or several mini-batches."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from codistill_ext.parallel import CodistillParallel
from vision.device import Place
from vision.hyperparameters import HyperParameters
from vision.report import Report


class Step:
    """Forward, backward, and the optimizer's step behind the last mini-batch of an update."""

    def __init__(
        self,
        model: CodistillParallel,
        optimizer: torch.optim.Optimizer,
        hyper: HyperParameters,
        place: Place,
        report: Report,
        ema: AveragedModel | None,
    ) -> None:
        self.model, self.optimizer, self.hyper, self.place, self.report = model, optimizer, hyper, place, report
        self.ema, self.scaler = ema, place.scaler()

    def settings(self, update: int) -> dict[str, float]:
        """What the update that begins now is made with, for the log."""
        return self.hyper.values(update) | {"alpha": self.model.alpha}

    def train(self, images: Tensor, labels: Tensor, *, update: int, share: float, first: bool, last: bool) -> None:
        """Train on one mini-batch.

        Args:
            share: of the update's samples that are in this mini-batch.
            first, last: of the update's mini-batches; the ranks' gradients are averaged in the last one.
        """
        if first:
            self.hyper.set(self.optimizer, update)
            self.optimizer.zero_grad(set_to_none=True)
        with contextlib.nullcontext() if last else self.model.no_sync():
            self.model.announce(images, rows=len(images))
            with self.place.autocast():
                logits = self.model(images)
            logits = logits.float()
            task_loss = F.cross_entropy(logits, labels, label_smoothing=self.hyper.label_smoothing(update))
            term = self.model.codistill(images, logits)
            loss = task_loss + term.loss
            torch.autograd.backward(self.scaler.scale(loss if share == 1 else share * loss))
        if last:
            self._finish()
        self.report.add(len(labels), task_loss, term, 100 * (logits.argmax(dim=1) == labels).double().mean())

    def _finish(self) -> None:
        """The optimizer's step. In float16 it is skipped after an overflow, which all ranks of the model see in their
        averaged gradients; the update counts for the schedules and for the peers all the same."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.model.plain)
        self.model.after_update()

    def state_dict(self) -> dict[str, Any]:
        ema = None if self.ema is None else self.ema.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "ema": ema}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
