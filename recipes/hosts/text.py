"""Data of the examples: the English side of the shipped corpus, as bytes."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from translation.corpus import read_lines, shipped_prefix, side_path

VOCABULARY = 256


class Bytes(Dataset[dict[str, Tensor]]):
    """Stretches of ``length`` bytes of a split, one after the other."""

    def __init__(self, split: str, length: int, stretches: int) -> None:
        lines = read_lines(side_path(shipped_prefix(split), "en"))
        text = "\n".join(lines).encode()[: length * stretches]
        self.stretches = torch.frombuffer(bytearray(text), dtype=torch.uint8).view(-1, length).long()

    def __len__(self) -> int:
        return len(self.stretches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.stretches[index], "labels": self.stretches[index]}
