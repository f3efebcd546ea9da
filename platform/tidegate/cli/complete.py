"""`tidegate completion`: what a shell needs to complete commands, and the names that are completed.

Names are those of files under the home directory: looking them up must not take longer than typing them.
"""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem, get_completion_class

from tidegate import settings

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Completion of commands and names by the shell.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """What SHELL needs to complete commands and the names of runs, models and endpoints.

    \b
    bash: echo 'eval "$(tidegate completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(tidegate completion zsh)"' >> ~/.zshrc
    fish: tidegate completion fish > ~/.config/fish/completions/tidegate.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(click.get_current_context().find_root().command, {}, "tidegate", "_TIDEGATE_COMPLETE").source())


def _names(pattern: str) -> Completer:
    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        found = {path.stem if path.suffix == ".json" else path.name for path in settings.home().glob(pattern)}
        return [CompletionItem(name) for name in sorted(found) if name.startswith(begun) and name[0] not in "._"]

    return complete


def keys(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Ids of keys, and whose they are where the shell shows it."""
    from tidegate import keys
    from tidegate.errors import TidegateError

    try:
        found = keys.listed()
    except TidegateError:
        return []
    return [CompletionItem(key.id, help=key.tenant) for key in found if key.id.startswith(begun)]


runs, models, endpoints = _names("runs/*"), _names("artifacts/*"), _names("endpoints/*.json")
