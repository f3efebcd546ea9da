"""`tidegate models` and `register`: versions and their aliases."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from tidegate.cli import complete
from tidegate.errors import SpecError


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List model versions; `show` one, or move an `alias`."""
    if context.invoked_subcommand is not None:
        return
    from tidegate import registry
    from tidegate.cli.table import table

    found = registry.versions()
    if as_json:
        click.echo(json.dumps([asdict(version) for version in found], indent=1))
        return
    rows = [
        [v.ref, ", ".join(v.aliases) or "-", v.digest[:12], v.created[:19], v.run_id or "(registered)"] for v in found
    ]
    table(
        ["version", "aliases", "digest", "created (UTC)", "run"],
        rows,
        empty="no models yet: tidegate train SPEC, or tidegate register WHAT",
    )


@models.command()
@click.argument("ref", shell_complete=complete.models)
def show(ref: str) -> None:
    """Show a version's card: digits, digits@3 or digits@production."""
    from tidegate import registry

    version = registry.version(ref)
    click.echo(registry.card(version))
    click.echo(f"files: {version.path}")


@models.command()
@click.argument("ref", shell_complete=complete.models)
@click.argument("alias")
@click.option("--why", required=True, help="The reason, kept in the alias's history.")
def alias(ref: str, alias: str, why: str) -> None:
    """Let ALIAS stand on the version REF. Endpoints that follow it move with it."""
    from tidegate import lifecycle, registry

    version = registry.version(ref)
    registry.set_alias(version.name, alias, version.number, who=lifecycle.user(), why=why)
    click.echo(f"{version.name}@{alias} is now {version.ref}")


@models.command()
@click.argument("name", shell_complete=complete.models)
@click.argument("alias")
def history(name: str, alias: str) -> None:
    """Who moved ALIAS of the model NAME, when and why."""
    from tidegate import registry
    from tidegate.cli.table import table

    moves = registry.alias_history(name, alias)
    rows = [[m.when[:19], f"{m.previous or '-'} -> {m.number}", m.who, m.why] for m in moves]
    table(["when (UTC)", "version", "who", "why"], rows, empty=f"{name}@{alias} was never set")


@click.command(short_help="Register a model that is trained already.")
@click.argument("what", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="The model's name.")
@click.option(
    "--example",
    type=click.Path(path_type=Path),
    help="A few rows of what the module takes (.npz, .parquet, .csv, .json or .jsonl).",
)
@click.option("--build", help="The class or function that makes the module, as package.module:name.")
@click.option("--args", help="Its arguments, as a JSON object.")
@click.option("--inputs", help="Columns of the example, with commas; a single name makes all of them one input.")
@click.option("--alias", help="An alias to move to the version.")
@click.option("--why", default="registered", help="The reason, kept in the alias's history.")
def register(
    what: Path,
    name: str,
    example: Path | None,
    build: str | None,
    args: str | None,
    inputs: str | None,
    alias: str | None,
    why: str,
) -> None:
    """Register a model that is trained already: WHAT is a .safetensors file or a Hugging Face folder."""
    given = None if args is None else _object(args)
    from tidegate import api

    names = inputs.split(",") if inputs and "," in inputs else inputs
    made = api.register(
        what, name=name, example=example, build=build, args=given, inputs=names, alias=alias, reason=why
    )
    click.echo(f"{made.ref}  {made.digest[:12]}  registered, not trained here")
    click.echo(f"serve it: tidegate deploy SPEC, where SPEC says `model: {made.name}@{alias or made.number}`")


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SpecError(f"--args is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise SpecError(f"--args {text}", expected="a JSON object, such as '{\"width\": 16}'")
    return value
