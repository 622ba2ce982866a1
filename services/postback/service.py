"""The gRPC faces: parse, ask, answer."""

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import Counter

from libs.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Violation, Violations
from libs.pages import decode_token, encode_token, page_size
from libs.vault import Vault
from reengage.attribution.v1 import offer_pb2
from reengage.postback.v1 import claim_pb2, configuration_pb2, conversion_pb2, delivery_pb2, service_pb2_grpc
from services.postback.adapters.adapter import Stamp
from services.postback.claims import Claims, note_late
from services.postback.configurations import Catalog
from services.postback.delivery import delivery_id, new_delivery, requests
from services.postback.guard import Guard
from services.postback.model import Configuration, NewDelivery, State, Status
from services.postback.sample import sample_conversion
from services.postback.selection import fits, once_a_day, wants, wants_claim
from services.postback.store import Store, StoredAttempt, StoredConfiguration, StoredDelivery
from services.postback.wire import (
    OUTPUT_ONLY,
    check,
    compiled,
    complete,
    from_stored,
    public,
    to_stored,
)

MOST_CONVERSIONS = 1000
MOST_REPLAYED = 10_000
CLAIM_WAIT_S, LONGEST_CLAIM_WAIT_S = 1.0, 10.0
_UNSENT = Stamp(nonce="preview", time_s=0)  # what it goes into is masked
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STATES = {delivery_pb2.Delivery.State.Value(f"STATE_{state}"): state for state in State}
_IMMUTABLE = ("configuration_id", "app_id", "network_id", "trigger")

_created = Counter("postback_deliveries_created_total", "Deliveries made of conversions.")
_handed_over = Counter("postback_conversions_total", "Conversions handed over, repeats too.")


class PostbackConfigService(service_pb2_grpc.PostbackConfigServiceServicer):
    """Keeps configurations; what each method does says postback.proto."""

    def __init__(self, *, store: Store, catalog: Catalog, vault: Vault, guard: Guard) -> None:
        self._store, self._catalog, self._vault, self._guard = store, catalog, vault, guard

    async def CreateConfiguration(
        self, request: configuration_pb2.CreateConfigurationRequest, context: Any
    ) -> configuration_pb2.CreateConfigurationResponse:
        wanted = request.configuration
        wanted.configuration_id = wanted.configuration_id or uuid4().hex
        complete(wanted)
        check(wanted, self._guard)
        status, settings, secrets = to_stored(wanted, self._vault)
        created = await self._store.create_configuration(
            configuration_id=wanted.configuration_id,
            app_id=wanted.app_id,
            status=status,
            settings=settings,
            secrets=secrets,
        )
        stored = await self._stored(wanted.configuration_id)
        message = from_stored(stored, self._vault)
        if not created and (stored.app_id, stored.status, stored.settings, dict(message.secrets)) != (
            wanted.app_id,
            status,
            settings,
            dict(wanted.secrets),
        ):
            raise AlreadyExists(
                "CONFIGURATION_EXISTS",
                "another configuration has this id",
                configuration_id=wanted.configuration_id,
            )
        await self._catalog.refresh()
        return configuration_pb2.CreateConfigurationResponse(configuration=public(message))

    async def GetConfiguration(
        self, request: configuration_pb2.GetConfigurationRequest, context: Any
    ) -> configuration_pb2.GetConfigurationResponse:
        stored = await self._stored(request.configuration_id)
        return configuration_pb2.GetConfigurationResponse(configuration=public(from_stored(stored, self._vault)))

    async def ListConfigurations(
        self, request: configuration_pb2.ListConfigurationsRequest, context: Any
    ) -> configuration_pb2.ListConfigurationsResponse:
        violations = Violations()
        size = page_size(request.page_size, violations)
        after = decode_token(request.page_token, (str,), violations)
        _require(violations, "app_id", request.app_id)
        violations.check()
        found = await self._store.list_configurations(
            app_id=request.app_id,
            after=str(after[0]) if after else "",
            limit=size + 1,
            archived=request.show_archived,
        )
        page = found[:size]
        return configuration_pb2.ListConfigurationsResponse(
            configurations=[public(from_stored(stored, self._vault)) for stored in page],
            next_page_token=encode_token(page[-1].configuration_id) if len(found) > size else "",
        )

    async def UpdateConfiguration(
        self, request: configuration_pb2.UpdateConfigurationRequest, context: Any
    ) -> configuration_pb2.UpdateConfigurationResponse:
        _check_mask(request)
        stored = await self._stored(request.configuration.configuration_id)
        if stored.status is Status.ARCHIVED:
            raise FailedPrecondition("CONFIGURATION_ARCHIVED", "an archived configuration does not change")
        wanted = from_stored(stored, self._vault)
        request.update_mask.MergeMessage(
            request.configuration, wanted, replace_message_field=True, replace_repeated_field=True
        )
        complete(wanted)
        check(wanted, self._guard)
        return configuration_pb2.UpdateConfigurationResponse(configuration=await self._write(stored, wanted))

    async def ArchiveConfiguration(
        self, request: configuration_pb2.ArchiveConfigurationRequest, context: Any
    ) -> configuration_pb2.ArchiveConfigurationResponse:
        stored = await self._stored(request.configuration_id)
        wanted = from_stored(stored, self._vault)
        if stored.status is Status.ARCHIVED:
            return configuration_pb2.ArchiveConfigurationResponse(configuration=public(wanted))
        wanted.status = configuration_pb2.Configuration.STATUS_ARCHIVED
        complete(wanted)
        return configuration_pb2.ArchiveConfigurationResponse(configuration=await self._write(stored, wanted))

    async def Preview(
        self, request: configuration_pb2.PreviewRequest, context: Any
    ) -> configuration_pb2.PreviewResponse:
        stored = await self._stored(request.configuration_id)
        configuration = compiled(from_stored(stored, self._vault))
        conversion = request.conversion if request.HasField("conversion") else sample_conversion(configuration)
        decision = conversion.decision
        _, shown = requests(
            configuration,
            conversion,
            delivery_id(configuration.configuration_id, decision.app_id, decision.conversion_id),
            _UNSENT,
        )
        return configuration_pb2.PreviewResponse(
            method=shown.method,
            url=shown.url,
            headers=shown.headers,
            body=shown.body,
            unmatched_macros=shown.unmatched,
        )

    async def _stored(self, configuration_id: str) -> StoredConfiguration:
        if "\0" in configuration_id or not (stored := await self._store.get_configuration(configuration_id)):
            raise NotFound("CONFIGURATION_NOT_FOUND", "no such configuration", configuration_id=configuration_id)
        return stored

    async def _write(
        self, before: StoredConfiguration, wanted: configuration_pb2.Configuration
    ) -> configuration_pb2.Configuration:
        status, settings, secrets = to_stored(wanted, self._vault)
        if not await self._store.update_configuration(before, status=status, settings=settings, secrets=secrets):
            raise Aborted("CONFIGURATION_CHANGED", "it was changed meanwhile; repeat")
        await self._catalog.refresh()
        return public(from_stored(await self._stored(before.configuration_id), self._vault))


class PostbackService(service_pb2_grpc.PostbackServiceServicer):
    """Takes conversions; what each method does says postback.proto. `wake` is called when deliveries may be due."""

    def __init__(self, *, store: Store, catalog: Catalog, claims: Claims, wake: Callable[[], None]) -> None:
        self._store, self._catalog, self._claims, self._wake = store, catalog, claims, wake

    async def EnqueueConversions(
        self, request: conversion_pb2.EnqueueConversionsRequest, context: Any
    ) -> conversion_pb2.EnqueueConversionsResponse:
        _check_batch(request.conversions)
        if request.validate_only:
            return conversion_pb2.EnqueueConversionsResponse(offered=await self._offered(request.conversions))
        triggered = list(self._triggered(request.conversions))
        count = await self._enqueue([new_delivery(one, it) for one, it in triggered if wants(it, one)])
        await self._decide([(one, it) for one, it in triggered if it.adapter.is_claim_capable])
        _handed_over.inc(len(request.conversions))
        return conversion_pb2.EnqueueConversionsResponse(created_count=count)

    async def RequestClaims(
        self, request: claim_pb2.RequestClaimsRequest, context: Any
    ) -> claim_pb2.RequestClaimsResponse:
        wait_s = request.wait.ToNanoseconds() / 1e9 if request.HasField("wait") else CLAIM_WAIT_S
        _check_batch(request.conversions)
        violations = Violations()
        if not 0 <= wait_s <= LONGEST_CLAIM_WAIT_S:
            violations.add("wait", "OUT_OF_RANGE", f"0 to {LONGEST_CLAIM_WAIT_S:g} s")
        violations.check()
        wanted = self._claims_wanted(request.conversions)
        if len(wanted) < len(request.conversions):
            # Whoever asks may have heard of a configuration from another process, before this one has.
            await self._catalog.refresh()
            wanted = self._claims_wanted(request.conversions)
        await self._enqueue(wanted)
        return claim_pb2.RequestClaimsResponse(conversions=await self._claims.answers(request.conversions, wait_s))

    async def WatchClaimTriggers(
        self, request: claim_pb2.WatchClaimTriggersRequest, context: Any
    ) -> AsyncGenerator[claim_pb2.WatchClaimTriggersResponse, None]:
        async with aclosing(self._claims.triggers()) as responses:
            async for response in responses:
                yield response

    async def EraseConversions(
        self, request: conversion_pb2.EraseConversionsRequest, context: Any
    ) -> conversion_pb2.EraseConversionsResponse:
        violations = Violations()
        _require(violations, "app_id", request.app_id)
        for name in ("conversion_ids", "device_ids", "stripped_conversion_ids"):
            given = getattr(request, name)
            if len(given) > MOST_CONVERSIONS:
                violations.add(name, "BATCH_TOO_LARGE", f"at most {MOST_CONVERSIONS}")
            for number, text in enumerate(given):
                _without_nul(violations, f"{name}[{number}]", text)
        violations.check()
        await self._store.strip(app_id=request.app_id, conversion_ids=request.stripped_conversion_ids)
        counts = await self._store.erase(
            app_id=request.app_id, conversion_ids=request.conversion_ids, device_ids=request.device_ids
        )
        return conversion_pb2.EraseConversionsResponse(erased_counts=counts)

    async def GetDelivery(
        self, request: delivery_pb2.GetDeliveryRequest, context: Any
    ) -> delivery_pb2.GetDeliveryResponse:
        found = await self._store.get_delivery(_delivery_id(request.delivery_id))
        if found is None:
            raise _no_delivery(request.delivery_id)
        stored, attempts = found
        message = _delivery(stored)
        message.attempts.extend(map(_attempt, attempts))
        return delivery_pb2.GetDeliveryResponse(delivery=message)

    async def ListDeliveries(
        self, request: delivery_pb2.ListDeliveriesRequest, context: Any
    ) -> delivery_pb2.ListDeliveriesResponse:
        violations = Violations()
        size = page_size(request.page_size, violations)
        key = decode_token(request.page_token, (int, str), violations)
        _require(violations, "app_id", request.app_id)
        for name in ("configuration_id", "conversion_id"):
            _without_nul(violations, name, getattr(request, name))
        states = _states(violations, request.states)
        violations.check()
        before = (_EPOCH + timedelta(microseconds=int(key[0])), UUID(str(key[1]))) if key else None
        found = await self._store.list_deliveries(
            app_id=request.app_id,
            configuration_id=request.configuration_id,
            conversion_id=request.conversion_id,
            states=states,
            before=before,
            limit=size + 1,
        )
        page = found[:size]
        token = ""
        if len(found) > size:
            token = encode_token(
                (page[-1].create_time - _EPOCH) // timedelta(microseconds=1), str(page[-1].delivery_id)
            )
        return delivery_pb2.ListDeliveriesResponse(deliveries=map(_delivery, page), next_page_token=token)

    async def Replay(self, request: delivery_pb2.ReplayRequest, context: Any) -> delivery_pb2.ReplayResponse:
        violations = Violations()
        if not 1 <= len(request.request_id) <= 64:
            violations.add("request_id", "REQUIRED" if not request.request_id else "TOO_LONG", "1 to 64 characters")
        if bool(request.delivery_id) == bool(request.app_id):
            violations.add("delivery_id", "ONE_OF", "either delivery_id or app_id")
        if request.delivery_id and (request.configuration_id or request.states):
            violations.add("delivery_id", "NOT_ALLOWED", "configuration_id and states go with app_id")
        for name in ("request_id", "app_id", "configuration_id"):
            _without_nul(violations, name, getattr(request, name))
        states = _states(violations, request.states)
        violations.check()
        one = _delivery_id(request.delivery_id) if request.delivery_id else None
        if one and await self._store.get_delivery(one) is None:
            raise _no_delivery(request.delivery_id)
        count = await self._store.replay(
            request_id=request.request_id,
            delivery_id=one,
            app_id=request.app_id,
            configuration_id=request.configuration_id,
            states=states or (set(State) if one else {State.REFUSED, State.EXHAUSTED}),
            limit=MOST_REPLAYED,
        )
        self._wake()
        return delivery_pb2.ReplayResponse(replayed_count=count)

    def _triggered(
        self, conversions: Iterable[conversion_pb2.Conversion]
    ) -> Iterator[tuple[conversion_pb2.Conversion, Configuration]]:
        """Each conversion with each configuration of its app and event."""
        for one in conversions:
            for configuration in self._catalog.triggered(one.decision.app_id, one.decision.event_name):
                yield one, configuration

    def _claims_wanted(self, conversions: Iterable[conversion_pb2.Conversion]) -> list[NewDelivery]:
        return [
            new_delivery(one, it, awaits_decision=True)
            for one, it in self._triggered(conversions)
            if wants_claim(it, one)
        ]

    async def _enqueue(self, wanted: Sequence[NewDelivery]) -> int:
        count = await self._store.enqueue(wanted)
        if count:
            _created.inc(count)
            self._wake()
        return count

    async def _decide(self, asked: Sequence[tuple[conversion_pb2.Conversion, Configuration]]) -> None:
        """Requests for claims were made with conversions that had not been decided; now they have been."""
        deliveries = [new_delivery(one, it) for one, it in asked]
        claimed = await self._store.decide(deliveries)
        for (one, it), delivery in zip(asked, deliveries, strict=True):
            if delivery.delivery_id in claimed and it.network_id in one.decision.claims_unavailable:
                note_late(delivery.delivery_id, delivery.configuration_id)

    async def _offered(self, conversions: Sequence[conversion_pb2.Conversion]) -> list[offer_pb2.OfferedPostback]:
        told = await self._store.told([(one.decision.app_id, one.decision.conversion_id) for one in conversions])
        sessions = [(one, it) for one, it in self._triggered(conversions) if once_a_day(it) and wants(it, one)]
        held = await self._store.held([new_delivery(one, it) for one, it in sessions])
        offered = []
        for one, configuration in self._triggered(conversions):
            decision = one.decision
            key = decision.app_id, decision.conversion_id, configuration.configuration_id
            was_told = key in told
            # A configuration that is paused or archived by now told what it was for.
            if was_told and not fits(configuration, one):
                effect = offer_pb2.OfferedPostback.EFFECT_WAS_SENT
            elif not was_told and key not in held and wants(configuration, one):
                effect = offer_pb2.OfferedPostback.EFFECT_WOULD_BE_SENT
            else:
                continue
            offered.append(
                offer_pb2.OfferedPostback(
                    configuration_id=configuration.configuration_id,
                    network_id=configuration.network_id,
                    conversion_id=decision.conversion_id,
                    effect=effect,
                )
            )
        return offered


def _check_mask(request: configuration_pb2.UpdateConfigurationRequest) -> None:
    violations = Violations()
    if not request.update_mask.paths:
        violations.add("update_mask", "REQUIRED", "must name the fields to change")
    for path in request.update_mask.paths:
        if path.partition(".")[0] in (*_IMMUTABLE, *OUTPUT_ONLY):
            violations.add("update_mask", "IMMUTABLE", f"{path} cannot be changed")
        elif not FieldMask(paths=[path]).IsValidForDescriptor(configuration_pb2.Configuration.DESCRIPTOR):
            violations.add("update_mask", "UNKNOWN_FIELD", f"{path} is no field of a configuration")
    violations.check()


def _is_whole(conversion: conversion_pb2.Conversion) -> bool:
    decision = conversion.decision
    ids = (decision.app_id, decision.event_name, decision.conversion_id)
    return all(ids) and not any("\0" in text for text in ids) and conversion.HasField("record")


def _check_batch(conversions: Sequence[conversion_pb2.Conversion]) -> None:
    if len(conversions) > MOST_CONVERSIONS:
        too_many = Violation(field="conversions", reason="BATCH_TOO_LARGE", description=f"at most {MOST_CONVERSIONS}")
        raise InvalidArgument([too_many], "BATCH_TOO_LARGE")
    if conversions and all(map(_is_whole, conversions)):
        return
    violations = Violations()
    if not conversions:
        violations.add("conversions", "REQUIRED", f"1 to {MOST_CONVERSIONS}")
    for number, conversion in enumerate(conversions):
        for name in ("app_id", "event_name", "conversion_id"):
            _require(violations, f"conversions[{number}].decision.{name}", getattr(conversion.decision, name))
        if not conversion.HasField("record"):
            violations.add(f"conversions[{number}].record", "REQUIRED", "must be set")
    violations.check()


def _require(violations: Violations, field: str, text: str) -> None:
    if not text:
        violations.add(field, "REQUIRED", "must be set")
    _without_nul(violations, field, text)


def _without_nul(violations: Violations, field: str, text: str) -> None:
    if "\0" in text:
        violations.add(field, "INVALID_TEXT", "must not hold NUL")


def _states(violations: Violations, states: Iterable[delivery_pb2.Delivery.State.ValueType]) -> set[State]:
    found = set()
    for state in states:
        if state not in _STATES:
            violations.add("states", "UNKNOWN", "must be values of State")
        else:
            found.add(_STATES[state])
    return found


def _delivery_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise _no_delivery(text) from None


def _no_delivery(text: str) -> NotFound:
    return NotFound("DELIVERY_NOT_FOUND", "no such delivery", delivery_id=text)


def _delivery(stored: StoredDelivery) -> delivery_pb2.Delivery:
    next_time = stored.due_time if stored.state is State.PENDING else None
    return delivery_pb2.Delivery(
        delivery_id=str(stored.delivery_id),
        configuration_id=stored.configuration_id,
        app_id=stored.app_id,
        network_id=stored.network_id,
        conversion_id=stored.conversion_id,
        event_name=stored.event_name,
        state=delivery_pb2.Delivery.State.Value(f"STATE_{stored.state}"),
        attempt_count=stored.attempt_count,
        replay_count=stored.replay_count,
        create_time=_timestamp(stored.create_time),
        next_attempt_time=_timestamp(next_time) if next_time else None,
        end_time=_timestamp(stored.end_time) if stored.end_time else None,
    )


def _attempt(stored: StoredAttempt) -> delivery_pb2.Attempt:
    if stored.attempt:
        return delivery_pb2.Attempt.FromString(stored.attempt)
    return delivery_pb2.Attempt(
        start_time=_timestamp(stored.start_time),
        verdict=stored.verdict,
        will_retry=True,
        replay_count=stored.replay_count,
    )


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
