"""Claims that no honest network makes: the conversion is decided all the same, and so are those after it."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from reengage.attribution.v1 import explanation_pb2
from reengage.postback.v1 import claim_pb2
from tests.attribution.conftest import (  # noqa: F401  # fixtures
    APP,
    StartWorld,
    claimed,
    event,
    following_config,
    hand_over_s,
    start_world,
    what_if_config,
)
from tests.conftest import Database

DEVICE = {"adid": "cdda802e-fb9c-47ad-9866-0794d394c912"}
IMPOSSIBLE = {
    "the year 1": Timestamp(seconds=-62_135_596_800),
    "the year 1969": Timestamp(seconds=-1),
    "the year 3000": Timestamp(seconds=32_503_680_000),
    "the year 9999": Timestamp(seconds=253_402_300_799, nanos=999_999_999),
    "2^62 s before": Timestamp(seconds=-(2**62)),
    "2^62 s after": Timestamp(seconds=2**62),
    "2^63 s after": Timestamp(seconds=2**63 - 1),
    "the year 10000": Timestamp(seconds=253_402_300_800),
    "negative nanoseconds": Timestamp(seconds=3600, nanos=-(2**31)),
    "nanoseconds beyond a second": Timestamp(seconds=3600, nanos=2**31 - 1),
}
FAR = {
    "none": Timestamp(),
    "the end of 2999": Timestamp(seconds=32_503_679_999, nanos=999_999_999),
}
NAMES = {"a megabyte": "re " * 350_000, "NUL": "re\0re", "no tracker's": "\u202e\x1b"}


def of_time(time: Timestamp) -> claim_pb2.ClaimAnswer:
    answer = claimed("acme", 0)
    answer.claim.engagement_time.CopyFrom(time)
    return answer


ANSWERS = {
    **{f"a time: {name}": of_time(time) for name, time in (IMPOSSIBLE | FAR).items()},
    **{f"a name: {name}": claimed("acme", 0, campaign_name=text) for name, text in NAMES.items()},
    "a network that nobody asked": claimed("\0", 0),
    "a state that is none": claim_pb2.ClaimAnswer(network_id="acme", state=99),  # type: ignore[arg-type]
    "a reason that is none": claim_pb2.ClaimAnswer(network_id="acme", state=4, reason=99),  # type: ignore[arg-type]
    "a detail with NUL": claim_pb2.ClaimAnswer(network_id="acme", state=4, detail="\0" * 5000),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_what_is_claimed_is_decided(
    database: Database,
    start_world: StartWorld,  # noqa: F811
    answer: claim_pb2.ClaimAnswer,
) -> None:
    async with start_world(database) as world:
        await world.received.trigger(("Purchase", "acme"))
        await world.received.answer("odd", answer)
        async with world.worker(claim_wait_s=0.5):
            await world.send(event(7200, DEVICE, record_id="odd"), event(7201, DEVICE, record_id="after"))
            assert [one.conversion_id for one in await world.decided("odd", "after")] == ["odd", "after"]
        assert not await world.pool.fetchval("SELECT count(*) FROM quarantined")


@pytest.mark.parametrize("time", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
async def test_a_claim_of_an_impossible_time_is_no_answer(
    database: Database,
    start_world: StartWorld,  # noqa: F811
    time: Timestamp,
) -> None:
    """E4: the next best wins, and explain says why the claim did not count."""
    async with start_world(database) as world:
        await world.received.trigger(("Purchase", "acme"))
        await world.received.answer("odd", of_time(time))
        async with world.worker(claim_wait_s=0.5):
            await world.send(event(7200, DEVICE, record_id="odd"))
            (decision,) = await world.decided("odd")
            request = explanation_pb2.ExplainDecisionRequest(app_id=APP, conversion_id="odd")
            explained = await world.attribution.ExplainDecision(request)
    assert list(decision.claims_unavailable) == ["acme"]
    assert not decision.candidates
    assert (
        "acme was asked, and its answer could not be used (its claim names a time at which nobody engaged). "
        "This was decided without its answer." in explained.sentences
    )
