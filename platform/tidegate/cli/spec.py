"""`tidegate spec`: check a spec without running it."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group()
def spec() -> None:
    """Check run and endpoint specs."""


@spec.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> None:
    """Check run or endpoint specs; all mistakes are listed with their place."""
    from tidegate.errors import SpecError
    from tidegate.spec import document, run
    from tidegate.spec.endpoint import Endpoint

    failed = []
    for path in files:
        found = document.load_yaml(path)
        try:
            if isinstance(found, dict) and isinstance(found.get("model"), str):
                document.read(Endpoint, path)
            else:
                run.load(path)
        except SpecError as error:
            failed.append(str(error))
        else:
            click.echo(f"{path}: fine")
    if failed:
        raise SpecError("\n".join(failed))


@spec.command()
@click.option("--endpoint", is_flag=True, help="The schema of an endpoint instead of a run.")
def schema(endpoint: bool) -> None:
    """The JSON schema of a spec, for editors."""
    from tidegate.spec.endpoint import Endpoint
    from tidegate.spec.run import Spec

    click.echo(json.dumps((Endpoint if endpoint else Spec).model_json_schema(), indent=2))
