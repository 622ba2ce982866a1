"""A running tracker for the sample."""

from tests.cli.conftest import tracker_target

__all__ = ["tracker_target"]
