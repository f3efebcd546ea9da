"""All gradients of a model in one flat vector, with a few numbers of the shard behind them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EXTRAS = 3
"""Behind the gradients: the loss sum, its weight, and a flag that any worker can raise for all."""


class Gradients:
    """`flat` is `[parameters + EXTRAS]`; every parameter's `grad` is a view of it."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.count = sum(parameter.numel() for parameter in parameters)
        self.flat = torch.zeros(self.count + EXTRAS, device=parameters[0].device)
        offset = 0
        for parameter in parameters:
            parameter.grad = self.flat[offset : offset + parameter.numel()].view_as(parameter)
            offset += parameter.numel()

    def clear(self) -> None:
        self.flat.zero_()

    def note(self, loss: float, weight: float, flag: bool) -> Tensor:
        """Write the extras behind this shard's gradients; the whole vector."""
        self.flat[self.count :] = torch.tensor([loss, weight, float(flag)])
        return self.flat

    def take(self, total: Tensor) -> tuple[float, float, bool]:
        """Make the mean over the batch the gradient; the mean loss, its weight and whether anyone raised the flag."""
        loss, weight, flag = total[self.count :].tolist()
        torch.div(total, weight, out=self.flat)
        return loss / weight, weight, flag > 0

    def clip(self, bound: float) -> None:
        """Scale the whole gradient down to the norm `bound` where it is longer (Pascanu et al. 2013)."""
        gradient = self.flat[: self.count]
        norm = float(torch.linalg.vector_norm(gradient))
        if norm > bound:
            gradient.mul_(bound / norm)
