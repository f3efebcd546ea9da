"""`tidegate`: the commands, and how their errors are shown."""

from __future__ import annotations

import sys

import click

from tidegate import settings
from tidegate.cli import capacity, cluster, endpoints, models, runs, spec
from tidegate.errors import StoppedError, TidegateError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tidegate", message="tidegate %(version)s")
def tidegate() -> None:
    """Train models and serve them on one Ray cluster.

    Start with: tidegate up, then: tidegate train SPEC.
    """


for command in (
    cluster.up,
    cluster.down,
    cluster.status,
    cluster.env,
    spec.spec,
    runs.train,
    runs.runs,
    runs.resize,
    runs.pause,
    runs.resume,
    runs.stop,
    models.models,
    capacity.capacity,
    endpoints.deploy,
    endpoints.endpoints,
    endpoints.predict,
):
    tidegate.add_command(command)


def main() -> None:
    """Run a command; errors are one line on stderr, with the exit code of the error."""
    shows_traceback = False
    try:
        shows_traceback = settings.TRACEBACK.flag()
        tidegate(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as error:
        # Click has put its own error around the interrupt, which may say at which step the run stopped.
        click.echo(str(error.__cause__ or error) or "interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        if shows_traceback:
            raise
        # A run that stopped as it was asked to is no error, but nothing that a script should go on from either.
        click.echo(_line(error) if isinstance(_cause(error), StoppedError) else f"error: {_line(error)}", err=True)
        sys.exit(getattr(_cause(error), "exit_code", 1))


def _cause(error: BaseException) -> BaseException:
    """What a task of Ray raised, without Ray's wrapping; any other error as it is."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def _line(error: BaseException) -> str:
    cause = _cause(error)
    if isinstance(cause, TidegateError):
        return str(cause)
    lines = str(cause).strip().splitlines()
    what = f"{type(cause).__name__}: {lines[-1]}" if lines else type(cause).__name__
    return f"{what} (TIDEGATE_TRACEBACK=1 shows where)"
