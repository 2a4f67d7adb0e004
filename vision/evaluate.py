"""Validation of one model, or of all models together on the same pictures.

Shapes: M models, B batch, K classes.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from codistill_ext.diagnostics import agreement
from codistill_ext.groups import ModelGroups
from vision.device import Place
from vision.preemption import ignore_signals


def validation_loader(dataset: Any, groups: ModelGroups, place: Place, *, batch_size: int, workers: int) -> Any:
    """This rank's share, every sample once: the same for the same data-parallel rank of every model."""
    share = range(groups.data_rank, len(dataset), groups.data_size)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=share,
        num_workers=workers,
        pin_memory=place.pin_memory,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # or it would draw from the state that dropout uses
    )


def evaluate(module: nn.Module, loader: Any, groups: ModelGroups, place: Place) -> dict[str, float]:
    """Loss (without smoothing), top-1 and top-5 in per cent. All ranks of the model must call it."""
    return _Totals.over(module, loader, groups, place, together=False).of_model(0)


def evaluate_together(module: nn.Module, loader: Any, groups: ModelGroups, place: Place) -> dict[str, Any]:
    """Every model's figures, their mean, ensemble and agreement. All ranks of the job must call it.

    The ensemble predicts by the mean of the models' probabilities; the agreement is the share of
    pictures on which two models predict the same class, averaged over the pairs.
    """
    totals = _Totals.over(module, loader, groups, place, together=True)
    models = [totals.of_model(index) for index in range(_models_here(groups))]
    summary: dict[str, Any] = {"models": models, "reported_model": 0}
    summary["mean_top1"] = sum(model["top1"] for model in models) / len(models)
    summary["ensemble_top1"] = totals.percent(totals.ensemble)
    summary["agreement"] = totals.agreement_mean() if len(models) > 1 else None
    return summary


def evaluate_here(module: nn.Module, loader: Any, groups: ModelGroups, place: Place) -> dict[str, float]:
    """This model's figures, and those of all models where they are trained in one job.

    All ranks of the job must call it.
    """
    if groups.peer_group is None:
        return evaluate(module, loader, groups, place)
    together = evaluate_together(module, loader, groups, place)
    mine: dict[str, float] = together["models"][groups.model_index]
    return mine | {name: together[name] for name in ("ensemble_top1", "agreement")}


class _Totals:
    """Sums over samples, first of this rank, then of the model's ranks."""

    def __init__(self, models: int, device: torch.device) -> None:
        # One tensor, so that one reduction is enough; the names are views into it.
        self.all = torch.zeros(3 * models + 3, dtype=torch.float64, device=device)
        self.loss_M, self.top1_M, self.top5_M = self.all[:-3].view(3, models)
        self.ensemble, self.agreeing, self.samples = self.all[-3:]

    @classmethod
    def over(cls, module: nn.Module, loader: Any, groups: ModelGroups, place: Place, *, together: bool) -> _Totals:
        _share_buffers(module, groups)
        totals = cls(_models_here(groups) if together else 1, place.device)
        training = module.training
        module.eval()
        with torch.inference_mode():
            for images, labels in loader:
                images, labels = place.put(images, labels)
                with place.autocast():
                    logits_BK = module(images)
                logits_MBK = _from_peers(logits_BK.float(), groups) if together else logits_BK.float()[None]
                totals.add(logits_MBK, labels)
        module.train(training)
        if groups.model_group is not None:
            dist.all_reduce(totals.all, group=groups.model_group)
        return totals

    def add(self, logits_MBK: Tensor, labels_B: Tensor) -> None:
        for index, logits_BK in enumerate(logits_MBK):
            best_B5 = logits_BK.topk(min(5, logits_BK.shape[1])).indices
            self.loss_M[index] += F.cross_entropy(logits_BK, labels_B, reduction="sum")
            self.top1_M[index] += (logits_BK.argmax(dim=1) == labels_B).sum()
            self.top5_M[index] += (best_B5 == labels_B[:, None]).sum()
        mean_BK = logits_MBK.softmax(dim=-1).mean(dim=0)
        self.ensemble += (mean_BK.argmax(dim=-1) == labels_B).sum()
        pairs = list(itertools.combinations(logits_MBK, 2))
        for first, second in pairs:
            self.agreeing += agreement(first, second) * len(labels_B) / len(pairs)
        self.samples += len(labels_B)

    def percent(self, hits: Tensor) -> float:
        return round(100 * float(hits / self.samples), 6)

    def agreement_mean(self) -> float:
        return round(float(self.agreeing / self.samples), 6)

    def of_model(self, index: int) -> dict[str, float]:
        return {
            "top1": self.percent(self.top1_M[index]),
            "top5": self.percent(self.top5_M[index]),
            "valid_loss": float(self.loss_M[index] / self.samples),
        }


def _models_here(groups: ModelGroups) -> int:
    """How many models this job trains."""
    return 1 if groups.separate_jobs else groups.num_models


def _from_peers(logits_BK: Tensor, groups: ModelGroups) -> Tensor:
    """The logits of all models for the same pictures. All ranks of the peer group must call it."""
    if groups.peer_group is None:
        return logits_BK[None]
    gathered = [torch.empty_like(logits_BK) for _ in range(groups.num_models)]
    dist.all_gather(gathered, logits_BK.contiguous(), group=groups.peer_group)
    return torch.stack(gathered)


def _share_buffers(module: nn.Module, groups: ModelGroups) -> None:
    """Every rank of a model evaluates with its lead's running statistics: those that are saved."""
    if groups.model_group is None:
        return
    for buffer in module.buffers():
        dist.broadcast(buffer, group=groups.model_group, group_src=0)
