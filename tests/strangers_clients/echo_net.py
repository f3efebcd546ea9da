"""Modules that answer what they were asked, or a part of it."""

import torch
from torch import nn


class Echo(nn.Module):
    """For each datatype of the protocol that torch has.

    `kind`: the type of its weights, in which it is given numbers with a fraction.
    """

    def __init__(self, kind="float32"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=getattr(torch, kind)))

    def forward(self, value):
        return {"echoed": value}


class FirstTwo(nn.Module):
    """Takes and answers what the endpoint in the examples of docs/openapi.yaml does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, measures):
        return {"output": measures[:, :2]}
