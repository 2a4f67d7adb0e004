"""What teachers cost a training step (exchange of checkpoints), as ratios from one run.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/teacher_overhead.py

The same model takes steps by turns alone and with each way to run its teacher, so that a machine whose
speed drifts treats all alike. Printed for each way: the ratio of the median steps (goal: at most 1.35; a forward pass
is about a third of forward and backward), and the worst step, in which weights are sent and a teacher
is replaced, as a multiple of the median alone. Takes about 4 minutes with the defaults on 2 cores.
"""

import argparse
import dataclasses
import json
import statistics
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups, model_seed
from vision.models import build_model

WAYS = {
    "teacher as the student, float32": {"teacher_precision": "float32"},
    "teacher in bfloat16": {"teacher_precision": "bfloat16"},
    "teacher in bfloat16, compiled": {"teacher_precision": "bfloat16", "teacher_compile": True},
    "teacher in bfloat16, every 2nd update": {"teacher_precision": "bfloat16", "distill_every": 2},
}


def step(
    model: CodistillParallel, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, dtype: torch.dtype | None
) -> float:
    """Seconds of one training step."""
    start = time.perf_counter()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        logits = model(x)
    logits = logits.float()
    loss = F.cross_entropy(logits, y) + model.codistill(x, logits).loss
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    model.after_update()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=60, help="steps of each way")
    parser.add_argument("--student", choices=("float32", "bfloat16"), default="bfloat16", help="precision")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    # One exchange per ten steps of a way: often enough to see what it costs the step in which it happens.
    base = CodistillConfig(models=dist.get_world_size(), exchange="checkpoints", period=10, lag=5)
    groups = ModelGroups.create(base)
    torch.manual_seed(model_seed(0, groups.model_index))
    module = build_model(args.model, num_classes=10, image_sizes=(32, 32)).to(memory_format=torch.channels_last)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    models = {"alone": CodistillParallel(module, groups, CodistillConfig(models=base.models, alpha=0.0))}
    for name, options in WAYS.items():
        if not (args.no_compile and options.get("teacher_compile")):
            models[name] = CodistillParallel(module, groups, dataclasses.replace(base, **options))
    dtype = torch.bfloat16 if args.student == "bfloat16" else None
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(-20, args.rounds):  # the first turns warm up, and bring the first teachers
        x = torch.randn(args.batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        y = torch.randint(0, 10, (args.batch_size,))
        for name, model in models.items():
            taken = step(model, optimizer, x, y, dtype)
            if turn >= 0:
                seconds[name].append(taken)
    alone = statistics.median(seconds["alone"])
    result = {
        name: {
            "ratio_of_medians": round(statistics.median(times) / alone, 3),
            "ratio_of_means": round(statistics.mean(times) / statistics.mean(seconds["alone"]), 3),
            "worst_step": round(max(times) / alone, 2),
        }
        for name, times in seconds.items()
    }
    everyone = groups.gather(result)
    if groups.rank == 0:
        print(json.dumps({"args": vars(args), "ms_alone": round(1e3 * alone, 2), "models": everyone}, indent=2))
    for model in models.values():
        model.leave()
        model.close()


if __name__ == "__main__":
    main()
