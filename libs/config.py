"""Configuration: one frozen dataclass a process, read once from the environment, all mistakes reported together."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

PREFIX = "REENGAGE_"
C = TypeVar("C")


class ConfigError(SystemExit):
    """An environment that does not fit; the message names every variable that is missing or wrong.

    Uncaught it ends the process with exit code 1 and the message alone: no traceback makes it clearer.
    """


def load(config: type[C], environ: Mapping[str, str] = os.environ) -> C:
    """Returns `config`, a dataclass of str, int, float and bool fields: `log_level` comes from `REENGAGE_LOG_LEVEL`.

    A field without a default is required. An empty variable counts as missing.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    types = get_type_hints(config)
    for field in fields(config):  # type: ignore[arg-type]
        name = PREFIX + field.name.upper()
        text = environ.get(name, "")
        if not text:
            if field.default is MISSING and field.default_factory is MISSING:
                problems.append(f"{name} is missing")
            continue
        try:
            values[field.name] = _parse(text, types[field.name])
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ConfigError("; ".join(problems))
    return config(**values)


def _parse(text: str, kind: type) -> str | int | float | bool:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("must be true or false")
        return text.lower() == "true"
    if kind is int or kind is float:
        try:
            return int(text) if kind is int else float(text)
        except ValueError:
            raise ValueError("must be a number") from None
    return text
