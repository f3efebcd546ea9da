"""All inputs side by side as one vector a row: numbers and pixels as they are, categories one-hot.

A value that no training row had counts as the mean of those known: weights of its own would be as they were drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tidegate.transforms.base import Feature


class Flatten(nn.Module):
    """`{name: [rows, ...]}` -> `[rows, width]`, columns in the order of the spec. Has no weights."""

    def __init__(self, features: Sequence[Feature]) -> None:
        super().__init__()
        self.features = list(features)
        self.width = sum(feature.cardinality or math.prod(feature.shape) for feature in self.features)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        parts = [self._part(feature, inputs[feature.name]) for feature in self.features]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    @staticmethod
    def _part(feature: Feature, values: Tensor) -> Tensor:
        if feature.kind == "category":
            found = nn.functional.one_hot(values.reshape(-1).long(), feature.cardinality).float()
            if feature.has_bucket:
                known = feature.cardinality - 1
                found[:, :known] += found[:, known:] / known
                found[:, known] = 0.0
            return found
        return values.reshape(len(values), -1)
