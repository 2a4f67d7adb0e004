"""The training loop of one model, on each of its ranks."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from codistill_ext.config import CodistillConfig
from codistill_ext.groups import ModelGroups
from codistill_ext.job.randomness import restore_random_state
from codistill_ext.job.runlog import RunLog
from codistill_ext.sampling import model_seed, sample_seed
from vision import build, checkpointing
from vision.budget import Budget
from vision.datasets import Data
from vision.device import Place
from vision.ema import build_ema
from vision.evaluate import validation_loader
from vision.hyperparameters import HyperParameters, lr_decays
from vision.optim import build_optimizer
from vision.preemption import Preemption
from vision.report import Report
from vision.step import Step
from vision.subset import describe_samples


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

    Attributes:
        leaving: the signal that the run has saved for and leaves, or 0.
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
        self.args, self.groups, self.place, self.data = args, groups, place, data
        # A model's own seed is of its weights and dropout; the data's is the job's.
        own_seed = model_seed(seed, groups.model_index) if args.seed == seed else args.seed
        torch.manual_seed(own_seed)
        module = build.build_module(args, data, groups, place)
        self.sampler = build.build_sampler(args, data, groups, config, seed)
        self.budget = Budget.of(args, groups, self.sampler)
        horizon = self.budget.horizon(lr_decays(args, self.budget.horizon()))
        self.model = build.wrap(module, args, data, groups, place, config, horizon)
        ema = build_ema(self.model.plain, args.ema_decay)
        self.train_loader = build.train_loader(self.sampler, args, data, place)
        self.valid_loader = validation_loader(
            data.valid, groups, place, batch_size=args.batch_size, workers=args.workers
        )
        self.batches_an_epoch = -(-len(self.sampler) // args.batch_size)
        self.report = Report(
            self.model,
            groups=groups,
            place=place,
            log=log,
            valid_loader=self.valid_loader,
            budget=self.budget,
            print_freq=args.print_freq,
            ema=ema,
        )
        optimizer = build_optimizer(self.model.plain, opt=args.opt, momentum=args.momentum)
        self.hyper = HyperParameters.of(args, horizon, self.budget.batch)
        self.step = Step(self.model, optimizer, self.hyper, place, self.report, ema)
        self.preemption = Preemption(groups, timeout_s=config.timeout)
        self.leaving = 0
        self.progress = Progress()
        self._settings: dict[str, float] = {}
        self._start = time.perf_counter()
        self._seconds_before = 0.0
        # Ranks of a model must not drop the same units.
        torch.manual_seed(sample_seed(own_seed, 0, groups.data_rank))

    @property
    def seconds(self) -> float:
        """What the run has taken until now, with what it took before it was resumed."""
        return self._seconds_before + time.perf_counter() - self._start

    @property
    def done(self) -> bool:
        limit = self.args.max_updates
        return self.complete or (limit is not None and self.progress.update >= limit)

    @property
    def complete(self) -> bool:
        """Whether the whole budget is spent, and the run not only stopped by --max-updates."""
        return self.progress.update >= self.budget.updates

    def train(self) -> None:
        if self.groups.is_lead and len(self.sampler.samples) < len(self.data.train):
            print(describe_samples(self.sampler, len(self.data.train), self.groups.model_index), flush=True)
        with self.preemption.listening():
            while not (self.done or self.leaving):
                self._train_epoch()
        self.preemption.close()

    def _train_epoch(self) -> None:
        """The rest of the current epoch, or as much of it as the run still has."""
        progress = self.progress
        self.sampler.set_epoch(progress.epoch)
        self.sampler.set_position(progress.batch * self.args.batch_size)
        self.model.train()
        loader = self.report.bar(
            self.train_loader, epoch=progress.epoch, done=progress.batch, total=self.batches_an_epoch
        )
        for images, labels in loader:
            self._train_batch(*self.place.put(images, labels))
            progress.batch += 1
            if progress.batch % self.args.accumulate == 0 or progress.batch == self.batches_an_epoch:
                self._finish_update()
                if self.done or self.leaving:
                    return

    def _train_batch(self, images: Tensor, labels: Tensor) -> None:
        batch, accumulate, size = self.progress.batch, self.args.accumulate, self.args.batch_size
        if batch % accumulate == 0:
            self._settings = self.step.settings(self.progress.update)
        rest = self.budget.rank_images - batch // accumulate * accumulate * size
        self.step.train(
            images,
            labels,
            update=self.progress.update,
            share=len(labels) / min(rest, accumulate * size),
            first=batch % accumulate == 0,
            last=(batch + 1) % accumulate == 0 or batch + 1 == self.batches_an_epoch,
        )

    def _finish_update(self) -> None:
        """Log, validate and save where it is time to. All models are at the same place."""
        progress = self.progress
        progress.update += 1
        if progress.batch == self.batches_an_epoch:
            progress.epoch, progress.batch = progress.epoch + 1, 0
        self.report.after_update(progress.update, self._settings)
        at_epoch = progress.batch == 0 and progress.epoch % self.args.eval_every == 0
        if at_epoch or self.done:
            self.report.validate(progress.update, self._settings, keep=at_epoch or self.complete)
        if not self.done:
            self.leaving = self.preemption.agreed(progress.update)
        every = self.args.save_every_updates
        if at_epoch or self.done or self.leaving or (every is not None and progress.update % every == 0):
            self.save()

    def save(self) -> None:
        """All ranks of all models must call it at the same update."""
        state = {
            "identity": checkpointing.identity(self.args, self.data),
            "update": self.progress.update,
            "progress": asdict(self.progress),
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            **self.step.state_dict(),
            "codistill": self.model.codistill_state_dict(),
            **self.report.state_dict(),
        }
        path = checkpointing.checkpoint_path(self.args.output_dir, self.groups.model_index)
        checkpointing.save(path, state, self.groups, self.place.device)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint of this model; what follows is what would have followed."""
        now = checkpointing.identity(self.args, self.data)
        checkpointing.check_identity(state["identity"], now, test_only=False)
        self.model.load_state_dict(state["model"])
        self.step.load_state_dict(state)
        self.model.load_codistill_state_dict(state["codistill"])
        self.progress = Progress(**state["progress"])
        self.report.load_state_dict(state)
        self._seconds_before = state["seconds"]
        restore_random_state(state["random"], self.groups, self.place.device)
