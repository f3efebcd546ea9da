"""All gradients of a model in one flat vector, with its running statistics and a few numbers of the shard behind them.

Statistics that a forward pass updates (those of BatchNorm) couple the rows of a pass. Every shard starts from the same
ones; how far each moves them is averaged by rows, in the order of the reduction: the same for any number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tidegate.errors import TrainingError

EXTRAS = 4
"""Behind the gradients and statistics: the loss sum, its weight, the number of rows, and a flag for all workers."""


class Gradients:
    """`flat` is `[parameters + statistics + EXTRAS]`; every parameter's `grad` is a view of it."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.statistics = running_statistics(model)
        _check_type(self.parameters)
        self.count = sum(parameter.numel() for parameter in self.parameters)
        self.first_extra = self.count + sum(buffer.numel() for buffer in self.statistics)
        self.flat = torch.zeros(self.first_extra + EXTRAS, device=device)
        self.views = _views(self.flat, self.parameters)
        self._before = [buffer.clone() for buffer in self.statistics]
        self._model, self._versions = model, other_buffers(model)
        self.attach()

    def attach(self) -> None:
        """Make the views the parameters' gradients, and of any gradient that was put in their place keep the value.

        A person's loop may call `zero_grad`, which takes the views away.
        """
        for parameter, view in zip(self.parameters, self.views, strict=True):
            gradient = parameter.grad
            if gradient is not view:
                if gradient is not None:
                    view.add_(gradient)
                parameter.grad = view
        self._version = self.flat._version

    def refuse_writes(self) -> None:
        """Between two passes of a shard: raises TrainingError when gradients were written to since `attach`."""
        if self.flat._version != self._version:
            raise TrainingError(
                "the loop wrote to gradients between the micro-batches of a shard",
                remedy="leave out zero_grad(set_to_none=False) and the like: fit.step sees to the gradients",
            )

    def clear(self) -> None:
        """Begin a shard."""
        self.flat.zero_()
        for buffer, before in zip(self.statistics, self._before, strict=True):
            buffer.copy_(before)

    def note(self, loss: float, weight: float, rows: int) -> Tensor:
        """End a shard: write its change of the statistics and the extras behind its gradients; the whole vector.

        Raises TrainingError when the forward pass changed other state of the model.
        """
        if self._versions and rows:
            self._refuse_changes()
        offset = self.count
        for buffer, before in zip(self.statistics, self._before, strict=True):
            # The change: whole numbers stay exact in a float, and what did not move stays what it was.
            self.flat[offset : offset + buffer.numel()].copy_((buffer - before).reshape(-1)).mul_(rows)
            offset += buffer.numel()
        self.flat[self.first_extra :] = torch.tensor([loss, weight, float(rows), 0.0])
        return self.flat

    def take(self, total: Tensor) -> tuple[float, float, int]:
        """Make the mean over the batch the gradient; the mean loss, its weight, and the flag.

        Raises TrainingError when the weights of the batch add up to nothing.
        """
        loss, weight, rows, flag = total[self.first_extra :].tolist()
        if weight == 0:
            raise TrainingError(
                "the weights of a whole batch add up to 0", remedy="give fit.step what its loss is the mean over"
            )
        offset = self.count
        for buffer, before in zip(self.statistics, self._before, strict=True):
            change = total[offset : offset + buffer.numel()].view_as(buffer) / rows
            before += change if buffer.is_floating_point() else change.round().to(buffer.dtype)
            buffer.copy_(before)
            offset += buffer.numel()
        # Last: `total` may be this very vector.
        torch.div(total, weight, out=self.flat)
        return loss / weight, weight, round(flag)

    def remember_statistics(self) -> None:
        """Start from the model's statistics as they are now: they were restored."""
        for buffer, before in zip(self.statistics, self._before, strict=True):
            before.copy_(buffer)
        self._versions = other_buffers(self._model)

    def _refuse_changes(self) -> None:
        """After the first shard: what each worker's own rows did to it would go unnoticed."""
        changed = [name for name, now in other_buffers(self._model).items() if now != self._versions.get(name)]
        if changed:
            raise TrainingError(
                f"the forward pass changes the model's {', '.join(changed)}, which would differ between workers",
                remedy="keep it with persistent=False if it is no part of the model, or do without it",
            )
        self._versions = {}

    def clip(self, bound: float) -> None:
        """Scale the whole gradient down to the norm `bound` where it is longer (Pascanu et al. 2013)."""
        gradient = self.flat[: self.count]
        norm = float(torch.linalg.vector_norm(gradient))
        if norm > bound:
            gradient.mul_(bound / norm)


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The buffers that a forward pass in training may change: of modules that track running statistics."""
    return [
        buffer
        for module in model.modules()
        if getattr(module, "track_running_stats", False)
        for buffer in module.buffers(recurse=False)
    ]


def other_buffers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """The memory and the version of all state that is neither a parameter nor a running statistic."""
    statistics, state = {id(buffer) for buffer in running_statistics(model)}, model.state_dict(keep_vars=True)
    return {
        name: (buffer.data_ptr(), buffer._version)
        for name, buffer in model.named_buffers()
        if name in state and id(buffer) not in statistics
    }


def _views(flat: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Each in the memory format of its parameter: fused optimizers go through the memory of both side by side."""
    views, offset = [], 0
    for parameter in parameters:
        strides = torch.empty_like(parameter, device="meta").stride()
        views.append(flat.as_strided(parameter.shape, strides, offset))
        offset += parameter.numel()
    return views


def _check_type(parameters: Sequence[nn.Parameter]) -> None:
    found = {parameter.dtype for parameter in parameters} - {torch.float32}
    if found or not parameters:
        what = ", ".join(sorted(str(kind) for kind in found)) or "none at all"
        raise TrainingError(
            f"the model has trainable parameters of type {what}",
            expected="torch.float32",
            remedy="keep the weights in float32; `train.precision: bf16` computes in bfloat16",
        )
