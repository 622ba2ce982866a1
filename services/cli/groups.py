"""Groups of commands, in one style: plain text, as rich help would double the time that a command takes to start."""

import typer


def new_group(text: str) -> typer.Typer:
    """Returns an empty group of commands with this help."""
    return typer.Typer(help=text, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


def single() -> typer.Typer:
    """Returns a place for the one command of a module."""
    return typer.Typer(add_completion=False, rich_markup_mode=None)
