"""Train small causal language models with FSDP2, alone or codistilled.

``torchrun --standalone --nproc-per-node 4 -m recipes.language_model.train --output-dir DIR --codistill-models 2
--codistill-encoding topk --codistill-topk 64``. The same command again continues a run that was stopped.
"""

import argparse
import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from codistill_ext import CodistillConfig, ModelGroups
from codistill_ext.groups import model_directory
from codistill_ext.job.failures import Parser, command, mistakes
from codistill_ext.job.rendezvous import INIT_METHOD
from codistill_ext.job.resume import take_possession
from recipes.language_model.text import prepare, read_blocks
from recipes.language_model.training import Training


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="recipes.language_model.train", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--output-dir", type=Path, required=True, help="of the run")
    add("--text-dir", type=Path, default=Path("runs/language_model/text"), help="where the ids of the text are kept")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--seed", type=int, default=0)
    size = parser.add_argument_group("network and text")
    for name, default in (("vocabulary", 2000), ("context", 64), ("layers", 4), ("width", 128), ("heads", 4)):
        size.add_argument(f"--{name}", type=int, default=default)
    size.add_argument("--dropout", type=float, default=0.1)
    size.add_argument("--lines", type=int, help="of the text, the first ones (default: all)")
    course = parser.add_argument_group("course")
    course.add_argument("--updates", type=int, default=200)
    course.add_argument("--batch-size", type=int, default=8, help="blocks of a context, a rank")
    course.add_argument("--lr", type=float, default=2e-3)
    course.add_argument("--warmup", type=int, default=30, help="updates")
    course.add_argument("--weight-decay", type=float, default=0.1)
    course.add_argument("--clip", type=float, default=1.0, help="the norm of a model's gradients")
    for name, default in (("log", 20), ("eval", 100), ("save", 100)):
        course.add_argument(f"--{name}-every", type=int, default=default, metavar="UPDATES")
    CodistillConfig.add_arguments(parser)
    return parser


@command("recipes.language_model.train")
def main(argv: Sequence[str] | None = None) -> None:
    run(argv)
    if dist.is_initialized():
        dist.destroy_process_group()


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """From the command line to the summary; in a job that is there already if there is one."""
    args = build_parser().parse_args(argv)
    with mistakes():
        config = CodistillConfig.from_args(args)
        if config.exchange == "files":
            raise ValueError("this recipe is one job: choose predictions or checkpoints as --codistill-exchange")
        device = _start(args.device, config.timeout)
        groups = ModelGroups.create(config, device.type)
        take_possession(model_directory(args.output_dir, groups.model_index), groups)
        groups.ask_leads(lambda: prepare(args.text_dir, args.vocabulary, args.lines) if groups.rank == 0 else None)
        blocks = read_blocks(prepare(args.text_dir, args.vocabulary, args.lines), args.context)
        training = Training(args, config, groups, blocks, device)
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    training.log.write_config(plain)
    training.run()
    summary = training.finish()
    if groups.rank == 0:
        figures = [f"{model['test_perplexity']:.1f}" for model in summary["models"]]
        together = summary["ensemble_test_perplexity"]
        print(f"perplexity on the test text: {', '.join(figures)}; ensemble {together:.1f}", flush=True)
    return summary


def _start(choice: str, timeout_s: float) -> torch.device:
    """The process group, and this rank's device."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if choice == "auto" else choice
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized() and "WORLD_SIZE" in os.environ:
        backend = "nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=INIT_METHOD, timeout=datetime.timedelta(seconds=timeout_s))
    return device


if __name__ == "__main__":
    main()
