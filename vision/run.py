"""One run from its data to its summary."""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codistill_ext.config import CodistillConfig
from codistill_ext.groups import ModelGroups, model_directory
from codistill_ext.job.resume import take_possession
from codistill_ext.job.runlog import RunLog
from vision import checkpointing
from vision.datasets import Data, load_data
from vision.device import Place, set_algorithms, start_process_group
from vision.evaluate import evaluate_together, validation_loader
from vision.models import build_model
from vision.options import Options, plain_options
from vision.preemption import exit_code
from vision.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What training and testing both need.

    Attributes:
        args: of this rank's model; ``seed``: of the job.
    """

    args: argparse.Namespace
    seed: int
    config: CodistillConfig
    place: Place
    data: Data
    groups: ModelGroups
    saved: dict[str, Any] | None


def prepare(options: Options) -> Callable[[], int]:
    """Get everything ready and return what then runs, and returns the program's status. All ranks must call it.

    Raises:
        ValueError: the user's input is wrong: what was expected, what came, what to change.
    """
    config = options.config
    place = Place.from_args(options.args)
    set_algorithms(place.device, deterministic=options.args.deterministic)
    data = load_data(options.args)  # it may download: before anybody waits in a collective
    start_process_group(place.device, timeout_s=config.timeout)
    groups = ModelGroups.create(config, place.device.type)
    args = options.models[groups.model_index]
    if not args.test_only:
        take_possession(model_directory(args.output_dir, groups.model_index), groups)
    saved = _load_saved(args, groups)
    if options.preset and groups.rank == 0:
        print(options.preset, flush=True)
    setting = Setting(
        args=args, seed=options.args.seed, config=config, place=place, data=data, groups=groups, saved=saved
    )
    return _prepare_test(setting) if args.test_only else _prepare_training(setting)


def _load_saved(args: argparse.Namespace, groups: ModelGroups) -> dict[str, Any] | None:
    directory = args.output_dir if args.resume == "auto" else Path(args.resume)
    if directory != args.output_dir or not args.resume:
        _refuse_to_overwrite(args, groups)
    if not args.resume:
        return None
    continued = directory == args.output_dir and not args.test_only
    saved = checkpointing.load(directory, groups, continued=continued)
    if saved is None and (args.resume != "auto" or args.test_only):
        missing = checkpointing.checkpoint_path(directory, groups.model_index)
        raise ValueError(f"there is nothing to resume: {missing} does not exist; --resume takes a run's directory")
    return saved


def _refuse_to_overwrite(args: argparse.Namespace, groups: ModelGroups) -> None:
    path = checkpointing.checkpoint_path(args.output_dir, groups.model_index)
    if path.exists() and not args.test_only:
        raise ValueError(
            f"--output-dir {args.output_dir} already holds a run: continue it with --resume auto, "
            "choose another directory, or remove it"
        )


def _prepare_test(setting: Setting) -> Callable[[], int]:
    args, data, groups, place = setting.args, setting.data, setting.groups, setting.place
    assert setting.saved is not None
    now = checkpointing.identity(args, data)
    checkpointing.check_identity(setting.saved["identity"], now, test_only=True)
    module = build_model(
        args.model, num_classes=data.num_classes, image_sizes=data.image_sizes, stride_in=args.stride_in
    )
    module.load_state_dict(setting.saved["model"])
    module = place.put_module(module)
    loader = validation_loader(data.valid, groups, place, batch_size=args.batch_size, workers=args.workers)

    def test() -> int:
        summary = evaluate_together(module, loader, groups, place)
        if groups.rank == 0:
            print_summary(summary)
        return 0

    return test


def _prepare_training(setting: Setting) -> Callable[[], int]:
    log = RunLog(setting.args.output_dir, setting.groups)
    trainer = Trainer(
        args=setting.args,
        seed=setting.seed,
        config=setting.config,
        groups=setting.groups,
        place=setting.place,
        data=setting.data,
        log=log,
    )
    if setting.saved is not None:
        trainer.restore(setting.saved)
        if setting.args.resume != "auto":
            checkpointing.bring_best(Path(setting.args.resume), setting.args.output_dir, setting.groups)

    def train() -> int:
        log.write_config(plain_options(setting.args) | {"work": trainer.budget.to_dict()})
        if setting.groups.rank == 0:
            print(f"{trainer.budget}\n{trainer.hyper.rates}", flush=True)
        trainer.train()
        if trainer.leaving:
            log.close()
            return exit_code(trainer.leaving)
        trainer.model.close()
        summary = _summarise(setting, trainer)
        log.write_summary(summary)
        log.close()
        if setting.groups.rank == 0:
            print_summary(summary)
        return 0

    return train


def _summarise(setting: Setting, trainer: Trainer) -> dict[str, Any]:
    """Every model's figures, together and in history, what crossed, and what it took."""
    groups = setting.groups
    summary = evaluate_together(trainer.model.plain, trainer.valid_loader, groups, setting.place)
    exchange = trainer.model.exchange
    mine = {
        "model": groups.model_index,
        "history": trainer.report.history,
        "traffic": {} if exchange is None else exchange.traffic.to_dict(),
    }
    everyone = groups.gather(mine)
    here = sorted({rank["model"] for rank in everyone})  # separate jobs have one model each
    for rank in reversed(everyone):  # the first rank of a model has the last word
        summary["models"][here.index(rank["model"])] |= {"model": rank["model"]} | _of_history(rank["history"])
    summary["bytes"] = dict(sum((Counter(rank["traffic"]) for rank in everyone), Counter()))
    summary["updates"] = trainer.progress.update
    summary["work"] = trainer.budget.to_dict(trainer.progress.update)
    summary["seconds"] = round(trainer.seconds, 1)
    summary["args"] = plain_options(setting.args)
    return summary


def _of_history(history: list[dict[str, float]]) -> dict[str, Any]:
    """Goyal et al. quote the median of the last five epochs (here validations), not moved by the last one's luck."""
    if not history:
        return {"history": []}
    tops = [name for name in ("top1", "ema_top1") if name in history[-1]]
    figures = {f"best_{name}": max(record[name] for record in history) for name in tops}
    figures |= {name: value for name, value in history[-1].items() if name.startswith("ema_")}
    return figures | {"median_top1": statistics.median(record["top1"] for record in history[-5:]), "history": history}


def print_summary(summary: dict[str, Any]) -> None:
    for place, model in enumerate(summary["models"]):
        index = model.get("model", place)
        reported = "  (the one the paper would report)" if index == 0 and len(summary["models"]) > 1 else ""
        average = f"  EMA top-1 {model['ema_top1']:.2f} %" if "ema_top1" in model else ""
        print(f"model {index}   top-1 {model['top1']:.2f} %  loss {model['valid_loss']:.3f}{average}{reported}")
    if len(summary["models"]) > 1:
        print(f"mean      top-1 {summary['mean_top1']:.2f} %")
        print(f"ensemble  top-1 {summary['ensemble_top1']:.2f} %")
        print(f"agreement between the models {100 * summary['agreement']:.1f} %")
    if "bytes" in summary:
        sent = sum(count for kind, count in summary["bytes"].items() if kind.startswith("sent/"))
        took = f"{summary['updates']} updates, {summary['seconds']} s"
        print(f"sent between models: {sent / 1e6:.2f} MB in {took}")
