"""What is to be measured, as it goes from the lab to the processes on its hosts."""

import dataclasses
import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.netlab.workloads import LanguageModel, StandIn

_LENGTH = 64  # tokens of a sequence


@dataclass(frozen=True, kw_only=True)
class Job:
    """One measurement.

    Attributes:
        ways: names of ways to train (``ways.py``), measured one after the other.
        hosts, ranks: ranks are of each host.
        bits_per_second: of each host's link, as it is shaped: of the true one divided by ``scale``.
        scale: by which bandwidth and all bytes have been divided.
        compute_ms: of a step, for the stand-in; 0 is a real model.
        parameters: of the stand-in, divided by ``scale`` already.
        rows, vocabulary: shape of the logits of a rank's mini-batch; rows divided by ``scale`` for the stand-in.
        dim, layers: of the real model.
        steps, warm_up: that are timed, and those before.
        result: the file that rank 0 writes.
    """

    ways: tuple[str, ...]
    hosts: int
    ranks: int = 1
    bits_per_second: float = 1e9
    scale: float = 1.0
    compute_ms: float = 0.0
    parameters: int = 0
    rows: int = 64
    vocabulary: int = 8192
    dim: int = 512
    layers: int = 2
    steps: int = 20
    warm_up: int = 3
    result: str = ""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        values = json.loads(text)
        return cls(**values | {"ways": tuple(values["ways"])})

    def build(self) -> nn.Module:
        if self.compute_ms:
            return StandIn(self.parameters, self.compute_ms / 1e3, self.rows, self.vocabulary)
        return LanguageModel(self.vocabulary, self.dim, self.layers)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and the labels of a mini-batch, both of shape (sequences, length); of a stand-in of shape (rows,)."""
        length = self.rows if self.compute_ms else min(_LENGTH, self.rows)
        shape = (self.rows,) if self.compute_ms else (self.rows // length, length)
        tokens = torch.randint(0, self.vocabulary, shape, generator=generator)
        return tokens, torch.randint(0, self.vocabulary, shape, generator=generator)
