"""All inputs side by side as one vector a row: numbers and pixels as they are, categories one-hot."""

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
            return nn.functional.one_hot(values.reshape(-1).long(), feature.cardinality).float()
        return values.reshape(len(values), -1)
