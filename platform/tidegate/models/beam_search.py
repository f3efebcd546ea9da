"""Beam search: the likeliest sequence among those that are kept while sequences grow by one token (Graves 2012,
"Sequence Transduction with Recurrent Neural Networks", section 2.5, by sums of log probabilities)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tidegate.transforms.tokens import END, NEVER_ANSWERED, PAD, START

State = list[Tensor]
"""What a decoder keeps from token to token: tensors `[sequences, ...]`."""
Step = Callable[[Tensor, State], tuple[Tensor, State]]
"""Of the last tokens int64 `[sequences, 1]` and the state: logits of the next ones `[sequences, tokens]`, the state."""


def beam_search(step: Step, state: State, *, rows: int, beam: int, longest: int) -> Tensor:
    """Token codes int64 `[rows, longest]` of the likeliest sequence found for each row, PAD after its end.

    `state` has the rows' sequences side by side, `beam` for each row. A row's answer does not depend on the others:
    those that are finished only wait. With a beam of 1 this is the greedy choice.
    """
    device = state[0].device
    scores = torch.full((rows, beam), float("-inf"), device=device)
    scores[:, 0] = 0.0
    last = torch.full((rows * beam, 1), START, device=device)
    codes = torch.full((rows, beam, longest), PAD, device=device)
    finished = torch.zeros(rows, beam, dtype=torch.bool, device=device)
    first = torch.arange(rows, device=device).unsqueeze(1) * beam
    for place in range(longest):
        logits, state = step(last, state)
        ahead = logits.float().log_softmax(dim=1).reshape(rows, beam, -1)
        ahead[:, :, NEVER_ANSWERED] = float("-inf")
        # What is finished goes on with padding, at no cost, and with nothing else.
        ahead = ahead.masked_fill(finished.unsqueeze(2), float("-inf"))
        ahead[:, :, PAD] = torch.where(finished, 0.0, float("-inf"))
        tokens = ahead.shape[2]
        scores, chosen = (scores.unsqueeze(2) + ahead).reshape(rows, -1).topk(beam, dim=1)
        parent, token = chosen // tokens, chosen % tokens
        codes = codes.gather(1, parent.unsqueeze(2).expand_as(codes))
        codes[:, :, place] = token
        finished = finished.gather(1, parent) | (token == END)
        # The scores only fall: nothing overtakes a finished sequence at the top.
        if bool(finished[:, 0].all()):
            break
        source = (first + parent).reshape(-1)
        state = [part[source] for part in state]
        last = token.reshape(-1, 1)
    best = codes[:, 0]
    return best.masked_fill(best == END, PAD)
