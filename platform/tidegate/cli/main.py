"""`tidegate`: the commands, and how their errors are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from tidegate import disk, settings
from tidegate.cli import (
    batch,
    capacity,
    cluster,
    complete,
    doctor,
    endpoints,
    forward,
    keys,
    logs,
    models,
    predict,
    runs,
    spec,
)
from tidegate.errors import StoppedError, TidegateError

FORWARDED = ("status", "runs", "logs", "resize", "pause", "resume", "stop", "models", "endpoints", "capacity")
"""Commands that a job runs where the cluster is reached through its Jobs API only."""


class Shell(click.Group):
    """The commands; those that work on a cluster far away are run there."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(context, args)
        if name in FORWARDED and not {"-h", "--help"} & set(rest):
            from tidegate import connection

            if connection.is_far():
                return name, forward.command(name), rest
        return name, command, rest


@click.group(cls=Shell, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tidegate", message="tidegate %(version)s")
@click.option(
    "--address",
    metavar="ADDRESS",
    # While the line is parsed: where a command is carried out depends on it.
    is_eager=True,
    expose_value=False,
    callback=lambda context, option, address: _use(address),
    help="The cluster: host:port, or http://host:port of its dashboard. Default: RAY_ADDRESS, or that of tidegate up.",
)
def tidegate() -> None:
    """Train models and serve them on one Ray cluster.

    Start with: tidegate up, then: tidegate train SPEC. If something is off: tidegate doctor.
    """


def _use(address: str | None) -> None:
    if address:
        os.environ["RAY_ADDRESS"] = address


for command in (
    cluster.up,
    cluster.down,
    cluster.status,
    cluster.env,
    doctor.doctor,
    spec.spec,
    runs.train,
    runs.runs,
    logs.logs,
    runs.resize,
    runs.pause,
    runs.resume,
    runs.stop,
    models.models,
    models.register,
    capacity.capacity,
    endpoints.deploy,
    endpoints.endpoints,
    predict.predict,
    batch.batch,
    keys.keys,
    complete.completion,
):
    tidegate.add_command(command)


def main(
    run: Callable[[], object] = lambda: tidegate(standalone_mode=False),
    on_error: Callable[[BaseException], None] = lambda error: None,
) -> None:
    """Run a command; errors are one line on stderr, with the exit code of the error.

    `on_error` hears of an error before it is shown.
    """
    shows_traceback = False
    try:
        shows_traceback = settings.TRACEBACK.flag()
        # Click answers with the exit code that a command chose, or with what the command returned.
        code = run()
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as error:
        # Click has put its own error around the interrupt, which may say at which step the run stopped.
        click.echo(str(error.__cause__ or error) or "interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        on_error(_cause(error))
        if shows_traceback:
            raise
        # A run that stopped as it was asked to is no error, but nothing that a script should go on from either.
        click.echo(_line(error) if isinstance(_cause(error), StoppedError) else f"error: {_line(error)}", err=True)
        sys.exit(getattr(_cause(error), "exit_code", 1))


def _cause(error: BaseException) -> BaseException:
    """What a task of Ray raised, without Ray's wrapping, and what a disk's refusal means; any other error as it is."""
    cause = getattr(error, "cause", None)
    return disk.refusal(error) or (cause if isinstance(cause, BaseException) else error)


def _line(error: BaseException) -> str:
    cause = _cause(error)
    if isinstance(cause, TidegateError):
        return str(cause)
    lines = str(cause).strip().splitlines()
    what = f"{type(cause).__name__}: {lines[-1]}" if lines else type(cause).__name__
    return f"{what} (TIDEGATE_TRACEBACK=1 shows where)"
