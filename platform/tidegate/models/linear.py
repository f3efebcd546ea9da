"""A linear map of all inputs: linear regression, or logistic (softmax) classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from tidegate.models.flatten import Flatten
from tidegate.models.initialise import initialise
from tidegate.spec import model as spec
from tidegate.transforms.base import Feature


class Linear(nn.Module):
    """Weights `linear.weight` `[outputs, width]` and `linear.bias`."""

    def __init__(self, options: spec.Linear, features: Sequence[Feature], outputs: int) -> None:
        super().__init__()
        self.flatten = Flatten(features)
        self.linear = nn.Linear(self.flatten.width, outputs)
        initialise(self, options.init)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = self.linear(self.flatten(inputs))
        return output
