"""Commands that ask attribution, as they are typed."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from reengage.attribution.v1 import decision_pb2, erasure_pb2, explanation_pb2, offer_pb2, quarantine_pb2, shared_id_pb2
from reengage.attribution.v1 import service_pb2_grpc as attribution_grpc
from services.cli.app import app

Explanation = explanation_pb2.ExplainDecisionResponse
DECIDED = decision_pb2.Decision(
    app_id="shop",
    conversion_id="e1",
    version=2,
    event_name="Purchase",
    outcome=decision_pb2.OUTCOME_REENGAGED,
    tracker_id="re",
    network_id="acme",
    engagement_id="k1",
)
EXPLAINED = Explanation(
    state=Explanation.STATE_DECIDED, decision=DECIDED, summary="Why.", sentences=["Because."], reattribution_id="fix-7"
)
REFUSED = Explanation(
    state=Explanation.STATE_REFUSED, summary="It was refused [so].", sentences=["event_name is missing."]
)


class Scripted(attribution_grpc.AttributionServiceServicer):
    """An attribution that explains as told, streams three facts with a break, knows no device, and offers nothing."""

    def __init__(self, answer: explanation_pb2.ExplainDecisionResponse = EXPLAINED) -> None:
        self.answer = answer
        self.explained: list[explanation_pb2.ExplainDecisionRequest] = []
        self.watched: list[decision_pb2.WatchDecisionsRequest] = []
        self.quarantine: list[Any] = []

    async def ExplainDecision(
        self, request: explanation_pb2.ExplainDecisionRequest, context: Any
    ) -> explanation_pb2.ExplainDecisionResponse:
        self.explained.append(request)
        return self.answer

    async def ForgetDevice(
        self, request: erasure_pb2.ForgetDeviceRequest, context: Any
    ) -> erasure_pb2.ForgetDeviceResponse:
        done = erasure_pb2.Erasure(app_id=request.app_id, state=erasure_pb2.Erasure.STATE_DONE)
        return erasure_pb2.ForgetDeviceResponse(erasure=done)

    async def ListSharedIds(
        self, request: shared_id_pb2.ListSharedIdsRequest, context: Any
    ) -> shared_id_pb2.ListSharedIdsResponse:
        found = [("custom", "guest [1]", 31), ("android_id", "build", 100)] if request.app_id == "shop" else []
        response = shared_id_pb2.ListSharedIdsResponse()
        for kind, value, count in found:
            shared = response.shared_ids.add(kind=kind, value=value, advertising_id_count=count)
            shared.share_time.FromJsonString("2026-03-01T12:00:00Z")
        return response

    async def ListQuarantined(
        self, request: quarantine_pb2.ListQuarantinedRequest, context: Any
    ) -> quarantine_pb2.ListQuarantinedResponse:
        response = quarantine_pb2.ListQuarantinedResponse()
        if request.app_id == "shop":
            response.items.add(
                item_id="5.17",
                app_id="shop",
                work=quarantine_pb2.QUARANTINE_WORK_LATE_ARRIVAL,
                reason=quarantine_pb2.QUARANTINE_REASON_TIMED_OUT,
                record_id="k[1]",
                error="TimeoutError: ",
                try_count=3,
            )
        return response

    async def RetryQuarantined(
        self, request: quarantine_pb2.RetryQuarantinedRequest, context: Any
    ) -> quarantine_pb2.RetryQuarantinedResponse:
        self.quarantine.append(request)
        return quarantine_pb2.RetryQuarantinedResponse(found_count=2)

    async def DropQuarantined(
        self, request: quarantine_pb2.DropQuarantinedRequest, context: Any
    ) -> quarantine_pb2.DropQuarantinedResponse:
        self.quarantine.append(request)
        return quarantine_pb2.DropQuarantinedResponse(dropped_count=1)

    async def SendOfferedPostbacks(
        self, request: offer_pb2.SendOfferedPostbacksRequest, context: Any
    ) -> offer_pb2.SendOfferedPostbacksResponse:
        return offer_pb2.SendOfferedPostbacksResponse()

    async def WatchDecisions(
        self, request: decision_pb2.WatchDecisionsRequest, context: Any
    ) -> AsyncIterator[decision_pb2.WatchDecisionsResponse]:
        self.watched.append(request)
        for number, sign in ((1, 1), (2, -1), (3, 1)):
            if not request.resume_token or number > int(request.resume_token):
                fact = decision_pb2.Fact(sign=sign, decision=DECIDED)
                fact.decision.conversion_id = f"e{number}"
                yield decision_pb2.WatchDecisionsResponse(facts=[fact], resume_token=str(number))
            if number == 1 and not request.resume_token:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "STOPPING")
        await asyncio.Event().wait()


@asynccontextmanager
async def serve(scripted: Scripted) -> AsyncIterator[str]:
    server = grpc.aio.server()
    attribution_grpc.add_AttributionServiceServicer_to_server(scripted, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def run(scripted: Scripted, *arguments: str) -> tuple[int, str]:
    async with serve(scripted) as target:
        result = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--target", target])
    return result.exit_code, result.output


async def test_explain_by_record() -> None:
    scripted = Scripted()  # type: ignore[abstract]  # only these methods are called
    code, output = await run(scripted, "explain", "shop", "e1")
    assert code == 0
    assert [request.conversion_id for request in scripted.explained] == ["e1"]
    assert all(word in output for word in ("REENGAGED", "Why.", "Because.", "fix-7", "version"))


async def test_explain_by_device_and_time() -> None:
    scripted = Scripted()  # type: ignore[abstract]
    code, output = await run(scripted, "explain", "shop", "--device", "d1", "--at", "2026-03-01T12:00:00Z", "--json")
    assert code == 0
    assert json.loads(output)["decision"]["conversion_id"] == "e1"
    [request] = scripted.explained
    assert (request.device_id, request.time.ToJsonString()) == ("d1", "2026-03-01T12:00:00Z")


async def test_shared_ids_are_listed_for_people_and_programs() -> None:
    code, output = await run(Scripted(), "shared-ids", "shop")  # type: ignore[abstract]
    assert code == 0
    assert all(word in output for word in ("custom", "guest [1]", "31", "100 or more", "2026-03-01"))
    code, output = await run(Scripted(), "shared-ids", "shop", "--limit", "1", "--json")  # type: ignore[abstract]
    assert code == 0
    assert [each["advertising_id_count"] for each in json.loads(output)["shared_ids"]] == [31]
    code, output = await run(Scripted(), "shared-ids", "quiet")  # type: ignore[abstract]
    assert (code, output.strip()) == (0, "Shared ids of quiet: none")


async def test_what_was_set_aside_is_listed_tried_again_and_dropped() -> None:
    scripted = Scripted()  # type: ignore[abstract]
    code, output = await run(scripted, "quarantine", "list", "--app", "shop", "--work", "late-arrival")
    assert code == 0
    assert all(word in output for word in ("5.17", "late-arrival", "timed-out", "k[1]", "TimeoutError", "3"))
    code, output = await run(scripted, "quarantine", "list")
    assert (code, output.strip()) == (0, "Set aside: nothing")
    code, output = await run(scripted, "quarantine", "retry", "5.17", "5.18", "--because", "timed-out")
    assert (code, output.strip()) == (0, "2 to be tried again")
    code, output = await run(scripted, "quarantine", "drop", "--app", "shop", "--reason", "a test's")
    assert (code, output.strip()) == (0, "1 dropped")
    tried, dropped = scripted.quarantine
    assert tried.filter == quarantine_pb2.QuarantineFilter(
        item_ids=["5.17", "5.18"], reason=quarantine_pb2.QUARANTINE_REASON_TIMED_OUT
    )
    assert (dropped.filter, dropped.reason) == (quarantine_pb2.QuarantineFilter(app_id="shop"), "a test's")


@pytest.mark.parametrize(
    "arguments",
    [("retry",), ("drop", "--reason", "x"), ("drop", "--app", "shop"), ("list", "--work", "nothing")],
    ids=["retry nothing", "drop nothing", "drop for no reason", "no such work"],
)
async def test_what_is_meant_of_the_quarantine_must_be_said(arguments: tuple[str, ...]) -> None:
    code, _ = await run(Scripted(), "quarantine", *arguments)  # type: ignore[abstract]
    assert code == 2


@pytest.mark.parametrize("text", ["2026-03-01", "2026-03-01T00:00", "2026-03-01 02:00+02:00", "2026-03-01T00:00:00Z"])
async def test_a_time_takes_many_forms(text: str) -> None:
    scripted = Scripted()  # type: ignore[abstract]
    code, _ = await run(scripted, "explain", "shop", "--device", "d1", "--at", text)
    assert code == 0
    assert [request.time.ToJsonString() for request in scripted.explained] == ["2026-03-01T00:00:00Z"]


async def test_what_is_not_decided_is_explained_without_a_table() -> None:
    code, output = await run(Scripted(REFUSED), "explain", "shop", "e1")  # type: ignore[abstract]
    assert code == 0
    assert output.split("\n")[1:4] == ["REFUSED", "It was refused [so].", "  • event_name is missing."]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["forget", "shop", "typo"], "Nothing was there under this id of app shop."),
        (["reattributions", "send", "shop", "r6"], "r6 has no postback left to send."),
    ],
)
async def test_what_was_in_vain_is_said_so(arguments: list[str], said: str) -> None:
    code, output = await run(Scripted(), *arguments)  # type: ignore[abstract]
    assert (code, output.splitlines()[-1]) == (0, said)


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "shop"],
        ["explain", "shop", "e1", "--device", "d1", "--at", "2026-03-01"],
        ["explain", "shop", "--device", "d1"],
        ["explain", "shop", "--device", "d1", "--at", "yesterday"],
        ["watch", "--since", "2026-03-01", "--from-now"],
        ["watch", "--since", "yesterday"],
        ["call", "attribution/Nothing"],
        ["call", "attribution/GetDecision", "{"],
    ],
)
def test_what_does_not_fit_is_a_wrong_command_line(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["for people", "JSON"])
async def test_watch_goes_on_after_a_break_and_ends_with_ctrl_c(form: list[str]) -> None:
    scripted = Scripted()  # type: ignore[abstract]
    async with serve(scripted) as target:
        arguments = ("-m", "services.cli", "watch", "--app", "shop", "--target", target, *form)
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE)
        assert process.stdout is not None
        lines = [(await process.stdout.readline()).decode() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert [request.resume_token for request in scripted.watched] == ["", "1"]
    assert {request.app_id for request in scripted.watched} == {"shop"}
    if form:
        assert [json.loads(line)["sign"] for line in lines] == [1, -1, 1]
    else:
        assert [line[20:].split()[:5] for line in lines] == [
            [sign, "REENGAGED", "shop", "Purchase", f"e{number}"] for number, sign in enumerate("+-+", start=1)
        ]
        assert [bool(line[:20].strip()) for line in lines] == [True, False, True], "of what was, no time"
