"""The fuzz of ingest, attribution and postback, in short; `make fuzz` is the long form."""

from pathlib import Path

import pytest

from tests.hostile.fuzz import fuzz
from tests.hostile.fuzz_records import Records

RECORDS, SEED = 2_000, 1


def test_a_seed_gives_the_same_records() -> None:
    first, again, other = (Records(seed, 1_800_000_000_000_000, devices=50).batch(500) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.e2e
@pytest.mark.timeout(400)
async def test_what_is_accepted_is_decided_and_rendered_whatever_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REENGAGE_CLAIM_WAIT_S", "2")
    found = await fuzz(tmp_path, count=RECORDS, seed=SEED, announce=lambda _: None)
    assert not found.problems, found.seed
    assert found.statuses["accepted"] > RECORDS // 2
    assert found.statuses["rejected"] > RECORDS // 20
    assert found.deliveries["delivered "] > RECORDS // 10
