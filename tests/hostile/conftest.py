"""Attribution as it runs, for the tests against hostile input."""

from tests.attribution.conftest import (  # noqa: F401
    following_config,
    hand_over_s,
    pool,
    start_world,
    what_if_config,
    world,
)
