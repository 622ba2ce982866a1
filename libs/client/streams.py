"""Streams that are gone on with where they broke off."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any

import grpc

from libs.errors import Unavailable
from reengage.attribution.v1 import decision_pb2, reattribution_pb2, what_if_pb2
from reengage.attribution.v1.service_pb2_grpc import AttributionServiceStub

PAUSE_S = 0.5
"""Before a stream that broke off is gone on with."""


async def watch_decisions(
    channel: grpc.aio.Channel, request: decision_pb2.WatchDecisionsRequest, *, pause_s: float = PAUSE_S
) -> AsyncIterator[decision_pb2.WatchDecisionsResponse]:
    """Yields decisions as they are made, for ever; while the service is away it waits, and nothing is lost or doubled.

        request = WatchDecisionsRequest(app_id="shop", resume_token=stored)
        async for response in watch_decisions(channel, request):
            store(response.facts, response.resume_token)

    Store the token together with what you make of the facts: with it the next start goes on after them. Raises
    ServiceError when the very first call fails, or one for another reason than that the service is away.
    """
    async for response in _resumed(AttributionServiceStub(channel).WatchDecisions, request, pause_s):
        yield response


async def what_if(
    channel: grpc.aio.Channel, request: what_if_pb2.WhatIfRequest, *, pause_s: float = PAUSE_S
) -> AsyncIterator[what_if_pb2.WhatIfResponse]:
    """Yields the parts of a what-if, to the last one; it goes on after a crash of the service.

        async for part in what_if(channel, WhatIfRequest(app_id="shop", start_time=start, end_time=end)):
            for changed in part.changed:
                print(changed.before.tracker_id, changed.after.tracker_id)

    Raises ServiceError when the service is not there to begin with, or refuses.
    """
    stub: Any = AttributionServiceStub(channel)
    # The first part may take long; whether the service is there at all is known at once.
    await stub.ListReattributions(reattribution_pb2.ListReattributionsRequest(app_id=request.app_id, page_size=1))
    async for part in _resumed(stub.WhatIf, request, pause_s, has_begun=True):
        yield part


async def _resumed(
    method: Callable[[Any], AsyncIterable[Any]], request: Any, pause_s: float, *, has_begun: bool = False
) -> AsyncIterator[Any]:
    """Yields responses, after a break those that follow the last one; a response without a token is the last of all."""
    asked = type(request)()
    asked.CopyFrom(request)
    while True:
        try:
            async for response in method(asked):
                has_begun = True
                asked.resume_token = response.resume_token
                yield response
                if not response.resume_token:
                    return
        except Unavailable:
            if not has_begun:
                raise
        await asyncio.sleep(pause_s)
