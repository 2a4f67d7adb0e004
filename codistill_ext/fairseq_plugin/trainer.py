"""(fairseq) The trainer of one model among several: fairseq's, with the core's wrapper as its model.

``launch.py`` prepares the job; here is what happens inside it.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.logging import metrics
from fairseq.models import distributed_fairseq_model
from fairseq.trainer import Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from codistill_ext.config import CodistillConfig
from codistill_ext.diagnostics import distance
from codistill_ext.exchange import ModelDescription
from codistill_ext.fairseq_plugin.checkpoints import (
    STATE_KEY,
    CheckpointFiles,
    cut_of,
    load_patience_state,
    load_plateau_state,
    load_precision_state,
    patience_state,
    plateau_state,
    precision_state,
    set_for_a_while,
)
from codistill_ext.fairseq_plugin.dropout import set_dropout
from codistill_ext.fairseq_plugin.models import build_described, describe_model, plain_values, vocabularies
from codistill_ext.fairseq_plugin.parts import part_of
from codistill_ext.groups import ModelGroups
from codistill_ext.job.failures import mistakes
from codistill_ext.job.partition import check_partition
from codistill_ext.job.runlog import RunLog
from codistill_ext.parallel import CodistillParallel
from codistill_ext.sampling import data_seed
from codistill_ext.schedules import Horizon

_LOGGED = {"loss", "nll_loss", "codistill_loss", "lr", "gnorm", "ups", "wps", "loss_scale", "ema_decay"}


class FairseqCodistillParallel(CodistillParallel):
    """The core's wrapper with fairseq's manners: missing attributes are the model's.

    Attributes:
        in_step: whether a forward pass now is one that the peers make too. fairseq repeats batches
            on one model alone when it looks for the layer that made a NaN.
    """

    in_step = True

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            pass
        if hasattr(self.module, name):  # a data-parallel wrapper's own, such as all_reduce_grads
            return getattr(self.module, name)
        return getattr(self.plain, name)


class CodistillTrainer(Trainer):
    """fairseq's trainer inside one model group; ``cfg`` describes this model's ranks alone.

    Args:
        config, groups: of the method.
        log: of the run; every model's lead writes to it.
        seed: the job's seed; ``cfg.common.seed`` is the model's own.
    """

    def __init__(
        self,
        cfg: Any,
        task: Any,
        model: nn.Module,
        criterion: nn.Module,
        quantizer: Any = None,
        *,
        config: CodistillConfig,
        groups: ModelGroups,
        log: RunLog,
        seed: int,
    ) -> None:
        self.config, self.groups, self.log = config, groups, log
        self._job_seed, self._data_seed = seed, data_seed(config, groups, seed)
        self._codistill_state: dict[str, Any] | None = None
        self._batches_made = False
        self._in_update = False
        self._subset = ""  # that is being validated
        self.valid_stats: dict[str, float] = {}
        check_vocabularies(task, groups)
        check_batches_an_update(cfg, config, groups)
        # Before the weights become 16-bit ones or are loaded; a resumed run builds the same ones here.
        self._initial = weights_on_cpu(model) if groups.is_lead else {}
        super().__init__(cfg, task, model, criterion, quantizer)
        self.files = CheckpointFiles(Path(cfg.checkpoint.save_dir), self.checkpoint_suffix)
        if not self.use_distributed_wrapper:
            assert groups.data_size == 1

    @property
    def model(self) -> FairseqCodistillParallel:
        if self._wrapped_model is None:  # fairseq's trainer declares it
            self._wrapped_model: FairseqCodistillParallel | None = self._wrap_model()
        return self._wrapped_model

    @mistakes()
    def _wrap_model(self) -> FairseqCodistillParallel:
        return FairseqCodistillParallel(
            self._model,
            self.groups,
            self.config,
            logits_of=lambda output: output[0],
            data_parallel=self._data_parallel,
            description=describe_model(self.cfg.model, self.task),
            build_peer=self._build_peer,
        )

    def _data_parallel(self, module: nn.Module, groups: ModelGroups) -> nn.Module:
        """fairseq's own choice of wrapper and its options (--ddp-backend and others)."""
        with replaced(distributed_fairseq_model, "DistributedDataParallel", _distributed_data_parallel):
            return distributed_fairseq_model.DistributedFairseqModel(
                self.cfg.distributed_training, module, process_group=groups.model_group, device=self.device
            )

    def _build_peer(self, description: ModelDescription) -> nn.Module:
        return build_described(description, self.task).to(next(self._model.parameters()).dtype)

    def train_step(self, samples: Any, raise_oom: bool = False) -> Any:
        """One update, and one step of the exchange whether or not the optimizer skipped it."""
        self.model.in_step = True
        if self._in_update:  # --amp tries a batch again: it is the same update
            return super().train_step(samples, raise_oom=raise_oom)
        settings = {"alpha": self.model.alpha, **self._criterion.regularisation_at(self.model.updates)}
        if "dropout" in settings:
            set_dropout(self.model.plain, settings["dropout"])
        if "weight_decay" in settings:
            for group in self.optimizer.param_groups:
                group["weight_decay"] = settings["weight_decay"]
        # A batch that one model gives up for want of memory would leave its peers waiting.
        each_batch_counts = self.config.active and self.config.exchange == "predictions"
        self._in_update = True
        output = super().train_step(samples, raise_oom=raise_oom or each_batch_counts)
        self._in_update = False
        self.model.after_update()
        if output is not None and self.get_num_updates() % self.cfg.common.log_interval == 0:
            # Means since the last line; main resets them behind this.
            means = metrics.get_smoothed_values("train_inner")
            values = {key: float(value) for key, value in means.items() if key in _LOGGED}
            decay = getattr(self.cfg.optimizer, "weight_decay", None)
            constant = {} if decay is None else {"weight_decay": float(decay)}
            self._log("train", values | {"lr": float(self.get_lr())} | constant | settings)
        return output

    def clip_grad_norm(self, clip_norm: float) -> Tensor:
        self.model.in_step = False  # all forward passes of this update are done
        return super().clip_grad_norm(clip_norm)

    def _log(self, prefix: str, values: dict[str, float]) -> None:
        line = {f"{prefix}/{key}": value for key, value in values.items()}
        self.log.log(line | self.model.report(), update=self.get_num_updates())

    def log_validation(self, stats: dict[str, Any], *, first: bool) -> None:
        """Write a validation's results into the run's log.

        Args:
            first: of --valid-subset, by which the best checkpoint is chosen.
        """
        values = {key: float(value) for key, value in stats.items() if isinstance(value, (int, float, Tensor))}
        if first:
            self.valid_stats = values
            self._log("train", self._progress())
        self._log("valid" if first else f"valid.{self._subset}", values)

    def _progress(self) -> dict[str, float]:
        """How far the weights have come and what has crossed between models, in all. Every rank of the model calls it.

        The distance is Euclidean, of the parameters alone, from the weights that the model was built with.
        """
        exchange = self.model.exchange
        total: Counter[str] = Counter()
        for rank in self.groups.gather_in_model({} if exchange is None else exchange.traffic.to_dict()):
            for kind, count in rank.items():
                total[f"bytes_{kind.partition('/')[0]}"] += count
        values = {name: float(total[name]) for name in ("bytes_sent", "bytes_received")}
        now = weights_on_cpu(self.model.plain) if self.groups.is_lead else {}
        if now and now.keys() == self._initial.keys():  # fairseq's quantization puts other modules in their place
            values["distance_from_start"] = distance(self._initial, now)
        return values

    def get_train_iterator(self, epoch: int, **kwargs: Any) -> Any:
        """Batches in the order of the data's seed; a resumed run gets those of the first epoch again.

        fairseq makes the batches once and only shuffles them in later epochs, but on resume would
        make others, with the epoch in the seed.
        """
        if not self._batches_made and not self.cfg.dataset.update_epoch_batch_itr:
            if not self.task.has_sharded_data(self.cfg.dataset.train_subset):
                epoch = 1  # the caller puts the iterator at its real place
        with self._seed_of_data():
            if self.config.disjoint and kwargs.get("load_dataset", True):
                kwargs["load_dataset"] = False
                self._load_own_part(epoch, combine=kwargs.get("combine", True), selector=kwargs.get("data_selector"))
            batches = super().get_train_iterator(epoch, **kwargs)
        if not self._batches_made:
            horizon = self._horizon(len(batches))
            self.model.set_horizon(horizon)
            self._criterion.set_horizon(horizon)
        self._batches_made = True
        return batches

    def _horizon(self, batches_an_epoch: int) -> Horizon:
        """The length of the run in updates, as far as the options say it."""
        options = self.cfg.optimization
        updates_an_epoch, limits = None, [options.max_update] if options.max_update else []
        if len(set(options.update_freq)) == 1:
            updates_an_epoch = -(-batches_an_epoch // options.update_freq[0])
            limits += [options.max_epoch * updates_an_epoch] if options.max_epoch else []
        return Horizon(updates=min(limits, default=None), updates_an_epoch=updates_an_epoch)

    def _load_own_part(self, epoch: int, *, combine: bool, selector: Any) -> None:
        """As fairseq loads the training data, and then only this model's part of it."""
        subset = self.cfg.dataset.train_subset
        self.task.load_dataset(subset, epoch=epoch, combine=combine, data_selector=selector, tpu=self.tpu)
        whole = self.task.dataset(subset)
        if not self._batches_made:  # later the models are no longer at the same place
            # Resumed models may be in different epochs, and so in different files of sharded data.
            samples = 0 if self.task.has_sharded_data(subset) else len(whole)
            check_partition(samples, self.config, self.groups, self._job_seed)
        self.task.datasets[subset] = part_of(whole, self.config, self.groups, self._job_seed)

    def get_valid_iterator(self, subset: str, **kwargs: Any) -> Any:
        """Batches of every sentence: fairseq drops what does not fill a multiple of 8 at the end."""
        self._subset = subset
        with self._seed_of_data(), set_for_a_while(self.cfg.dataset, "required_batch_size_multiple", 1):
            return super().get_valid_iterator(subset, **kwargs)

    def _seed_of_data(self) -> contextlib.AbstractContextManager[None]:
        return set_for_a_while(self.cfg.common, "seed", self._data_seed)

    def consolidate_optimizer(self) -> None:
        """fairseq calls it on all ranks before the lead saves: the place for what all must do."""
        super().consolidate_optimizer()
        own = {
            "patience": patience_state(),
            "precision": precision_state(self.optimizer),
            "plateau": plateau_state(self.lr_scheduler),
            "lr": float(self.get_lr()),
            "valid": self.valid_stats,
            "ema_updates": 0 if self._ema is None else self._ema.update_freq_counter,  # since it was last made
        }
        state = self.model.codistill_state_dict()
        # It has every peer's weights in host memory, which the ranks of a node that write nothing are not to keep.
        self._codistill_state = state | own if self.should_save_checkpoint_on_current_rank else None

    def state_dict(self) -> dict[str, Any]:
        """Plain values alone, so that any fairseq command loads the file without unpickling classes."""
        state = plain_values(super().state_dict())
        state["extra_state"][STATE_KEY] = plain_values(self._codistill_state)
        if state["cfg"]["task"].get("_name") == "codistill_translation":
            state["cfg"]["task"]["_name"] = "translation"
        return state

    def save_checkpoint(self, filename: str, extra_state: dict[str, Any]) -> str | None:
        """Write a whole file or none."""
        if not self.should_save_checkpoint_on_current_rank:
            return None
        state = self.state_dict()
        coupling = state["extra_state"].pop(STATE_KEY)
        state = utils.move_to_cpu(state)  # it makes 16-bit tensors float32, and peers' weights must stay as they are
        state["extra_state"].update(plain_values(extra_state))
        state["extra_state"][STATE_KEY] = tree_map_only(Tensor, lambda tensor: tensor.cpu(), coupling)
        path = Path(filename).absolute()
        self.files.save(state, path, cut_of(self._codistill_state))
        return str(path)

    @mistakes()
    def load_checkpoint(self, filename: str, reset_optimizer: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Load this model's file.

        Raises:
            Mistake: it was saved with other options, the models' files do not belong together, or it holds
                more than plain values.
        """
        extra_state = super().load_checkpoint(filename, reset_optimizer, *args, **kwargs)
        state = (extra_state or {}).get(STATE_KEY)
        if state is not None and not reset_optimizer:
            self.model.load_codistill_state_dict(state)
            load_patience_state(state["patience"])
            load_precision_state(self.optimizer, state["precision"])
            load_plateau_state(self.lr_scheduler, state["plateau"])
            self.valid_stats = state["valid"]
            if self._ema is not None:
                self._ema.update_freq_counter = state["ema_updates"]
        if self.cfg.checkpoint.restore_file != "checkpoint_last.pt":  # which the models have agreed on
            self.groups.check_equal(
                "the update that the models resume from (see --restore-file)",
                {"num_updates": self.get_num_updates(), "steps tried": self.model.updates},
            )
        return extra_state


def weights_on_cpu(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters in float32, where it takes no memory of a GPU."""
    return {name: weight.detach().to("cpu", torch.float32, copy=True) for name, weight in module.named_parameters()}


@mistakes()
def check_batches_an_update(cfg: Any, config: CodistillConfig, groups: ModelGroups) -> None:
    """Predictions are of the same mini-batch, so models that exchange them add up as many in an update.

    Raises:
        Mistake: a model has settings of its own that say otherwise.
    """
    if config.active and config.exchange == "predictions":
        found = {"update_freq": list(cfg.optimization.update_freq)}
        groups.check_equal("--update-freq of models that exchange predictions", found)


@mistakes()
def check_vocabularies(task: Any, groups: ModelGroups) -> None:
    """Predictions are only comparable over the same vocabulary; all ranks must call it.

    Raises:
        Mistake: a model's dictionary has other symbols or another order.
    """
    digest = vocabularies(task).get("target")
    if digest is not None:
        found = {"size": len(task.target_dictionary), "sha256": digest}
        groups.check_equal("the target dictionary of the models", found)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Patch an attribute of fairseq for a while."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _distributed_data_parallel(module: nn.Module, **options: Any) -> DistributedDataParallel:
    """fairseq always names a device, which DistributedDataParallel refuses for modules on the CPU."""
    if next(module.parameters()).device.type == "cpu":
        options |= {"device_ids": None, "output_device": None}
    return DistributedDataParallel(module, **options)
