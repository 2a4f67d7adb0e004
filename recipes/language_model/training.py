"""The loop: a plain one of FSDP2, with three lines for the peers, that goes on from where it was stopped."""

import argparse
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codistill_ext import CodistillConfig, CodistillParallel, CodistillSampler, ModelGroups, model_seed
from codistill_ext.job.runlog import RunLog
from codistill_ext.job.sharded import load_sharded, save_sharded
from codistill_ext.sampling import sample_seed
from codistill_ext.schedules import Horizon
from recipes.language_model.evaluate import evaluate
from recipes.language_model.gpt import GPT, Sizes, shard

# What may change when a run is continued.
_FREE = {"log_every", "save_every", "eval_every", "output_dir", "text_dir", "codistill_timeout"}


class Training:
    """One model of the job, from its beginning or from what was saved. Every rank of the job must construct it.

    Args:
        blocks: of each split, (blocks, context + 1).
    """

    def __init__(
        self,
        args: argparse.Namespace,
        config: CodistillConfig,
        groups: ModelGroups,
        blocks: dict[str, Tensor],
        device: torch.device,
    ) -> None:
        self.args, self.groups, self.blocks, self.device = args, groups, blocks, device
        self.log = RunLog(args.output_dir, groups)
        own_seed = model_seed(args.seed, groups.model_index)
        torch.manual_seed(own_seed)  # FSDP2 does not send weights: the same on all ranks of a model
        sizes = Sizes(
            vocabulary=args.vocabulary,
            context=args.context,
            layers=args.layers,
            width=args.width,
            heads=args.heads,
            dropout=args.dropout,
        )
        net = GPT(sizes).to(device)
        self.parameters = sum(parameter.numel() for parameter in net.parameters())
        self.model = CodistillParallel(net, groups, config, data_parallel=shard, horizon=Horizon(updates=args.updates))
        matrices = [parameter for parameter in self.model.parameters() if parameter.dim() > 1]
        vectors = [parameter for parameter in self.model.parameters() if parameter.dim() <= 1]
        decayed = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(decayed, lr=args.lr, betas=(0.9, 0.95))
        torch.manual_seed(sample_seed(own_seed, 0, groups.data_rank))  # ranks differ in dropout
        self.sampler = CodistillSampler(len(blocks["train"]), groups, config, seed=args.seed)
        if len(self.sampler) < args.batch_size:
            raise ValueError(f"a rank has {len(self.sampler)} blocks of text: choose a --batch-size of no more")
        self._epoch, self._position, self._seconds = 0, 0, 0.0
        self._resume()

    def _resume(self) -> None:
        saved = load_sharded(self.args.output_dir, self.model, self.optimizer)
        if saved is None:
            return
        then, now = saved["options"], self._identity()
        differences = [f"{key}: {then.get(key)} then, {now[key]} now" for key in now if then.get(key) != now[key]]
        if differences:
            raise ValueError(
                f"{self.args.output_dir} holds a run with other options ({'; '.join(differences)}): continue it with "
                f"the same ones, or choose another --output-dir"
            )
        self._epoch, self._position, self._seconds = saved["epoch"], saved["position"], saved["seconds"]
        if self.groups.rank == 0:
            print(f"continued at update {self.model.updates}", flush=True)

    def _identity(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self.args).items() if key not in _FREE}

    def _save(self) -> None:
        extra = {"epoch": self._epoch, "position": self._position, "seconds": self._seconds}
        save_sharded(self.args.output_dir, self.model, self.optimizer, extra | {"options": self._identity()})

    def _batches(self) -> Iterator[Tensor]:
        """Epoch after epoch of this rank's share, (batch, context + 1), from where the run is."""
        while True:
            self.sampler.set_epoch(self._epoch)
            self.sampler.set_position(self._position)
            own = self.blocks["train"][list(self.sampler)]
            for batch in own[: len(own) // self.args.batch_size * self.args.batch_size].split(self.args.batch_size):
                self._position += len(batch)
                yield batch.to(self.device, non_blocking=True)
            self._epoch, self._position = self._epoch + 1, 0

    def _rate(self) -> float:
        """Linear warm-up, then half a cosine down to a tenth."""
        update, warmup = self.model.updates, self.args.warmup
        if update < warmup:
            return float(self.args.lr * (update + 1) / warmup)
        done = (update - warmup) / max(1, self.args.updates - warmup)
        return float(self.args.lr * (0.55 + 0.45 * math.cos(math.pi * done)))

    def _update(self, batch: Tensor) -> Tensor:
        """One optimizer step; the task loss and the codistillation loss."""
        logits = self.model(batch[:, :-1])
        task = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        term = self.model.codistill(batch[:, :-1], logits)
        (task + term.loss).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.after_update()
        return torch.stack([task.detach(), term.loss.detach()])

    def run(self) -> None:
        """Train to the last update. Every rank of the job must call it."""
        batches, args = self._batches(), self.args
        while self.model.updates < args.updates:
            start = time.monotonic()
            rate = self._rate()
            losses = self._update(next(batches))
            update = self.model.updates
            if update % args.log_every == 0:
                self._log(losses, rate)
            self._seconds += time.monotonic() - start
            if update % args.eval_every == 0 and update < args.updates:
                self._validate()
            if update % args.save_every == 0 or update == args.updates:
                self._save()

    def _log(self, losses: Tensor, rate: float) -> None:
        task, term = torch.stack(self.groups.gather_in_model(losses.cpu())).mean(0).tolist()
        values = {"train/loss": task, "train/codistill_loss": term, "train/lr": rate, "train/alpha": self.model.alpha}
        self.log.log(values | self.model.report(), update=self.model.updates)

    def _validate(self) -> None:
        models, _ = evaluate(self.model, self.blocks["valid"], self.args.batch_size, self.device, "valid")
        mine = next(figures for figures in models if figures["model"] == self.groups.model_index)
        values = {f"valid/{name}": mine[f"valid_{name}"] for name in ("loss", "perplexity")}
        self.log.log(values, update=self.model.updates)
        if self.groups.rank == 0:
            shown = ", ".join(f"{figures['valid_perplexity']:.1f}" for figures in models)
            print(f"update {self.model.updates}: perplexity on the validation text {shown}", flush=True)

    def finish(self) -> dict[str, Any]:
        """Evaluate, write ``summary.json`` and leave; what was written. Every rank of the job must call it."""
        summary: dict[str, Any] = {"models": [{} for _ in range(self.groups.num_models)]}
        for split in ("valid", "test"):
            models, together = evaluate(self.model, self.blocks[split], self.args.batch_size, self.device, split)
            summary["models"] = [old | new for old, new in zip(summary["models"], models, strict=False)]
            summary |= together
        ranks = self.groups.gather({} if self.model.exchange is None else self.model.exchange.traffic.to_dict())
        summary["bytes"] = {key: sum(rank.get(key, 0) for rank in ranks) for rank in ranks for key in rank}
        summary |= {
            "reported_model": 0,
            "updates": self.model.updates,
            "ranks": self.groups.world_size,
            "pieces": self.model.updates * self.args.batch_size * self.args.context * self.groups.world_size,
            "parameters": self.parameters,
            "seconds": round(self._seconds, 1),
            "args": {key: str(value) if "dir" in key else value for key, value in vars(self.args).items()},
        }
        self.model.close()
        self.log.write_summary(summary)
        self.log.close()
        return summary
