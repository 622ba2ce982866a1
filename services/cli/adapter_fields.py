"""The fields of postbacks' adapters on the command line: which there are, and of what type, the server tells."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from reengage.postback.v1.adapter_pb2 import Adapter, AdapterField
from reengage.postback.v1.configuration_pb2 import Configuration
from services.cli.console import WRONG, fail, read
from services.cli.fields import MisfitError, nearest
from services.cli.kinds import CONFIGURATION
from services.cli.resource_commands import fill

_FIELDS, _SECRETS = "adapter_fields.", "secrets."


def adapter_named(assignments: list[str]) -> str:
    """Returns the adapter that the command line names; empty when it names none."""
    return next((each.partition("=")[2] for each in assignments if each.startswith("adapter=")), "")


def fill_configuration(assignments: list[str], adapter: Adapter, *key: str) -> tuple[Configuration, list[str]]:
    """Returns a configuration with the fields of the command line, and their paths.

    A field of the adapter may be written without `adapter_fields.` or `secrets.`, where no other field has its name; a
    secret may be read from a file: `token=@FILE`. Ends the command naming all that do not fit.
    """
    described = {field.name: field for field in adapter.fields}
    own = [each for each in assignments if _entry(each, described) is None]
    configuration, paths = fill(CONFIGURATION, own, *key) if own else (Configuration(configuration_id="".join(key)), [])
    problems = []
    for entry in filter(None, (_entry(each, described) for each in assignments)):
        path, _, text = entry.partition("=")
        paths.append(path)
        try:
            _set(configuration, path, text, adapter, described)
        except MisfitError as misfit:
            problems.append(f"{path}: {misfit}")
    if problems:
        fail(*problems, code=WRONG)
    return configuration, paths


def _entry(assignment: str, described: Mapping[str, AdapterField]) -> str | None:
    """Returns an assignment to a field or a secret of the adapter with its whole path; None when it is another one."""
    name, separator, _ = assignment.partition("=")
    if not separator or name.startswith((_FIELDS, _SECRETS)):
        return assignment if separator else None
    if name in Configuration.DESCRIPTOR.fields_by_name or name not in described:
        return None
    is_secret = described[name].type == AdapterField.TYPE_SECRET
    return f"{_SECRETS if is_secret else _FIELDS}{assignment}"


def _set(
    configuration: Configuration, path: str, text: str, adapter: Adapter, described: Mapping[str, AdapterField]
) -> None:
    """Sets one field or secret of the adapter; an empty text sets nothing: then it is cleared. Raises MisfitError."""
    name = path.partition(".")[2]
    if path.startswith(_SECRETS):
        if text:
            configuration.secrets[name] = read(Path(text[1:])).strip() if text.startswith("@") else text
        return
    names = [field.name for field in adapter.fields if field.type != AdapterField.TYPE_SECRET]
    if name not in names:
        raise MisfitError(f"adapter {adapter.name} has {', '.join(names)}{nearest(name, names)}")
    if text:
        parse = _PARSERS.get(described[name].type, str)
        configuration.adapter_fields[name] = parse(text)


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise MisfitError("should be true or false")
    return text.lower() == "true"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MisfitError("should be a number") from None


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _headers(text: str) -> dict[str, str]:
    return {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in _list(text))}


_PARSERS: dict[int, Callable[[str], Any]] = {
    AdapterField.TYPE_FLAG: _flag,
    AdapterField.TYPE_NUMBER: _number,
    AdapterField.TYPE_LIST: _list,
    AdapterField.TYPE_HEADERS: _headers,
}
