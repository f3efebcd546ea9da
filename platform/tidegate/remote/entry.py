"""The cluster's side, the entry point of a job: `python -m tidegate.remote.entry call NAME JSON`, or `cli WORDS ...`.

What was asked for, or the error, is one line of JSON among those for people.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tidegate.cli import main as shell
from tidegate.errors import ClusterError, TidegateError
from tidegate.remote import words

if TYPE_CHECKING:
    from tidegate.handle import Run


def _train(name: str) -> dict[str, Any]:
    from tidegate import api

    return _told(api.train(words.SPEC, name=name))


def _outcome(name: str) -> dict[str, Any]:
    """Waits until the run is over, whoever carries it."""
    from tidegate import api

    api.connect()
    return _told(api.get_run(name))


def _told(run: Run) -> dict[str, Any]:
    outcome = run.outcome()
    return {
        "run": outcome.run,
        "version": asdict(outcome.version),
        "report": outcome.report.to_json(),
        "endpoint": asdict(outcome.endpoint) if outcome.endpoint else None,
        "missed": outcome.missed,
    }


def _spec(name: str) -> dict[str, Any]:
    from tidegate import lifecycle

    return lifecycle.stored_spec(name).model_dump(mode="json", exclude_unset=True)


def _check(name: str) -> None:
    """Raises ConflictError when a run of that name has finished or goes on."""
    from tidegate import api, lifecycle

    api.connect()
    lifecycle.refuse_taken(name)


def _ask(what: str) -> Callable[..., Any]:
    def ask(name: str, **arguments: Any) -> Any:
        from tidegate import api

        api.connect()
        found = getattr(api.get_run(name), what)(**arguments)
        return asdict(found) if what == "status" else None

    return ask


def _versions(name: str | None) -> list[dict[str, Any]]:
    from tidegate import api

    return [asdict(version) for version in api.versions(name)]


def _set_alias(name: str, alias: str, version: int, reason: str) -> dict[str, Any]:
    from tidegate import api

    return asdict(api.set_alias(name, alias, version, reason=reason))


def _runs() -> list[dict[str, Any]]:
    from tidegate import api

    return [asdict(record) for record in api.runs()]


def _deploy() -> dict[str, Any]:
    from tidegate import api

    return asdict(api.deploy(words.ENDPOINT).status)


def _remove(endpoint: str) -> None:
    from tidegate import api

    api.remove(endpoint)


def _endpoints() -> list[dict[str, Any]]:
    from tidegate import api

    return [asdict(status) for status in api.endpoints()]


def _add_key(key: dict[str, Any]) -> dict[str, Any]:
    from tidegate import keys

    return keys.to_json(keys.add(keys.from_json(key)))


def _list_keys() -> list[dict[str, Any]]:
    from tidegate import keys

    return [keys.to_json(key) for key in keys.listed()]


def _revoke_key(id: str) -> dict[str, Any]:
    from tidegate import keys

    return keys.to_json(keys.revoke(id))


CALLS: dict[str, Callable[..., Any]] = {
    "train": _train,
    "outcome": _outcome,
    "spec": _spec,
    "check": _check,
    **{what: _ask(what) for what in ("status", "resize", "pause", "resume", "stop")},
    "versions": _versions,
    "set_alias": _set_alias,
    "runs": _runs,
    "deploy": _deploy,
    "remove": _remove,
    "endpoints": _endpoints,
    "add_key": _add_key,
    "list_keys": _list_keys,
    "revoke_key": _revoke_key,
}


def call(name: str, arguments: dict[str, Any]) -> None:
    """Print what `name` answers."""
    if name not in CALLS:
        raise ClusterError(f"the cluster's Tidegate has no call {name!r}", remedy="use the same release on both sides")
    print(words.result(CALLS[name](**arguments)), flush=True)


def main() -> None:
    print(words.BEGUN, flush=True)
    kind, *rest = sys.argv[1:]
    sys.argv[1:] = rest
    if kind == "call":
        shell.main(_carried, on_error=_tell)
    else:
        shell.main(on_error=_tell)


def _carried() -> None:
    name, arguments = sys.argv[1:]
    call(name, json.loads(arguments))


def _tell(raised: BaseException) -> None:
    known = raised if isinstance(raised, TidegateError) else TidegateError(f"{type(raised).__name__}: {raised}")
    print(words.error(known), flush=True)


if __name__ == "__main__":
    main()
