"""A small decoder-only Transformer, and how FSDP2 shards it over the ranks of its model.

Legend for shapes: B sequences, T positions, D width, H heads, C pieces of the vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from codistill_ext import ModelGroups


@dataclass(frozen=True, kw_only=True)
class Sizes:
    vocabulary: int
    context: int
    layers: int
    width: int
    heads: int
    dropout: float


class Block(nn.Module):
    """Attention to what came before and a feed-forward network, each behind a norm and beside a residual."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.dropout = sizes.heads, sizes.dropout
        self.attention_norm, self.hidden_norm = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width, bias=False)
        self.out = nn.Linear(sizes.width, sizes.width, bias=False)
        self.up = nn.Linear(sizes.width, 4 * sizes.width, bias=False)
        self.down = nn.Linear(4 * sizes.width, sizes.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self._drop(self.out(self._attend(self.attention_norm(x_BTD))))
        return x_BTD + self._drop(self.down(F.gelu(self.up(self.hidden_norm(x_BTD)))))

    def _attend(self, x_BTD: Tensor) -> Tensor:
        q_BHTd, k_BHTd, v_BHTd = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x_BTD).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        attended_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, is_causal=True, dropout_p=dropout)
        return attended_BHTd.transpose(1, 2).flatten(2)

    def _drop(self, x_BTD: Tensor) -> Tensor:
        return F.dropout(x_BTD, self.dropout, self.training)


class GPT(nn.Module):
    """Logits of the next piece; the embeddings of pieces are also the last layer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        if sizes.width % sizes.heads:
            raise ValueError(f"a width of {sizes.width} cannot be split among {sizes.heads} heads: change one of them")
        self.dropout = sizes.dropout
        self.pieces = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Embedding(sizes.context, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # what a residual adds up starts smaller, as in GPT-2
                depth = (2 * sizes.layers) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * depth)

    def forward(self, pieces_BT: Tensor) -> Tensor:
        places_T = torch.arange(pieces_BT.size(1), device=pieces_BT.device)
        x_BTD = F.dropout(self.pieces(pieces_BT) + self.positions(places_T), self.dropout, self.training)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return F.linear(self.norm(x_BTD), self.pieces.weight)


def shard(module: nn.Module, groups: ModelGroups) -> nn.Module:
    """FSDP2 over this model's ranks alone, a block at a time; on a GPU in bfloat16, gradients added in float32."""
    assert isinstance(module, GPT)
    policy = MixedPrecisionPolicy()
    if module.pieces.weight.device.type == "cuda":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in module.blocks:
        fully_shard(block, mesh=groups.model_mesh, mp_policy=policy)
    return fully_shard(module, mesh=groups.model_mesh, mp_policy=policy)
