"""What runs on each host: trains in each way, and writes steps and bytes as JSON.

Started by ``torchrun`` on the hosts of a lab, with a job in its argument (``job.py``).
"""

import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.netlab import others
from benchmarks.netlab.hosts import interface_bytes
from benchmarks.netlab.job import Job
from benchmarks.netlab.ways import Codistilled, Spec, Way, build_way

_MEGABYTES_A_BUCKET = 25  # DistributedDataParallel's own default
_MEGABYTES = 64  # of the all-reduce that the link is checked by


def main() -> None:
    job = Job.from_json(sys.argv[1])
    start = time.perf_counter()
    dist.init_process_group("gloo")
    meet()
    result: dict[str, Any] = {"start_s": round(time.perf_counter() - start, 3), "ways": {}}
    for name in job.ways:
        if name == "all-reduce":
            result["ways"][name] = check_link(job)
        elif name in others.WAYS:
            result["ways"][name] = measure_or_say_why_not(job, name)
        else:
            result["ways"][name] = measure(job, name)
    if dist.get_rank() == 0:
        Path(job.result).write_text(json.dumps(result))
    meet()
    dist.destroy_process_group()


def meet() -> None:
    dist.barrier()


def check_link(job: Job) -> dict[str, Any]:
    """Seconds of one all-reduce, and by the formula for a ring."""
    payload = torch.zeros(max(1, int(_MEGABYTES * 1e6 * min(1.0, job.bits_per_second / 1e9)) // 4))
    seconds = []
    dist.all_reduce(payload)  # connects
    for _ in range(job.steps):
        meet()
        start = time.perf_counter()
        dist.all_reduce(payload)
        seconds.append(time.perf_counter() - start)
    expected = 2 * (job.hosts - 1) / job.hosts * payload.nbytes * 8 / job.bits_per_second
    median = statistics.median(seconds)
    return {
        "bytes": payload.nbytes,
        "seconds": [round(second, 4) for second in seconds],
        "median_s": round(median, 4),
        "formula_s": round(expected, 4),
        "ratio": round(median / expected, 3),
    }


def measure_or_say_why_not(job: Job, name: str) -> dict[str, Any]:
    """The same of a library that may not work here: the error, which all hosts must have alike, in place of figures."""
    try:
        return measure(job, name)
    except Exception as error:  # whatever it is, it is what the table says
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def build(name: str, spec: Spec, ranks_a_host: int) -> Way:
    return others.WAYS[name](spec) if name in others.WAYS else build_way(name, spec, ranks_a_host)


def measure(job: Job, name: str) -> dict[str, Any]:
    """Steps of one way, of all ranks."""
    start = time.perf_counter()
    way = build(name, Spec(job.build, _MEGABYTES_A_BUCKET / job.scale), job.ranks)
    if isinstance(way, Codistilled):
        way.skip_to_exchange()
    ready_s = time.perf_counter() - start
    generator = torch.Generator().manual_seed(0)
    for _ in range(job.warm_up):
        way.step(*job.draw(generator))
    meet()
    before, waited_before = interface_bytes(), getattr(way, "waited_s", 0.0)
    seconds = []
    for _ in range(job.steps):
        x, y = job.draw(generator)
        start = time.perf_counter()
        way.step(x, y)
        seconds.append(time.perf_counter() - start)
    meet()
    waited = getattr(way, "waited_s", 0.0) - waited_before
    moved = [after - then for after, then in zip(interface_bytes(), before, strict=True)]
    way.close()
    meet()
    del way
    gc.collect()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (seconds, moved, ready_s, waited))
    return summary(job, everyone)


def summary(job: Job, everyone: list[tuple[list[float], list[int], float, float]]) -> dict[str, Any]:
    """Milliseconds and megabytes a step, in the true sizes of a scaled job; the worst host's bytes."""
    steps_ms = [[round(1e3 * second, 2) for second in seconds] for seconds, *_ in everyone]
    sent, received = (max(moved[side] for _, moved, *_ in everyone) for side in (0, 1))
    return {
        "median_ms": round(statistics.mean(statistics.median(steps) for steps in steps_ms), 2),
        "mean_ms": round(statistics.mean(statistics.mean(steps) for steps in steps_ms), 2),
        "worst_ms": round(max(map(max, steps_ms)), 2),
        "sent_mb": round(sent / job.steps * job.scale / 1e6, 4),
        "received_mb": round(received / job.steps * job.scale / 1e6, 4),
        "waited_ms": round(1e3 * max(waited for *_, waited in everyone) / job.steps, 2),
        "ready_s": round(max(ready_s for *_, ready_s, _ in everyone), 3),
        "steps_ms": steps_ms,
    }


if __name__ == "__main__":
    main()
