"""fairseq's commands as a user types them, in processes of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
CRITERION = ["--criterion", "codistill_label_smoothed_ce"]
STOCK = ["--criterion", "label_smoothed_cross_entropy"]
DEADLINE_S = 200

SMALL = [
    *("--cpu", "--arch", "transformer", "--share-all-embeddings", "--num-workers", "0", "--no-progress-bar"),
    *("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "32", "--encoder-layers", "1"),
    *("--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "32", "--decoder-layers", "1"),
    *("--encoder-attention-heads", "2", "--decoder-attention-heads", "2", "--dropout", "0.1"),
    *("--optimizer", "adam", "--lr", "1e-3", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "10"),
    *("--label-smoothing", "0.1", "--max-tokens", "400", "--log-interval", "2", "--seed", "3"),
]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def run(command: list[str], *, fails: bool = False, cwd: Path = ROOT) -> str:
    """Run to the end; its output. The process group is ended if it takes too long."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        raise AssertionError(f"did not end within {DEADLINE_S} s:\n{output[-5000:]}") from None
    assert (process.returncode != 0) == fails, output[-6000:]
    return output


def script(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found is not None, f"{name} is not installed"
    return found


def train(data: Path, save_dir: Path, *options: str, processes: int = 1, fails: bool = False) -> str:
    """``[torchrun] fairseq-train DATA --user-dir codistill_ext ...``; the output."""
    launcher = [script("torchrun"), "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [*launcher, script("fairseq-train"), str(data), "--user-dir", "codistill_ext", *SMALL]
    return run([*command, "--save-dir", str(save_dir), *options], fails=fails)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The model in a checkpoint, loaded without unpickling classes."""
    with torch.serialization.safe_globals([__import__("argparse").Namespace]):
        return torch.load(path, weights_only=True)["model"]


def same_bits(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
