"""`tidegate models`: registered versions and their aliases."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """List model versions; `show` one, or move an `alias`."""
    if context.invoked_subcommand is not None:
        return
    from tidegate import registry
    from tidegate.cli.table import table

    rows = [[v.ref, ", ".join(v.aliases) or "-", v.digest[:12], v.created[:19], v.run_id] for v in registry.versions()]
    table(["version", "aliases", "digest", "created (UTC)", "run"], rows, empty="no models yet: tidegate train SPEC")


@models.command()
@click.argument("ref")
def show(ref: str) -> None:
    """Show a version's card: digits, digits@3 or digits@production."""
    from tidegate import registry

    version = registry.version(ref)
    click.echo((Path(version.path) / "about" / "README.md").read_text())
    click.echo(f"files: {version.path}")


@models.command()
@click.argument("ref")
@click.argument("alias")
@click.option("--why", required=True, help="The reason, kept in the alias's history.")
def alias(ref: str, alias: str, why: str) -> None:
    """Let ALIAS stand on the version REF. Endpoints that follow it move with it."""
    from tidegate import lifecycle, registry

    version = registry.version(ref)
    registry.set_alias(version.name, alias, version.number, who=lifecycle.user(), why=why)
    click.echo(f"{version.name}@{alias} is now {version.ref}")


@models.command()
@click.argument("name")
@click.argument("alias")
def history(name: str, alias: str) -> None:
    """Who moved ALIAS of the model NAME, when and why."""
    from tidegate import registry
    from tidegate.cli.table import table

    moves = registry.alias_history(name, alias)
    rows = [[m.when[:19], f"{m.previous or '-'} -> {m.number}", m.who, m.why] for m in moves]
    table(["when (UTC)", "version", "who", "why"], rows, empty=f"{name}@{alias} was never set")
