"""What a person might bring along: a module that keeps statistics of its batches, one with dropout, a training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Normed(nn.Module):
    """Two layers with BatchNorm between them."""

    def __init__(self, width: int, features: Any, outputs: int) -> None:
        super().__init__()
        (pixels,) = features
        self.first, self.norm = nn.Linear(pixels.shape[0], width), nn.BatchNorm1d(width)
        self.last = nn.Linear(width, outputs)

    def forward(self, pixels: Tensor) -> Tensor:
        """`[rows, pixels]` -> `[rows, outputs]`."""
        hidden: Tensor = self.last(torch.relu(self.norm(self.first(pixels))))
        return hidden


class Gated(nn.Module):
    """Two layers with a gate and dropout."""

    def __init__(self, width: int, features: Any, outputs: int) -> None:
        super().__init__()
        (pixels,) = features
        self.layers = nn.Sequential(
            nn.Linear(pixels.shape[0], 2 * width), nn.GLU(), nn.Dropout(0.4), nn.Linear(width, outputs)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """`[rows, pixels]` -> `[rows, outputs]`."""
        outputs: Tensor = self.layers(pixels)
        return outputs


def loop(fit: Any) -> None:
    """A person's own loop: an optimizer of their own, a loss with a penalty."""
    model, _ = fit.prepare(fit.build(), lambda parameters: torch.optim.Adam(parameters, 3e-3, betas=(0.8, 0.99)))
    for batch in fit.batches("train"):
        logits = model(batch["pixels"])
        fit.step(nn.functional.cross_entropy(logits, batch["digit"]) + 1e-3 * logits.square().mean())
