"""Initial weights: Xavier (Glorot and Bengio 2010), Kaiming (He et al. 2015) or zero; biases start at zero."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from tidegate.spec.model import Init


def initialise(model: nn.Module, how: Init | Literal["zero"]) -> None:
    """Set the weights of every linear, convolution, recurrent and attention layer from torch's global random state."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            _fill(module.weight, how)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.RNNBase):
            for name, parameter in module.named_parameters():
                _fill(parameter, how) if name.startswith("weight") else nn.init.zeros_(parameter)
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            _fill(module.in_proj_weight, how)


def _fill(weight: Tensor, how: str) -> None:
    if how == "xavier":
        nn.init.xavier_uniform_(weight)
    elif how == "kaiming":
        nn.init.kaiming_uniform_(weight, nonlinearity="relu")
    elif how == "zero":
        nn.init.zeros_(weight)
    else:
        raise ValueError(f"no initialisation {how!r}")
