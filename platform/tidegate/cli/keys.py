"""`tidegate keys`: keys for endpoints.

Over http:// these commands are carried out by calls, not forwarded as words: the text of a key is made on this machine
and never reaches a job's log.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from tidegate.cli import complete
from tidegate.errors import SpecError

if TYPE_CHECKING:
    from tidegate.keys import Key

_DURATION = re.compile(r"([0-9]{1,6})([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@click.group(invoke_without_command=True)
@click.pass_context
def keys(context: click.Context) -> None:
    """List keys for endpoints; `create` one, or `revoke` one."""
    if context.invoked_subcommand is None:
        context.invoke(listing)


@keys.command(short_help="Make a key for TENANT and show it, once.")
@click.argument("tenant")
@click.option("--scope", "scopes", multiple=True, help="predict (the default), deploy or admin. May be repeated.")
@click.option(
    "--endpoint",
    "endpoints",
    multiple=True,
    shell_complete=complete.endpoints,
    help="An endpoint that it opens. May be repeated. Default: all.",
)
@click.option("--expires-in", metavar="TIME", help="As 30m, 12h or 90d. Default: never.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def create(
    tenant: str, scopes: tuple[str, ...], endpoints: tuple[str, ...], expires_in: str | None, as_json: bool
) -> None:
    """Make a key for TENANT and show it, once.

    The key alone is on stdout. Send it to an endpoint as `Authorization: Bearer KEY`.
    """
    lasts = None if expires_in is None else _duration(expires_in)
    from tidegate.remote.keys import create_key

    key, text = create_key(tenant, scopes=scopes or ("predict",), endpoints=endpoints, expires_in=lasts)
    click.echo(json.dumps(_shown(key) | {"key": text}, indent=1) if as_json else text)
    click.echo(f"{_sentence(key)}. Keep the key now: it is not shown again. It works within two seconds", err=True)


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def listing(as_json: bool = False) -> None:
    """List keys, expired ones too. What a key says is not kept."""
    from tidegate.cli.table import table
    from tidegate.remote.keys import list_keys

    found = list_keys()
    if as_json:
        click.echo(json.dumps([_shown(key) for key in found], indent=1))
        return
    rows = [
        [
            *(key.id, key.tenant, ", ".join(key.scopes), ", ".join(key.endpoints) or "all"),
            *(_time(key.created), _time(key.expires), "yes" if key.is_expired else "no"),
        ]
        for key in found
    ]
    table(
        ["id", "tenant", "scopes", "endpoints", "created (UTC)", "expires (UTC)", "expired"],
        rows,
        empty="no keys yet: tidegate keys create TENANT",
    )


@keys.command()
@click.argument("id", shell_complete=complete.keys)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def revoke(id: str, as_json: bool) -> None:
    """Take the key ID away: endpoints refuse it within seconds."""
    from tidegate.remote.keys import revoke_key

    key = revoke_key(id)
    click.echo(json.dumps(_shown(key), indent=1) if as_json else f"revoked {key.id} of {key.tenant}")


def _shown(key: Key) -> dict[str, Any]:
    from tidegate.keys import to_json

    return {name: value for name, value in to_json(key).items() if name != "digest"} | {"expired": key.is_expired}


def _sentence(key: Key) -> str:
    where = ", ".join(key.endpoints) or "all endpoints"
    until = f"until {_time(key.expires)} UTC" if key.expires else "until it is revoked"
    return f"key {key.id} of {key.tenant} for {', '.join(key.scopes)} on {where}, {until}"


def _time(when: datetime | None) -> str:
    return when.isoformat(timespec="seconds")[:19] if when else "never"


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise SpecError(f"--expires-in {text!r}", expected="a whole number of minutes, hours or days: 30m, 12h, 90d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
