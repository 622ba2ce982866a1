"""The parts of the service, put together: for its main, and for tests that replace the world around it."""

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from libs.broadcast import Broadcast
from libs.db import Pool
from libs.domain.snapshots import Follower
from libs.server import Face
from reengage.ingest.v1 import service_pb2
from reengage.ingest.v1.service_pb2_grpc import add_IngestServiceServicer_to_server
from services.ingest.app_rates import AppRates
from services.ingest.erasure import SETTLE_S, Eraser
from services.ingest.model import IngestSettings
from services.ingest.refusals import Refusals
from services.ingest.registrations import Registrations
from services.ingest.senders import admission
from services.ingest.service import IngestService
from services.ingest.storage.log import PAGE_BYTES, LogStore
from services.ingest.storage.rejected import RejectedStore
from services.ingest.storage.warned import WarnedStore
from services.ingest.warned import WarnedRecords
from services.ingest.writer import MAX_WAITING, Writer


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The service, ready to be served, and what it is made of."""

    face: Face
    loops: Mapping[str, Callable[[], Awaitable[None]]]
    log: LogStore
    rejected: RejectedStore
    warned: WarnedStore
    registrations: Registrations


def wire_parts(
    pool: Pool,
    settings: Follower[IngestSettings],
    *,
    register: Callable[[str, Collection[str]], Awaitable[object]],
    country_of: Callable[[str], str],
    service_key: str = "",
    page_bytes: int = PAGE_BYTES,
    max_waiting: int = MAX_WAITING,
    settle_s: float = SETTLE_S,
) -> Parts:
    """Returns the parts. `register` tells tracker the names of new events of an app, `country_of` that of an address.

    `service_key` is that of the suite's services, which may send for every app. `page_bytes` bounds a page of the log,
    `max_waiting` the records that wait to be written, and `settle_s` is the time after which no refusal or warning is
    on its way any more.
    """
    log, rejected, warned_store = LogStore(pool, page_bytes=page_bytes), RejectedStore(pool), WarnedStore(pool)
    grown = Broadcast()
    writer = Writer(log.append, grown.notify, max_waiting=max_waiting)
    refusals, warned = Refusals(rejected.keep), WarnedRecords(warned_store.keep)
    registrations = Registrations(register)
    service = IngestService(
        settings=settings,
        writer=writer,
        refusals=refusals,
        warned=warned,
        registrations=registrations,
        rates=AppRates(time.monotonic),
        log=log,
        rejected=rejected,
        warned_store=warned_store,
        eraser=Eraser(log, rejected, warned_store, settle_s=settle_s),
        grown=grown,
        country_of=country_of,
    )
    descriptor = service_pb2.DESCRIPTOR.services_by_name["IngestService"]
    return Parts(
        face=Face.of(descriptor, add_IngestServiceServicer_to_server, service, admit=admission(service_key)),
        loops={
            "settings": settings.run,
            "writer": writer.run,
            "refusals": refusals.run,
            "warned": warned.run,
            "registrations": registrations.run,
        },
        log=log,
        rejected=rejected,
        warned=warned_store,
        registrations=registrations,
    )
