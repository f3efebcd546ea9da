"""Every error a person can meet: what happened, what was expected, what to do.

All of them derive from `TidegateError`, survive pickling (they cross process boundaries inside Ray), and carry a stable
`code` for scripts, an `exit_code` for the shell and an `http_status` for the endpoint.
"""

from __future__ import annotations

from typing import ClassVar


class TidegateError(Exception):
    """Root of all errors Tidegate raises on purpose."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 2
    http_status: ClassVar[int] = 500

    def __init__(self, happened: str, *, expected: str = "", remedy: str = "") -> None:
        super().__init__(happened)
        self.happened = happened
        self.expected = expected
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.happened, self.expected, self.remedy))

    def __str__(self) -> str:
        parts = [self.happened]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.remedy:
            parts.append(self.remedy)
        return "; ".join(parts)


def _rebuild(kind: type[TidegateError], happened: str, expected: str, remedy: str) -> TidegateError:
    return kind(happened, expected=expected, remedy=remedy)


class SpecError(TidegateError):
    """A run or endpoint spec that cannot be used as written. Lists every mistake at once."""

    code = "spec"
    http_status = 400


class DataError(TidegateError):
    """Source data that is missing, unreadable or does not fit the spec."""

    code = "data"
    http_status = 400


class NotFoundError(TidegateError):
    """A run, model, version or endpoint that does not exist."""

    code = "not_found"
    http_status = 404


class ConflictError(TidegateError):
    """Something of that name exists or is busy and cannot be replaced."""

    code = "conflict"
    http_status = 409


class RequestError(TidegateError):
    """A request to an endpoint that does not fit the protocol or the model's signature."""

    code = "request"
    http_status = 400


class AccessError(TidegateError):
    """A request without a key, or with one that does not open what it asks for."""

    code = "access"
    http_status = 403


class UnavailableError(TidegateError):
    """A service that is not ready to answer: loading, overloaded or gone.

    `retry_after_s`: when to try again, where the service said so.
    """

    code = "unavailable"
    http_status = 503

    def __init__(
        self, happened: str, *, expected: str = "", remedy: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(happened, expected=expected, remedy=remedy)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[object, ...]:
        return (*super().__reduce__(), {"retry_after_s": self.retry_after_s})


class LimitError(UnavailableError):
    """More requests than the service takes of one who asks."""

    code = "limit"
    http_status = 429


class ArtifactError(TidegateError):
    """A model version whose files are damaged, incomplete or not what their digest says."""

    code = "artifact"


class CheckpointError(TidegateError):
    """A checkpoint that is damaged, incomplete or belongs to another run."""

    code = "checkpoint"


class FeedError(TidegateError):
    """Training data that did not arrive as planned. The run stops rather than train on the wrong rows."""

    code = "feed"
    exit_code = 1


class ClusterError(TidegateError):
    """No cluster, one that does not answer, or one that cannot do what was asked."""

    code = "cluster"


class MissingError(ClusterError):
    """A feature that this release of Ray has no ground for."""

    code = "missing"


class StorageError(TidegateError):
    """A disk that is full or may not be written to, or a file on it that is damaged."""

    code = "storage"
    http_status = 507


class TrainingError(TidegateError):
    """A training run that failed."""

    code = "training"
    exit_code = 1


class StoppedError(TidegateError):
    """A run that was asked to stop. It can go on from its checkpoint under its name."""

    code = "stopped"
    exit_code = 4


class RequirementError(TidegateError):
    """A model version that was registered but missed `evaluate.require`, so it is not published."""

    code = "requirement"
    exit_code = 3
