"""Measure ways to train on hosts that are joined by slow links, on one machine (Linux, root, iproute2).

    OMP_NUM_THREADS=1 python -m benchmarks.netlab --hosts 2 --gbits 1 alone ddp predictions-topk checkpoints
    OMP_NUM_THREADS=1 python -m benchmarks.netlab --hosts 8 --gbits 1 --scale 100 --compute-ms 412 --parameters 229e6 \\
        --rows 3584 --vocabulary 32768 --steps 10 alone ddp predictions-topk/1 predictions-topk/4
    OMP_NUM_THREADS=1 python -m benchmarks.netlab --hosts 4 --gbits 1 all-reduce

Each host is a network namespace with a shaped link and a torchrun agent. With --compute-ms computation is a stand-in
that waits, and bytes are true; with --scale bandwidth and bytes are divided alike, and the printed bytes are the true
ones. ``all-reduce`` checks the links: seconds of an all-reduce over the formula for a ring, to be within 15 %.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.netlab.hosts import LabError
from benchmarks.netlab.job import Job
from benchmarks.netlab.run import run_job, table
from benchmarks.netlab.ways import NAMES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "ways", nargs="+", help=f"all-reduce, {', '.join(NAMES)}; NAME-ring, NAME/m: in a ring, m hosts a model"
    )
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=1, help="processes a host")
    parser.add_argument("--gbits", type=float, default=1.0, help="Gbit/s of each host's link")
    parser.add_argument("--scale", type=float, default=1.0, help="divides bandwidth and bytes")
    parser.add_argument("--compute-ms", type=float, default=0.0, help="of a step: a stand-in instead of a real model")
    parser.add_argument("--parameters", type=float, default=15.7e6, help="of the stand-in")
    parser.add_argument("--rows", type=int, default=64, help="tokens of a rank's mini-batch")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=512, help="of the real model")
    parser.add_argument("--layers", type=int, default=2, help="of the real model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a file for the result as JSON")
    args = parser.parse_args()
    if args.scale != 1 and not args.compute_ms:
        parser.error("--scale is for the stand-in: a real model's bytes are what they are (give --compute-ms)")
    try:
        result = run_job(job_of(args))
    except (LabError, ValueError) as error:
        sys.exit(str(error))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    for name, way in result["ways"].items():
        if "ratio" in way:
            print(f"{name}: {way['median_s']:.3f} s, by the formula {way['formula_s']:.3f} s: {way['ratio']:.2f}")
    if args.scale != 1:
        print(f"Bandwidth and bytes were divided by {args.scale:g}; the megabytes are the true ones.")
    if any("ratio" not in way for way in result["ways"].values()):
        print(table(result))


def job_of(args: argparse.Namespace) -> Job:
    return Job(
        ways=tuple(args.ways),
        hosts=args.hosts,
        ranks=args.ranks,
        bits_per_second=args.gbits * 1e9 / args.scale,
        scale=args.scale,
        compute_ms=args.compute_ms,
        parameters=round(args.parameters / args.scale),
        rows=max(1, round(args.rows / args.scale)),
        vocabulary=args.vocabulary,
        dim=args.dim,
        layers=args.layers,
        steps=args.steps,
        warm_up=args.warm_up,
    )


if __name__ == "__main__":
    main()
