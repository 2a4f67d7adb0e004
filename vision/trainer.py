"""The training loop of one model, on each of its ranks."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from codistill_ext.config import CodistillConfig
from codistill_ext.groups import ModelGroups
from codistill_ext.job.partition import check_partition
from codistill_ext.job.runlog import RunLog
from codistill_ext.parallel import CodistillParallel
from codistill_ext.sampling import CodistillSampler, model_seed, sample_seed
from vision import checkpointing
from vision.averages import Averages
from vision.datasets import Data, KeySampler
from vision.device import Place
from vision.evaluate import evaluate, validation_loader
from vision.models import build_described, build_model, describe_model
from vision.optim import build_optimizer, build_schedule, set_lr
from vision.subset import describe_samples, training_samples

_AVERAGES = ("loss", "codistill_loss", "divergence", "top1")


@dataclass
class Progress:
    """Where a run is: ``batch`` mini-batches into ``epoch``, ``update`` optimizer steps in all."""

    epoch: int = 0
    batch: int = 0
    update: int = 0


class Trainer:
    """Trains, validates and saves. Every rank of the job makes one and calls the same methods.

    Args:
        config: the options of the method; ``args``: this model's others; ``seed``: of the job.
        log: where figures go.
    """

    def __init__(
        self,
        *,
        args: argparse.Namespace,
        seed: int,
        config: CodistillConfig,
        groups: ModelGroups,
        place: Place,
        data: Data,
        log: RunLog,
    ) -> None:
        self.args, self.groups, self.place, self.data, self.log = args, groups, place, data, log
        # A model's own seed is of its weights and dropout; the data's is the job's.
        own_seed = model_seed(seed, groups.model_index) if args.seed == seed else args.seed
        torch.manual_seed(own_seed)
        module = build_model(args.model, num_classes=data.num_classes, image_sizes=data.image_sizes)
        module = place.put_module(module)
        description = describe_model(args.model, num_classes=data.num_classes, image_sizes=data.image_sizes)
        self.model = CodistillParallel(
            module,
            groups,
            config,
            description=description,
            build_peer=lambda peer: place.put_module(build_described(peer, num_classes=data.num_classes)),
        )
        self.optimizer = build_optimizer(
            module,
            lr=args.lr,
            momentum=args.momentum,
            weight_decay=args.weight_decay,
            norm_weight_decay=args.norm_weight_decay,
        )
        self.lr_at = build_schedule(args)
        self.sampler = self._build_sampler(config, seed)
        self.train_loader = self._build_train_loader()
        self.valid_loader = validation_loader(
            data.valid, groups, place, batch_size=args.batch_size, workers=args.workers
        )
        self.batches_an_epoch = -(-len(self.sampler) // args.batch_size)
        self.progress = Progress()
        self._start = time.perf_counter()
        self._seconds_before = 0.0
        self.epoch_averages = Averages(_AVERAGES, place.device)
        self.recent_averages = Averages(_AVERAGES, place.device)
        self.history: list[dict[str, float]] = []
        # Ranks of a model must not drop the same units.
        torch.manual_seed(sample_seed(own_seed, 0, groups.data_rank))

    def _build_sampler(self, config: CodistillConfig, seed: int) -> CodistillSampler:
        """An epoch is as long as the full data whatever a model has of it, and so are schedules and the number of
        updates: --epochs E with 1/k of the data is E times k passes."""
        total = len(self.data.train)
        samples = training_samples(self.data.train.labels, Fraction(self.args.train_fraction), seed)
        check_partition(samples, config, self.groups, seed)
        return CodistillSampler(total, self.groups, config, seed=seed, samples=samples, epoch_samples=total)

    def _build_train_loader(self) -> Any:
        return DataLoader(
            self.data.train,
            batch_size=self.args.batch_size,
            sampler=KeySampler(self.sampler),
            num_workers=self.args.workers,
            persistent_workers=self.args.workers > 0,
            pin_memory=self.place.pin_memory,
            generator=torch.Generator(),  # or it would draw from the state that dropout uses
        )

    @property
    def seconds(self) -> float:
        """What the run has taken until now, with what it took before it was resumed."""
        return self._seconds_before + time.perf_counter() - self._start

    @property
    def done(self) -> bool:
        limit = self.args.max_updates
        enough = limit is not None and self.progress.update >= limit
        return bool(enough or self.progress.epoch >= self.args.epochs)

    def train(self) -> None:
        if self.groups.is_lead and len(self.sampler.samples) < len(self.data.train):
            print(describe_samples(self.sampler, len(self.data.train), self.groups.model_index), flush=True)
        while not self.done:
            start = time.perf_counter()
            self._train_epoch()
            self._finish_epoch(time.perf_counter() - start)

    def _train_epoch(self) -> None:
        """The rest of the current epoch, or as much of it as --max-updates allows."""
        progress = self.progress
        self.sampler.set_epoch(progress.epoch)
        self.sampler.set_position(progress.batch * self.args.batch_size)
        self.model.train()
        for images, labels in self._with_bar(self.train_loader):
            self._train_batch(*self.place.put(images, labels))
            progress.batch += 1
            progress.update += 1
            self._log_recent()
            if self.done:
                break
            if self._is_time_to_save():
                self.save()

    def _train_batch(self, images: Tensor, labels: Tensor) -> None:
        """One update by the equation of section 1: task loss + alpha * mean divergence to the peers."""
        set_lr(self.optimizer, self.lr_at(self.progress.epoch + self.progress.batch / self.batches_an_epoch))
        with self.place.autocast():
            logits = self.model(images)
        logits = logits.float()
        task_loss = F.cross_entropy(logits, labels, label_smoothing=self.args.label_smoothing)
        term = self.model.codistill(images, logits)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(task_loss + term.loss)
        self.optimizer.step()
        self.model.after_update()
        top1 = 100 * (logits.argmax(dim=1) == labels).double().mean()
        for averages in (self.epoch_averages, self.recent_averages):
            averages.add(len(labels), task_loss, term.loss, term.divergence, top1)

    def _log_recent(self) -> None:
        progress = self.progress
        if progress.update % self.args.print_freq:
            return
        means = self.recent_averages.means(self.groups)
        self.recent_averages.restart()
        values = {f"train/{name}": value for name, value in means.items()}
        values["train/lr"] = self.optimizer.param_groups[0]["lr"]
        values |= self.model.report()
        self.log.log(values, update=progress.update, epoch=progress.epoch + progress.batch / self.batches_an_epoch)

    def _is_time_to_save(self) -> bool:
        every = self.args.save_every_updates
        return every is not None and self.progress.update % every == 0 and self.progress.batch < self.batches_an_epoch

    def _finish_epoch(self, seconds: float) -> None:
        """Validate without the codistillation term, report, and save."""
        progress = self.progress
        train = self.epoch_averages.means(self.groups)
        valid = evaluate(self.model.plain, self.valid_loader, self.groups, self.place)
        where = progress.epoch + progress.batch / self.batches_an_epoch
        names = {"top1": "valid/top1", "top5": "valid/top5", "valid_loss": "valid/loss"}
        self.log.log({names[name]: value for name, value in valid.items()}, update=progress.update, epoch=where)
        if self.groups.is_lead:
            print(
                _epoch_line(self.groups.model_index, where, self.args.epochs, train, valid, seconds),
                flush=True,
            )
        if progress.batch == self.batches_an_epoch:
            self.history.append({f"train_{n}": v for n, v in train.items()} | valid)
            self.epoch_averages.restart()
            progress.epoch, progress.batch = progress.epoch + 1, 0
        self.save()

    def save(self) -> None:
        """All ranks of all models must call it at the same update."""
        state = {
            "identity": checkpointing.identity(self.args, self.data),
            "update": self.progress.update,
            "progress": asdict(self.progress),
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "codistill": self.model.codistill_state_dict(),
            "epoch_averages": self.epoch_averages.total(self.groups).cpu(),
            "recent_averages": self.recent_averages.total(self.groups).cpu(),
            "history": self.history,
        }
        path = checkpointing.checkpoint_path(self.args.output_dir, self.groups.model_index)
        checkpointing.save(path, state, self.groups, self.place.device)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint of this model; what follows is what would have followed."""
        now = checkpointing.identity(self.args, self.data)
        checkpointing.check_identity(state["identity"], now, test_only=False)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.model.load_codistill_state_dict(state["codistill"])
        self.progress = Progress(**state["progress"])
        self.history = state["history"]
        self._seconds_before = state["seconds"]
        if self.groups.is_lead:
            self.epoch_averages.restart(state["epoch_averages"])
            self.recent_averages.restart(state["recent_averages"])
        checkpointing.restore_random_state(state, self.groups, self.place.device)

    def _with_bar(self, loader: Any) -> Any:
        """Progress on a terminal, for model 0 alone."""
        return tqdm(
            loader,
            desc=f"epoch {self.progress.epoch + 1}/{self.args.epochs}",
            initial=self.progress.batch,
            total=self.batches_an_epoch,
            unit="batch",
            leave=False,
            disable=self.groups.rank != 0 or not sys.stderr.isatty(),
        )


def _epoch_line(
    index: int, epoch: float, epochs: int, train: dict[str, float], valid: dict[str, float], seconds: float
) -> str:
    return (
        f"model {index}  epoch {epoch:.4g}/{epochs}  train loss {train['loss']:.3f} + codistillation "
        f"{train['codistill_loss']:.3f}, top-1 {train['top1']:.1f} %  "
        f"valid loss {valid['valid_loss']:.3f}, top-1 {valid['top1']:.2f} %  {seconds:.1f} s"
    )
