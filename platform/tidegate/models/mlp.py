"""Fully connected layers with ReLU and dropout between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from tidegate.models.flatten import Flatten
from tidegate.models.initialise import initialise
from tidegate.spec import model as spec
from tidegate.transforms.base import Feature


class Mlp(nn.Module):
    """`layers`: Linear, ReLU, Dropout for each hidden width, and a last Linear."""

    def __init__(self, options: spec.Mlp, features: Sequence[Feature], outputs: int) -> None:
        super().__init__()
        self.flatten = Flatten(features)
        layers: list[nn.Module] = []
        width = self.flatten.width
        for hidden in options.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(options.dropout)]
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, outputs))
        initialise(self, options.init)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = self.layers(self.flatten(inputs))
        return output
