"""What a host computes: a real language model, or a stand-in that waits as long and has the true number of bytes."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_BLOCKS = 16  # of a stand-in's parameters; gradients become ready one after the other, as in a real backward pass
_FORWARD_SHARE = 1 / 3  # of the computation of a step


class StandIn(nn.Module):
    """Waits in forward and backward pass as long as a model would compute, and returns logits that nobody has computed.

    Everything that crosses the network is real: as many gradients, weights or predictions as given.

    Args:
        parameters: how many, float32.
        compute_s: of a step's forward and backward pass together.
        rows, outputs: shape of the logits.
    """

    def __init__(self, parameters: int, compute_s: float, rows: int, outputs: int) -> None:
        super().__init__()
        sizes = [len(part) for part in torch.empty(parameters, device="meta").tensor_split(_BLOCKS)]
        self.blocks = nn.ParameterList([nn.Parameter(torch.rand(size)) for size in sizes])
        self.logits = torch.randn(rows, outputs)  # no buffer, which DistributedDataParallel would send in each step
        self.compute_s = compute_s

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.zeros(1, requires_grad=self.training)
        forward_s = self.compute_s * _FORWARD_SHARE / len(self.blocks)
        for weight in self.blocks:
            hidden = _Block.apply(hidden, weight, forward_s, self.compute_s / len(self.blocks) - forward_s)
        return self.logits + hidden


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, forward_s: float, backward_s: float) -> Tensor:
        ctx.shape, ctx.backward_s = weight.shape, backward_s
        time.sleep(forward_s)
        return hidden.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        time.sleep(ctx.backward_s)
        return grad, torch.zeros(ctx.shape), None, None


class LanguageModel(nn.Module):
    """A small Transformer over tokens of shape (sequences, length); logits of shape (sequences, length, vocabulary)."""

    def __init__(self, vocabulary: int, dim: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        layer = nn.TransformerEncoderLayer(dim, dim // 64, 4 * dim, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.output = nn.Linear(dim, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.output(self.layers(self.embedding(tokens)))
        return logits
