"""Where this process runs: its device, its process group, its precision."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from codistill_ext.job.rendezvous import INIT_METHOD
from vision.presets import Normalise

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_CHOICES = (":4096:8", ":16:8")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A device and how tensors live on it."""

    device: torch.device
    autocast_dtype: torch.dtype | None
    memory_format: torch.memory_format
    normalise: Normalise

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Place:
        use_cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
        device = torch.device("cpu")
        if use_cuda:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        return cls(
            device=device,
            autocast_dtype=getattr(torch, args.amp_dtype) if args.amp else None,
            memory_format=torch.channels_last if args.channels_last else torch.contiguous_format,
            normalise=Normalise(args.dataset, device),
        )

    @property
    def pin_memory(self) -> bool:
        return self.device.type == "cuda"

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.autocast_dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales losses where gradients are computed in float16, else does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype is torch.float16)

    def put_module(self, module: nn.Module) -> nn.Module:
        return module.to(self.device).to(memory_format=self.memory_format)

    def put(self, pixels_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """A batch as the model takes it: pixels 0..255 become normalised floats."""
        pixels_BCHW = pixels_BCHW.to(self.device, non_blocking=True, memory_format=self.memory_format)
        return self.normalise(pixels_BCHW), labels_B.to(self.device, non_blocking=True)


def set_algorithms(device: torch.device, *, deterministic: bool) -> None:
    """Either those that give the same bits each time, or what cuDNN finds to be fastest for these shapes.

    Raises:
        ValueError: the environment asks cuBLAS for what is not deterministic.
    """
    if deterministic and device.type == "cuda":
        chosen = os.environ.setdefault(_CUBLAS, _CUBLAS_CHOICES[0])  # read when cuBLAS is first used
        if chosen not in _CUBLAS_CHOICES:
            raise ValueError(
                f"--deterministic needs {_CUBLAS} to be {' or '.join(_CUBLAS_CHOICES)}, but the environment has "
                f"{chosen}: unset it"
            )
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def start_process_group(device: torch.device, *, timeout_s: float) -> None:
    """Join the job that torchrun started; without torchrun there is nothing to join."""
    if "RANK" not in os.environ:
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, INIT_METHOD, timeout=datetime.timedelta(seconds=timeout_s))


def stop_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
