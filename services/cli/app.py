"""The command `reengage`.

Exit codes: 0 done; 1 it failed, or a check did not hold; 2 the command line or a file does not fit; 130 interrupted.
A command is a module of `services.cli.commands`, which is imported when the command is used; there, too, modules are
imported where they are needed: a command answers in less than 0.4 s.
"""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

PANELS = {
    "Settings": (
        "accounts", "apps", "events", "networks", "network-settings", "san-accounts", "agencies", "campaigns",
        "segments", "trackers", "traffic-rules", "keys", "apply",
    ),
    "Records": ("records",),
    "Decisions": (
        "explain", "watch", "what-if", "reattribute", "reattributions", "shared-ids", "forget", "erasures",
        "quarantine",
    ),
    "Postbacks": ("postbacks", "deliveries"),
    "Services": ("call", "serve", "migrate", "simulate"),
}  # fmt: skip
"""The commands, as the help shows them."""


class _OnDemand(TyperCommand):
    """A command that is imported and built when it is used; the help needs only its text."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Returns the context of the real command, which the real command is then invoked with."""
        assert self.name is not None
        command = typer.main.get_command(_module(self.name).app)
        command.name = self.name
        return command.make_context(info_name, args, parent=parent, **extra)


class _Commands(TyperGroup):
    """The commands of all modules."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for names in PANELS.values():
            for name in names:
                self.add_command(_OnDemand(name, callback=None))

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  # as it is called
        """Writes the commands with their texts, by panel."""
        for panel, names in PANELS.items():
            with formatter.section(panel):
                formatter.write_dl([(name, _summary(name)) for name in names])


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _reengage() -> None:
    """Configures Reengage, asks it, and runs its services.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """


def _summary(command: str) -> str:
    """Returns the first line of a command's help."""
    app = _module(command).app
    text: str = app.info.help or app.registered_commands[0].callback.__doc__
    return text.strip().partition("\n")[0]


def _module(command: str) -> Any:
    return import_module(f"services.cli.commands.{command.replace('-', '_')}")
