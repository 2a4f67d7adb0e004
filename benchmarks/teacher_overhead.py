"""What teachers cost a training step (exchange of checkpoints), as ratios from one run.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m benchmarks.teacher_overhead

The same model takes steps by turns alone and with each way to run its teacher, so that a machine whose
speed drifts treats all alike. Printed for each way: the ratio of the median steps (goal for a teacher in the student's
precision: at most 1.35; a forward pass is about a third of forward and backward), and the worst step, in
which weights are sent and a teacher is replaced, as a multiple of the median alone. Takes about 5 minutes with the
defaults on 2 cores, of which the compiler needs one.
"""

import argparse
import dataclasses
import json
import statistics
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.training import build, build_optimizer, draw, timed_step
from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups

WAYS: dict[str, dict[str, Any]] = {
    "teacher in the student's precision": {},
    "the same, compiled": {"teacher_compile": True},
    "the same, every 2nd update": {"distill_every": 2},
    "teacher in float32": {"teacher_precision": "float32"},
    "teacher in bfloat16": {"teacher_precision": "bfloat16"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=60, help="steps of each way")
    parser.add_argument("--period", type=int, default=10, help="updates of a way from one exchange to the next")
    parser.add_argument("--student", choices=("float32", "bfloat16"), default="bfloat16", help="precision")
    parser.add_argument("--contiguous", action="store_true", help="student and teachers without channels_last")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    # Far more often than a run would: often enough to see what an exchange costs the step in which it happens.
    base = CodistillConfig(
        models=dist.get_world_size(), exchange="checkpoints", period=args.period, lag=args.period // 2
    )
    groups = ModelGroups.create(base)
    memory_format = torch.contiguous_format if args.contiguous else torch.channels_last
    module = build(args.model, groups.model_index, memory_format)
    optimizer = build_optimizer(module)
    models = {"alone": CodistillParallel(module, groups, CodistillConfig(models=base.models, alpha=0.0))}
    for name, options in WAYS.items():
        if not (args.no_compile and options.get("teacher_compile")):
            models[name] = CodistillParallel(module, groups, dataclasses.replace(base, **options))
    autocast = torch.bfloat16 if args.student == "bfloat16" else None
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(-2 * args.period, args.rounds):  # the first turns warm up, and bring the first teachers
        x, y = draw(args.batch_size, memory_format=memory_format)
        for name, model in models.items():
            taken = timed_step(model, optimizer, x, y, autocast=autocast)
            if turn >= 0:
                seconds[name].append(taken)
    alone = statistics.median(seconds["alone"])
    mine = {
        name: {
            "ratio_of_medians": round(statistics.median(times) / alone, 3),
            "ratio_of_means": round(statistics.mean(times) / statistics.mean(seconds["alone"]), 3),
            "worst_step": round(max(times) / alone, 2),
        }
        for name, times in seconds.items()
    }
    everyone = groups.gather(mine)
    if groups.rank == 0:
        print(json.dumps({"args": vars(args), "ms_alone": round(1e3 * alone, 2), "models": everyone}, indent=2))
    for model in models.values():
        model.close()


if __name__ == "__main__":
    main()
