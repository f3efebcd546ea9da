"""Model versions and their aliases, kept in MLflow's model registry.

A version never changes: nothing here modifies or deletes one. Only aliases move, and each move is kept with who made
it, when and why.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate import store, tracking
from tidegate.errors import ArtifactError, NotFoundError, SpecError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

DIGEST_TAG = "tidegate.digest"
METRICS_TAG = "tidegate.metrics"
LINEAGE_TAG = "tidegate.lineage"
ALIAS_TAG = "tidegate.alias"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_ALIAS = re.compile(r"[a-z0-9_-]{1,63}")
_RESERVED = re.compile(r"[0-9]+|v[0-9]+|latest")


@dataclass(frozen=True)
class Version:
    """One registered model. `path` is its folder, `digest` what that folder must hold, `created` ISO-8601 UTC.

    `run_id` is the run that trained it; empty for a model that was registered without training.
    """

    name: str
    number: int
    digest: str
    path: str
    run_id: str
    metrics: dict[str, float]
    aliases: tuple[str, ...]
    created: str

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.number}"


@dataclass(frozen=True)
class AliasMove:
    """One move of an alias to version `number`. `previous` is where it stood, None at first; `when` ISO-8601 UTC."""

    alias: str
    number: int
    previous: int | None
    who: str
    why: str
    when: str


def register(
    name: str, *, path: Path, digest: str, run_id: str, metrics: Mapping[str, float], lineage: Mapping[str, Any]
) -> Version:
    """Add the model in folder `path` as the next version of `name`.

    The same digest from the same run is registered once: the version it has is returned. `run_id` is a run's name or
    MLflow id, or empty; one that is not recorded is kept as given. `lineage` must be JSON.
    """
    check_name(name)
    tags = {
        tracking.RUN_TAG: run_id,
        DIGEST_TAG: digest,
        METRICS_TAG: json.dumps(dict(metrics), sort_keys=True),
        LINEAGE_TAG: json.dumps(dict(lineage), sort_keys=True),
    }
    recorded = tracking.find_run(run_id)
    with store.exclusive():
        for known in versions(name):
            if (known.digest, known.run_id) == (digest, run_id):
                return known
        store.attempt(lambda client: _ensure_model(client, name))
        made = store.attempt(
            lambda client: client.create_model_version(
                name, str(path), run_id=recorded.run_id if recorded else None, tags=tags
            )
        )
    return _version(made, {})


def version(ref: str) -> Version:
    """`digits` is the newest version, `digits@3` that one, `digits@production` the one an alias stands on.

    Raises NotFoundError, which names what there is.
    """
    name, at, wanted = ref.partition("@")
    known = _known(name)
    if not at:
        return known[0]
    for candidate in known:
        if wanted == str(candidate.number) or wanted in candidate.aliases:
            return candidate
    raise NotFoundError(f"{name} has no version or alias {wanted!r}", expected=_choices(known), remedy=_LIST)


def versions(name: str | None = None) -> list[Version]:
    """The versions of `name`, or of all models, newest first; empty when there are none."""
    if name is None:
        found = store.attempt(lambda client: _search(client, None))
        return sorted(found, key=lambda version: (version.created, version.number), reverse=True)
    if not _NAME.fullmatch(name):
        return []
    found = store.attempt(lambda client: _search(client, f"name='{name}'"))
    return sorted(found, key=lambda version: version.number, reverse=True)


def card(version: Version) -> str:
    """The model card of a version, Markdown. Raises ArtifactError when it is gone."""
    path = Path(version.path) / "about" / "README.md"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"the card of {version.ref} cannot be read: {error}",
            remedy=f"the model itself is in {version.path}, and does not need its card to serve",
        ) from error


def made_by(run: tracking.RunRecord) -> str | None:
    """The version that a run registered, as `digits@3`; None when there is none."""
    found = versions(run.tags.get("tidegate.model"))
    return next((version.ref for version in found if version.run_id == run.name), None)


def set_alias(name: str, alias: str, number: int, *, who: str, why: str) -> Version:
    """Let `alias` stand on version `number`, and keep who moved it and why. Nothing is done if it stands there already.

    Raises NotFoundError for a version that does not exist and SpecError for an alias that could be taken for one.
    """
    check_alias(alias)
    with store.exclusive():
        chosen = version(f"{name}@{number}")
        if alias in chosen.aliases:
            return chosen
        previous = next((other.number for other in versions(name) if alias in other.aliases), None)
        move = AliasMove(alias, number, previous, who, why, datetime.now(UTC).isoformat(timespec="milliseconds"))
        _record(name, move)
        store.attempt(lambda client: client.set_registered_model_alias(name, alias, str(number)))
        return version(chosen.ref)


def alias_history(name: str, alias: str) -> list[AliasMove]:
    """Every move of `alias`, newest first. A move that was cut short is recorded though the alias stayed on `previous`.

    Raises NotFoundError when there is no model of that name.
    """
    _known(name)
    kept = store.attempt(lambda client: dict(client.get_registered_model(name).tags))
    keys = sorted((key for key in kept if key.startswith(f"{ALIAS_TAG}.{alias}.")), reverse=True)
    return [AliasMove(**json.loads(kept[key])) for key in keys]


def lineage(of: Version | str) -> dict[str, Any]:
    """What `register` was told the version was made from. Takes a version or a reference to one."""
    chosen = version(of) if isinstance(of, str) else of
    found = store.attempt(lambda client: client.get_model_version(chosen.name, str(chosen.number)))
    kept: dict[str, Any] = json.loads(found.tags[LINEAGE_TAG])
    return kept


def check_name(name: str) -> None:
    """Raises SpecError for a name that no model can have."""
    if not _NAME.fullmatch(name):
        raise SpecError(f"model name {name!r}", expected="lower-case letters, digits, '-' and '_', at most 63")


def check_alias(alias: str) -> None:
    """Raises SpecError for an alias that could be taken for a version."""
    if not _ALIAS.fullmatch(alias) or _RESERVED.fullmatch(alias):
        form = "lower-case letters, digits, '-' and '_', not a number, not 'v' and a number, not 'latest'"
        raise SpecError(f"alias {alias!r}", expected=form)


_LIST = "`tidegate models` lists them"


def _known(name: str) -> list[Version]:
    found = versions(name)
    if not found:
        others = tracking.closest(name, (other.name for other in versions()))
        raise NotFoundError(f"no model {name!r}", expected=f"one of {others}" if others else "", remedy=_LIST)
    return found


def _choices(known: list[Version]) -> str:
    numbers = [str(version.number) for version in known]
    shown = ", ".join(numbers[:10]) + (f" and {len(numbers) - 10} older" if len(numbers) > 10 else "")
    aliases = sorted(alias for version in known for alias in version.aliases)
    return f"one of {shown}" + (f", or an alias: {', '.join(aliases)}" if aliases else "; it has no aliases")


def _record(name: str, move: AliasMove) -> None:
    """The record comes before the move, so that no alias ever moves without one."""
    count = len(alias_history(name, move.alias))
    # The random end keeps both records when two machines, which share no file lock, move an alias at once.
    key = f"{ALIAS_TAG}.{move.alias}.{count + 1:06d}-{secrets.token_hex(3)}"
    text = json.dumps(asdict(move), sort_keys=True)
    store.attempt(lambda client: client.set_registered_model_tag(name, key, text))


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _search(client: MlflowClient, where: str | None) -> list[Version]:
    """MLflow's search for versions leaves aliases out; those of the models have them."""
    models = store.pages(client.search_registered_models, filter_string=where)
    aliases = {model.name: model.aliases for model in models}
    found = store.pages(client.search_model_versions, filter_string=where)
    # A version without a digest was registered by other means; it cannot be verified, so it is not ours to serve.
    return [_version(one, aliases.get(one.name, {})) for one in found if DIGEST_TAG in one.tags]


def _version(found: ModelVersion, aliases: Mapping[str, Any]) -> Version:
    number = int(found.version)
    return Version(
        name=found.name,
        number=number,
        digest=found.tags[DIGEST_TAG],
        path=found.source,
        run_id=found.tags[tracking.RUN_TAG],
        metrics=json.loads(found.tags[METRICS_TAG]),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if int(target) == number)),
        created=tracking.utc(found.creation_timestamp),
    )
