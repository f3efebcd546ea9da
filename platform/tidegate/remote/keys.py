"""The keys of the cluster that this process works with. For one that is near, neither Ray nor torch is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from tidegate import connection, keys
from tidegate.keys import Key


def create_key(
    tenant: str,
    *,
    scopes: Sequence[str] = ("predict",),
    endpoints: Sequence[str] = (),
    expires_in: timedelta | None = None,
) -> tuple[Key, str]:
    """Make a key for endpoints: what is kept of it, and its text, which nothing can tell again.

    `scopes` are some of predict, deploy and admin, which includes the others. Without `endpoints` it is a key for all
    of them, without `expires_in` for good. No cluster is needed. Raises SpecError for what no key can have.
    """
    if jobs := connection.far():
        # The text is made here and stays here: what a job is told and what it answers is kept in logs of the cluster.
        key, text = keys.draft(tenant, scopes=scopes, endpoints=endpoints, expires_in=expires_in)
        return keys.from_json(jobs.call("add_key", key=keys.to_json(key))), text
    return keys.create(tenant, scopes=scopes, endpoints=endpoints, expires_in=expires_in)


def list_keys() -> list[Key]:
    """The keys that are not revoked, expired ones too, in the order they were made."""
    if jobs := connection.far():
        return [keys.from_json(told) for told in jobs.call("list_keys")]
    return keys.listed()


def revoke_key(id: str) -> Key:
    """Take a key away. Raises NotFoundError when there is none of that id."""
    if jobs := connection.far():
        keys.check_id(id)
        return keys.from_json(jobs.call("revoke_key", id=id))
    return keys.revoke(id)
