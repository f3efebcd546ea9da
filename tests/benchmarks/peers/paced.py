"""A model whose pass takes the same time whatever it is asked, and none of the processor's: as one on a busy GPU."""

import time

import torch
from torch import nn

PASS_S = 0.02


class Paced(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, value):
        time.sleep(PASS_S)
        return {"echoed": value}
