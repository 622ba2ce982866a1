"""The ends, questions and output of commands. Tables are in `tables`; nothing here imports anything heavy."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

FAILED, WRONG, INTERRUPTED = 1, 2, 130
"""Exit codes: it failed, or a check did not hold; the command line or a file does not fit; a signal ended it."""


def fail(*lines: str, code: int = FAILED) -> NoReturn:
    """Ends the command, saying why on the error stream."""
    typer.echo("\n".join(lines), err=True)
    raise typer.Exit(code)


def confirmed(question: str) -> bool:
    """Returns whether the person agrees. Ends the command when nobody answers."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        fail("\nNothing was changed: nobody answered. --yes does not ask.")


def read(path: Path) -> str:
    """Returns the text of a file. Ends the command when it cannot be read."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        fail(f"{path}: byte {error.start} is not UTF-8", code=WRONG)


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file. Ends the command when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        fail(f"{path}: {error.strerror}", code=WRONG)


def write(output: Path | None, content: bytes) -> None:
    """Writes to a file, or to standard output. Ends the command when the file cannot be written."""
    if output is None:
        typer.echo(content, nl=False)
        return
    try:
        output.write_bytes(content)
    except OSError as error:
        fail(f"{output}: {error.strerror}")


def to_json(message: "Message", *, indent: int | None = None) -> str:
    """Returns a message as JSON with the field names of the protos."""
    from google.protobuf import json_format

    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=indent, ensure_ascii=False)


def print_json(message: "Message", *, indent: int | None = 2) -> None:
    """Prints a message as JSON; in one line if `indent` is None."""
    typer.echo(to_json(message, indent=indent))


def lists_json(**lists: "Iterable[Message]") -> str:
    """Returns lists of messages as one object of JSON, for programs."""
    from google.protobuf import json_format

    plain = {
        name: [json_format.MessageToDict(each, preserving_proto_field_name=True) for each in messages]
        for name, messages in lists.items()
    }
    return json.dumps(plain, indent=2, ensure_ascii=False)
