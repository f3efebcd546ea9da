"""`tidegate spec`: a first spec for data that is there, and a check of a spec without running it."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group()
def spec() -> None:
    """Write a first spec; check run and endpoint specs."""


@spec.command()
@click.argument("data")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Default: NAME.yaml.")
@click.option("--target", metavar="COLUMN", help="What is to be predicted. Guessed without it.")
@click.option("--name", help="The spec's name. Default: from the data's.")
def init(data: str, output: Path | None, target: str | None, name: str | None) -> None:
    """Write a spec for DATA that trains as it stands.

    DATA is a file, a folder, a quoted pattern or a URI: CSV, Parquet, JSON lines, or a folder for each class with
    images, sounds or .txt files in it. A sample of it is looked at. What was guessed, and why a column is left out,
    stands in comments. Texts are written where --target names a column of them.
    """
    from tidegate import draft
    from tidegate.data.sources import shown
    from tidegate.errors import SpecError

    name = name or draft.name_of(data)
    draft.check_name(name)
    output = output or Path(f"{name}.yaml")
    draft.check_output(output)
    made = draft.draft(data, output.parent, target=target, name=name)
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(made.text)
    except OSError as error:
        raise SpecError(f"{output} cannot be written: {error.strerror}", remedy="write it elsewhere with -o") from None
    asked = made.spec.data
    guessed = " (guessed)" if made.is_target_guessed else ""
    count = "1 input" if len(asked.inputs) == 1 else f"{len(asked.inputs)} inputs"
    target = f"{asked.target.column!r}{guessed}"
    click.echo(f"{output}: from {count} of {shown(data)} to {target}, model type {made.spec.model.type}")
    if made.left_out:
        names = [name or "a column without a name" for name in made.left_out]
        click.echo(f"left out, for reasons in the file: {', '.join(names)}")
    click.echo(f"read it, change what is wrong, and then: tidegate train {output}")


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
