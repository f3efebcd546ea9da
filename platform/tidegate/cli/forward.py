"""Commands that are run on a cluster which only its Jobs API reaches."""

from __future__ import annotations

import click

RAW = {"ignore_unknown_options": True, "allow_extra_args": True}


def command(name: str) -> click.Command:
    """A stand-in for the command `name` that takes any words and has a job carry them out."""

    @click.command(name, context_settings=RAW, add_help_option=False)
    @click.argument("words", nargs=-1, type=click.UNPROCESSED)
    def forwarded(words: tuple[str, ...]) -> None:
        from tidegate import connection

        jobs = connection.far()
        assert jobs is not None
        if name == "resume":
            _resume(words)
        else:
            jobs.command([name, *words], click.echo)

    return forwarded


def _resume(words: tuple[str, ...]) -> None:
    """A run that goes on has its driver there: Ctrl-C leaves it."""
    from tidegate import connection
    from tidegate.told import left_alone

    jobs = connection.far()
    assert jobs is not None
    run = next((word for word in words if not word.startswith("-")), "")
    try:
        jobs.follow(jobs.submit(["cli", "resume", *words], files={}, run=run), click.echo)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(left_alone(run)) from None
