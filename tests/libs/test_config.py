"""Configuration is read once, and all that is wrong with it is said at once."""

from dataclasses import dataclass

import pytest

from libs.config import ConfigError, load


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    dsn: str
    listen: str
    batch: int = 5
    share: float = 0.5
    loud: bool = False


def test_values_are_read_by_type_and_defaults_hold() -> None:
    environ = {"REENGAGE_DSN": "d", "REENGAGE_LISTEN": "l", "REENGAGE_BATCH": "7", "REENGAGE_LOUD": "true"}
    assert load(Sample, environ) == Sample(dsn="d", listen="l", batch=7, loud=True)


def test_everything_wrong_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load(Sample, {"REENGAGE_LISTEN": "", "REENGAGE_BATCH": "many", "REENGAGE_LOUD": "yes"})
    assert str(caught.value) == (
        "REENGAGE_DSN is missing; REENGAGE_LISTEN is missing; REENGAGE_BATCH: must be a number; "
        "REENGAGE_LOUD: must be true or false"
    )
