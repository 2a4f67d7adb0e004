"""vision.train beside torchvision's reference training script: same model, data, precision, workers, cores.

    python -m benchmarks.vision_throughput --reference VISION/references/classification

VISION is a checkout of torchvision's repository; its script is imported as it is and is no part of this
repository. Both train on one tree of generated pictures, in processes of their own that take turns, so that a
machine whose speed drifts treats both alike. Two cases: a CIFAR net on 32x32 PNGs, and ResNet-50 on crops
of 224 of JPEGs like ImageNet's (500x375, about 110 kB). Of each process the first epoch warms up; printed
are, as JSON, images a second, and the ratio of ours to the reference's round by round: above 1 ours is faster.
Goal: at least 1.

Beside it the input: pictures that one core reads, decodes, crops and normalises a second, from the tree, from
a pack, and from a pack of smaller pictures. On 2 idle cores the defaults take about 10 minutes. Without
--reference ours runs alone.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from PIL import Image

from vision import presets
from vision.datasets import SeededFolder, open_split
from vision.pack import pack

CLASSES = 10
_INPUT_TURNS = 5
Seconds = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and the pictures it trains on; ``size`` is that of the crops."""

    model: str
    size: int
    resize: int
    width: int
    height: int
    format: str
    batch: int
    images: int


CASES = {
    "cifar": Case(model="resnet20", size=32, resize=32, width=32, height=32, format="png", batch=64, images=2560),
    "imagenet": Case(
        model="resnet50", size=224, resize=256, width=500, height=375, format="jpeg", batch=16, images=160
    ),
}


def draw_picture(case: Case, generator: torch.Generator) -> bytes:
    """Noise of all scales, which compresses about like a photograph."""
    total = torch.zeros(3, case.height, case.width)
    for scale in (1, 2, 4, 8, 16, 32, 64, 128):
        coarse = torch.randn(1, 3, 2 + case.height // scale, 2 + case.width // scale, generator=generator)
        smooth = F.interpolate(coarse, scale_factor=scale, mode="bilinear")[0]
        total += smooth[:, : case.height, : case.width] * scale**0.3
    pixels = (total - total.min()) / (total.max() - total.min()) * 255
    buffer = io.BytesIO()
    Image.fromarray(pixels.byte().permute(1, 2, 0).contiguous().numpy()).save(buffer, case.format, quality=96)
    return buffer.getvalue()


def write_tree(root: Path, case: Case, images: int) -> None:
    """Training pictures, and a tenth of them for validation."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", images), ("val", max(CLASSES, images // 10))):
        for index in range(count):
            directory = root / split / f"class{index % CLASSES}"
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{index}.{case.format}").write_bytes(draw_picture(case, generator))


@contextlib.contextmanager
def timed(seconds: Seconds, name: str, owner: Any, attribute: str) -> Iterator[None]:
    """Note how long each call of a function takes, as ``name``."""
    original = getattr(owner, attribute)

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seconds[name].append(time.perf_counter() - start)

    with mock.patch.object(owner, attribute, call):
        yield


def train_ours(case: Case, data: Path, common: list[str]) -> Seconds:
    """Seconds of each epoch of vision.train, of which validation and saving are taken off."""
    from vision.report import Report
    from vision.train import main
    from vision.trainer import Trainer

    seconds: Seconds = defaultdict(list)
    with tempfile.TemporaryDirectory() as output, contextlib.ExitStack() as stack:
        for name, owner, attribute in (
            ("epoch", Trainer, "_train_epoch"),
            ("validate", Report, "validate"),
            ("save", Trainer, "save"),
        ):
            stack.enter_context(timed(seconds, name, owner, attribute))
        main([*common, "--data-path", str(data), "--output-dir", output])
    parts = zip(seconds["epoch"], seconds["validate"], seconds["save"], strict=True)
    return {"train": [epoch - validate - save for epoch, validate, save in parts], "validate": seconds["validate"]}


def train_reference(case: Case, data: Path, common: list[str], reference: Path) -> Seconds:
    """Seconds of each epoch of the reference script, with our CIFAR nets made known to it."""
    from torchvision.models._api import register_model

    from vision.cifar_resnet import CIFAR_MODELS

    if case.model in CIFAR_MODELS:

        @register_model(name=case.model)
        def build(weights: None = None, num_classes: int = CLASSES) -> torch.nn.Module:
            return CIFAR_MODELS[case.model](num_classes)

    sys.path.insert(0, str(reference))
    import train as script

    seconds: Seconds = defaultdict(list)
    with tempfile.TemporaryDirectory() as output, contextlib.ExitStack() as stack:
        stack.enter_context(timed(seconds, "train", script, "train_one_epoch"))
        stack.enter_context(timed(seconds, "validate", script, "evaluate"))
        options = [*common, "--data-path", str(data), "--output-dir", output, "--opt", "sgd_nesterov"]
        script.main(script.get_args_parser().parse_args([*options, "--norm-weight-decay", "0"]))
    return dict(seconds)


def common_options(case: Case, args: argparse.Namespace) -> list[str]:
    """What both scripts call alike."""
    options = ["--model", case.model, "--device", args.device, "-b", str(case.batch), "-j", str(args.workers)]
    options += ["--epochs", str(args.epochs), "--lr", "0.01", "--print-freq", "50"]
    options += ["--train-crop-size", str(case.size), "--val-crop-size", str(case.size)]
    return [*options, "--val-resize-size", str(case.resize)]


def run_in_process(role: str, name: str, data: Path, args: argparse.Namespace) -> Seconds:
    """One training of one of the two, by this very program."""
    command = [sys.executable, "-m", "benchmarks.vision_throughput", "--role", role, "--cases", name]
    command += ["--data", str(data), "--workers", str(args.workers), "--epochs", str(args.epochs)]
    command += ["--device", args.device] + (["--reference", str(args.reference)] if args.reference else [])
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    output = subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout
    seconds: Seconds = json.loads(output.splitlines()[-1])
    return seconds


def compare(name: str, data: Path, images: int, args: argparse.Namespace) -> dict[str, Any]:
    """Both by turns: images a second, and ratios."""
    roles = ["ours"] + (["reference"] if args.reference else [])
    rates: dict[str, list[float]] = {role: [] for role in roles}
    for turn in range(args.rounds):
        for role in roles if turn % 2 == 0 else roles[::-1]:
            seconds = run_in_process(role, name, data, args)
            rates[role].append(images / statistics.median(seconds["train"][1:]))
            print(f"{name}, round {turn}, {role}: {rates[role][-1]:.2f} images/s", file=sys.stderr, flush=True)
    result: dict[str, Any] = {f"{role}_images_a_second": [round(rate, 2) for rate in rates[role]] for role in roles}
    if args.reference:
        ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["reference"], strict=True)]
        result["ours_to_reference"] = [round(ratio, 3) for ratio in ratios]
        result["median_ratio"] = round(statistics.median(ratios), 3)
    return result


def input_rates(case: Case, data: Path, scratch: Path) -> dict[str, float]:
    """Training pictures a second of one core's own time, from files and from packs by turns; medians."""
    torch.set_num_threads(1)
    sources = {"tree": data}
    for shorter in [None, case.resize] if case.resize < case.height else [None]:
        label = "pack" if shorter is None else f"pack, shorter side {shorter}"
        sources[label] = scratch / f"pack{shorter}"
        pack(data, sources[label], resize_shorter=shorter, shard_mb=64, workers=1)
    transform = presets.imagenet_train(case.size)
    folders = {label: SeededFolder(open_split(path, "train", transform)) for label, path in sources.items()}
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for turn in range(_INPUT_TURNS + 1):
        for label, folder in folders.items():
            count = min(len(folder), 200)
            start = time.process_time()
            for index in range(count):
                folder[(index, turn)]
            rates[label].append(count / (time.process_time() - start))
    # The first turn opens the files.
    return {label: round(statistics.median(found[1:]), 1) for label, found in rates.items()}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in args.cases:
        case = CASES[name]
        images = args.images or case.images
        with tempfile.TemporaryDirectory() as directory:
            data = Path(directory) / "tree"
            write_tree(data, case, images)
            size = sum(path.stat().st_size for path in data.rglob("*.*")) / sum(1 for _ in data.rglob("*.*"))
            results[name] = vars(case) | {"images": images, "bytes_a_picture": round(size)}
            results[name] |= {"input_images_a_second_and_core": input_rates(case, data, Path(directory))}
            results[name] |= compare(name, data, images, args)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="directory of torchvision's references/classification")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--epochs", type=int, default=3, help="of each process, 2 or more; the first warms up")
    parser.add_argument("--images", type=int, help="pictures an epoch (default: of the case)")
    parser.add_argument("--workers", type=int, default=1, help="loading processes (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of the training process (default: 1)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--role", choices=("ours", "reference"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.role is not None:
        case = CASES[args.cases[0]]
        roles: dict[str, Callable[[], Seconds]] = {
            "ours": lambda: train_ours(case, args.data, common_options(case, args)),
            "reference": lambda: train_reference(case, args.data, common_options(case, args), args.reference),
        }
        print(json.dumps(roles[args.role]()))
        return
    print(json.dumps({"workers": args.workers, "threads": args.threads} | measure(args), indent=2))


if __name__ == "__main__":
    main()
