"""What a job tells whoever submitted it, among the lines that it prints for people."""

from __future__ import annotations

import json
from typing import Any

from tidegate import errors
from tidegate.errors import ClusterError, TidegateError

RESULT, ERROR = "@tidegate result ", "@tidegate error "
BEGUN = "@tidegate begins"
"""Before it Ray tells what it does to start the job."""
SPEC, ENDPOINT = "spec.yaml", "endpoint.yaml"
"""Files that a job finds in its working directory."""


def result(value: Any) -> str:
    """The line that carries what was asked for; `value` is JSON."""
    return RESULT + json.dumps(value)


def error(raised: TidegateError) -> str:
    """The line that carries an error."""
    told = {"kind": type(raised).__name__, "happened": raised.happened}
    return ERROR + json.dumps(told | {"expected": raised.expected, "remedy": raised.remedy})


def read_error(line: str) -> TidegateError:
    told = json.loads(line.removeprefix(ERROR))
    kind = getattr(errors, told["kind"], None)
    if not (isinstance(kind, type) and issubclass(kind, TidegateError)):
        kind = ClusterError
    return kind(told["happened"], expected=told["expected"], remedy=told["remedy"])


def read_result(line: str) -> Any:
    return json.loads(line.removeprefix(RESULT))
