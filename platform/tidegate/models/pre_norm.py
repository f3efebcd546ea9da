"""The transformer encoder that several model types have: pre-norm (Xiong et al. 2020), GELU, 4 x width inside."""

from __future__ import annotations

from torch import nn


def pre_norm_encoder(
    width: int, heads: int, layers: int, dropout: float, norm: nn.Module | None = None
) -> nn.TransformerEncoder:
    """Layers over `[rows, steps, width]`, and `norm` after the last."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)
