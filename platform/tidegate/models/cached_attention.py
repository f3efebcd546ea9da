"""Attention whose keys and values are cached, so that a text that grows computes those of its new tokens only."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class CachedAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention in two steps: `keys_values` once, and `attend` as often as something queries them."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(width, heads, dropout, batch_first=True)

    def keys_values(self, source: Tensor) -> list[Tensor]:
        """Keys and values `[rows, heads, steps, width / heads]` of `[rows, steps, width]`."""
        weight, bias = self.in_proj_weight[self.embed_dim :], self.in_proj_bias[self.embed_dim :]
        return [self._by_head(part) for part in functional.linear(source, weight, bias).chunk(2, dim=2)]

    def attend(self, queries: Tensor, cache: list[Tensor], mask: Tensor) -> Tensor:
        """What `queries` `[rows, steps, width]` find in a cache of keys and values where the bool `mask` is true."""
        weight, bias = self.in_proj_weight[: self.embed_dim], self.in_proj_bias[: self.embed_dim]
        queries = self._by_head(functional.linear(queries, weight, bias))
        dropout = self.dropout if self.training else 0.0
        keys, values = cache
        found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        output: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        return output

    def _by_head(self, states: Tensor) -> Tensor:
        return states.reshape(*states.shape[:2], self.num_heads, -1).transpose(1, 2)
