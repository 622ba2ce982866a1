"""The gRPC faces: they parse requests, ask the stores and the decisions, and return responses."""

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import structlog
from prometheus_client import Counter

from libs.domain.setting_ranges import CHOICES_DAYS
from libs.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Violation, Violations
from libs.pages import decode_token, encode_token, page_size
from libs.parts import first_part, in_parts, page_of
from libs.time import is_plausible
from libs.vault import Vault
from reengage.attribution.v1.offer_pb2 import OfferedPostback
from reengage.postback.v1 import (
    adapter_pb2,
    claim_pb2,
    configuration_pb2,
    conversion_pb2,
    delivery_pb2,
    service_pb2_grpc,
)
from reengage.postback.v1.method_pb2 import Method
from services.postback.adapters.adapter import ADAPTERS, NotRenderableError, Stamp
from services.postback.claims import Claims, note_late
from services.postback.configurations import Configurations
from services.postback.delivery import delivery_id, handed_over, new_delivery, requests
from services.postback.fields import describe
from services.postback.guard import Guard
from services.postback.macros import MASK
from services.postback.model import Configuration, Handed, State, Status
from services.postback.sample import sample_conversion
from services.postback.selection import fits, once_a_day, wants, wants_claim
from services.postback.storage.claims import ClaimStore
from services.postback.storage.configurations import ConfigurationStore, StoredConfiguration
from services.postback.storage.deliveries import MAX_KEY, DeliveryStore
from services.postback.storage.erasure import ErasureStore
from services.postback.validation import changed_fields, check, complete, merge
from services.postback.wire import attempt_message, compiled, delivery_message, from_stored, public, to_settings

MAX_CONVERSIONS = 1000
MAX_REDELIVERED = 10_000
CLAIM_WAIT_S, MAX_CLAIM_WAIT_S = 1.0, 10.0
_MAX_ID_CHARACTERS = 1024
"""Longer than any id that is stored: what is asked for need only be a text that PostgreSQL can compare."""
_MAX_STORED_CHARACTERS = 256
_RETENTIONS = (0, *CHOICES_DAYS["retention"])
_IDS = ("app_id", "event_name", "conversion_id", "device_id")
_UNSENT = Stamp(nonce="preview", time_s=0)  # what it goes into is masked

Triggered: TypeAlias = tuple[conversion_pb2.Conversion, Configuration]
"""A conversion, and a configuration of its app and event."""

_created = Counter("postback_deliveries_created_total", "Deliveries made of conversions, or taken up again.")
_superseded = Counter("postback_deliveries_superseded_total", "Deliveries whose network lost, by reason.", ["reason"])
_handed_over = Counter("postback_conversions_total", "Conversions handed over, repeats too.")
_log = structlog.get_logger()


class PostbackConfigService(service_pb2_grpc.PostbackConfigServiceServicer):
    """The face of configurations, as service.proto describes it."""

    def __init__(
        self, *, store: ConfigurationStore, configurations: Configurations, vault: Vault, guard: Guard
    ) -> None:
        self._store, self._configurations, self._vault, self._guard = store, configurations, vault, guard

    async def DescribeAdapters(
        self, request: adapter_pb2.DescribeAdaptersRequest, context: Any
    ) -> adapter_pb2.DescribeAdaptersResponse:
        if request.adapter and request.adapter not in ADAPTERS:
            raise NotFound("ADAPTER_NOT_FOUND", "there is no such adapter", adapter=request.adapter)
        names = [request.adapter] if request.adapter else sorted(ADAPTERS)
        return adapter_pb2.DescribeAdaptersResponse(adapters=[describe(ADAPTERS[name]) for name in names])

    async def CreateConfiguration(
        self, request: configuration_pb2.CreateConfigurationRequest, context: Any
    ) -> configuration_pb2.CreateConfigurationResponse:
        wanted = request.configuration
        wanted.configuration_id = wanted.configuration_id or uuid4().hex
        complete(wanted)
        check(wanted, self._guard)
        stored = await self._store.get(wanted.configuration_id)
        created = stored is None
        if stored is None:
            if request.validate_only:
                return configuration_pb2.CreateConfigurationResponse(configuration=public(wanted), created=True)
            created = await self._store.create(
                configuration_id=wanted.configuration_id,
                app_id=wanted.app_id,
                status=Status(wanted.status),
                settings=to_settings(wanted),
                secrets=self._vault.seal(dict(wanted.secrets)),
            )
            stored = await self._stored(wanted.configuration_id)
        message = from_stored(stored, self._vault)
        if not created and changed_fields(_completed(message), wanted):
            raise AlreadyExists(
                "CONFIGURATION_EXISTS",
                "another configuration has this id",
                configuration_id=wanted.configuration_id,
            )
        await self._configurations.refresh()
        return configuration_pb2.CreateConfigurationResponse(configuration=public(message), created=created)

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
        _check_id(violations, "app_id", request.app_id, required=True)
        violations.check()
        found, total_count = await self._store.page(
            app_id=request.app_id,
            after=str(after[0]) if after else "",
            limit=size,
            archived=request.show_archived,
        )
        shown = (public(from_stored(stored, self._vault)) for stored in found)
        page = first_part(shown, configuration_pb2.Configuration.ByteSize)
        return configuration_pb2.ListConfigurationsResponse(
            configurations=page,
            next_page_token=encode_token(page[-1].configuration_id) if total_count > len(page) else "",
        )

    async def UpdateConfiguration(
        self, request: configuration_pb2.UpdateConfigurationRequest, context: Any
    ) -> configuration_pb2.UpdateConfigurationResponse:
        stored = await self._stored(request.configuration.configuration_id)
        before = from_stored(stored, self._vault)
        wanted = configuration_pb2.Configuration()
        wanted.CopyFrom(before)
        merge(request.configuration, request.update_mask, wanted)
        if stored.status is Status.ARCHIVED:
            raise FailedPrecondition("CONFIGURATION_ARCHIVED", "an archived configuration does not change")
        complete(wanted)
        check(wanted, self._guard)
        changed = changed_fields(_completed(before), wanted)
        if changed and not request.validate_only:
            return configuration_pb2.UpdateConfigurationResponse(
                configuration=await self._write(stored, wanted), changed_fields=changed
            )
        wanted.create_time.CopyFrom(before.create_time)
        wanted.update_time.CopyFrom(before.update_time)
        return configuration_pb2.UpdateConfigurationResponse(configuration=public(wanted), changed_fields=changed)

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
        message = from_stored(await self._stored(request.configuration_id), self._vault)
        if message.adapter not in ADAPTERS:
            raise FailedPrecondition("ADAPTER_NOT_FOUND", "this release has no such adapter", adapter=message.adapter)
        configuration = compiled(message)
        conversion = request.conversion if request.HasField("conversion") else sample_conversion(configuration)
        identity = delivery_id(
            configuration.configuration_id, conversion.decision.app_id, conversion.decision.conversion_id
        )
        try:
            # The credentials of an account are not looked up: what is made of them is masked anyway.
            secrets = dict.fromkeys(configuration.adapter.secret_names, MASK) | configuration.secrets
            _, shown = requests(configuration, conversion, identity, secrets=secrets, stamp=_UNSENT)
        except NotRenderableError as error:
            raise FailedPrecondition("NOT_RENDERED", str(error)) from None
        return configuration_pb2.PreviewResponse(
            method=Method.Value(f"METHOD_{shown.method}"),
            url=shown.url,
            headers=shown.headers,
            body=shown.body,
            unmatched_macros=shown.unmatched,
        )

    async def _stored(self, configuration_id: str) -> StoredConfiguration:
        if "\0" in configuration_id or not (stored := await self._store.get(configuration_id)):
            raise NotFound("CONFIGURATION_NOT_FOUND", "no such configuration", configuration_id=configuration_id)
        return stored

    async def _write(
        self, before: StoredConfiguration, wanted: configuration_pb2.Configuration
    ) -> configuration_pb2.Configuration:
        written = await self._store.update(
            before,
            status=Status(wanted.status),
            settings=to_settings(wanted),
            secrets=self._vault.seal(dict(wanted.secrets)),
        )
        if not written:
            raise Aborted("CONFIGURATION_CHANGED", "it was changed meanwhile; repeat")
        await self._configurations.refresh()
        return public(from_stored(await self._stored(before.configuration_id), self._vault))


class PostbackService(service_pb2_grpc.PostbackServiceServicer):
    """The face of conversions and deliveries, as service.proto describes it."""

    def __init__(
        self,
        *,
        deliveries: DeliveryStore,
        claim_store: ClaimStore,
        erasure: ErasureStore,
        configurations: Configurations,
        claims: Claims,
        wake: Callable[[], None],
    ) -> None:
        """Takes `wake` to call when deliveries may be due."""
        self._deliveries, self._claim_store, self._erasure = deliveries, claim_store, erasure
        self._configurations, self._claims, self._wake = configurations, claims, wake

    async def EnqueueConversions(
        self, request: conversion_pb2.EnqueueConversionsRequest, context: Any
    ) -> conversion_pb2.EnqueueConversionsResponse:
        _check_batch(request.conversions)
        if request.validate_only:
            return conversion_pb2.EnqueueConversionsResponse(offered=await self._offered(request.conversions))
        triggered = list(self._triggered(request.conversions))
        # Before newer versions, which find them decided: whoever was asked is asked about the first.
        for some in _parts(pair for pair in triggered if pair[1].is_claim_capable and pair[0].decision.version < 2):
            await self._decide(some)
        handed = [pair for pair in triggered if wants(pair[1], pair[0]) or pair[0].decision.version > 1]
        count = 0
        # Version by version, as within a part.
        for some in _parts(sorted(handed, key=lambda pair: pair[0].decision.version)):
            count += await self._enqueue([handed_over(one, it, is_wanted=wants(it, one)) for one, it in some])
        _handed_over.inc(len(request.conversions))
        return conversion_pb2.EnqueueConversionsResponse(created_count=count)

    async def RequestClaims(
        self, request: claim_pb2.RequestClaimsRequest, context: Any
    ) -> claim_pb2.RequestClaimsResponse:
        _check_batch(request.conversions)
        wait_s = request.wait.ToNanoseconds() / 1e9 if request.HasField("wait") else CLAIM_WAIT_S
        if not 0 <= wait_s <= MAX_CLAIM_WAIT_S:
            raise InvalidArgument([Violation(field="wait", reason="OUT_OF_RANGE", description="must be 0 to 10 s")])
        wanted = self._claims_wanted(request.conversions)
        if len(wanted) < len(request.conversions):
            # Whoever asks may have heard of a configuration from another process, before this one has.
            await self._configurations.refresh()
            wanted = self._claims_wanted(request.conversions)
        for some in _parts(wanted):
            made = [new_delivery(one, it, awaits_decision=True) for one, it in some]
            await self._enqueue([Handed(delivery=new, is_wanted=True, superseded=None) for new in made])
        answers = await self._claims.answers(request.conversions, wait_s)
        return claim_pb2.RequestClaimsResponse(conversions=answers)

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
        _check_id(violations, "app_id", request.app_id, required=True)
        for name in ("conversion_ids", "device_ids", "stripped_conversion_ids"):
            given = getattr(request, name)
            if len(given) > MAX_CONVERSIONS:
                violations.add(name, "BATCH_TOO_LARGE", f"must be at most {MAX_CONVERSIONS:,}")
            for number, text in enumerate(given):
                _check_id(violations, f"{name}[{number}]", text)
        violations.check()
        await self._erasure.strip(app_id=request.app_id, conversion_ids=request.stripped_conversion_ids)
        counts = await self._erasure.erase(
            app_id=request.app_id, conversion_ids=request.conversion_ids, device_ids=request.device_ids
        )
        return conversion_pb2.EraseConversionsResponse(erased_counts=counts)

    async def GetDelivery(
        self, request: delivery_pb2.GetDeliveryRequest, context: Any
    ) -> delivery_pb2.GetDeliveryResponse:
        found = await self._deliveries.get(_delivery_id(request.delivery_id))
        if found is None:
            raise _no_delivery(request.delivery_id)
        stored, attempts, omitted_count = found
        message = delivery_message(stored)
        message.attempts.extend(map(attempt_message, attempts))
        message.omitted_attempt_count = omitted_count
        return delivery_pb2.GetDeliveryResponse(delivery=message)

    async def ListDeliveries(
        self, request: delivery_pb2.ListDeliveriesRequest, context: Any
    ) -> delivery_pb2.ListDeliveriesResponse:
        violations = Violations()
        size = page_size(request.page_size, violations)
        key = decode_token(request.page_token, (int, UUID), violations)
        before = (int(key[0]), UUID(str(key[1]))) if key else MAX_KEY
        _check_id(violations, "app_id", request.app_id, required=True)
        for name in ("configuration_id", "conversion_id"):
            _check_id(violations, name, getattr(request, name))
        states = _states(violations, request.states)
        violations.check()
        if request.conversion_id:
            found = await self._deliveries.page_of_conversion(
                app_id=request.app_id,
                conversion_id=request.conversion_id,
                configuration_id=request.configuration_id,
                states=states,
                before=before,
                limit=size + 1,
            )
        else:
            found = await self._deliveries.page(
                app_id=request.app_id,
                configuration_id=request.configuration_id,
                states=states,
                before=before,
                limit=size + 1,
            )
        page, is_more = page_of(list(map(delivery_message, found)), size, delivery_pb2.Delivery.ByteSize)
        last = found[len(page) - 1] if is_more else None
        return delivery_pb2.ListDeliveriesResponse(
            deliveries=page,
            next_page_token=encode_token(last.create_us, str(last.delivery_id)) if last is not None else "",
        )

    async def Redeliver(self, request: delivery_pb2.RedeliverRequest, context: Any) -> delivery_pb2.RedeliverResponse:
        violations = Violations()
        violations.check_text("request_id", request.request_id, max_characters=64, required=True)
        if bool(request.delivery_id) == bool(request.app_id):
            violations.add("delivery_id", "ONE_OF", "must be set, or else app_id")
        if request.delivery_id and (request.configuration_id or request.states):
            violations.add("delivery_id", "NOT_ALLOWED", "configuration_id and states go with app_id")
        for name in ("app_id", "configuration_id"):
            _check_id(violations, name, getattr(request, name))
        states = _states(violations, request.states)
        violations.check()
        if request.delivery_id:
            identity = _delivery_id(request.delivery_id)
            found = await self._deliveries.get(identity)
            if found is None:
                raise _no_delivery(request.delivery_id)
            if found[0].superseded is not None:
                raise FailedPrecondition("DELIVERY_SUPERSEDED", "its network has lost the conversion, and is not told")
            count = await self._deliveries.redeliver(request_id=request.request_id, delivery_id=identity)
        else:
            count = await self._deliveries.redeliver_all(
                request_id=request.request_id,
                app_id=request.app_id,
                configuration_id=request.configuration_id,
                states=states or {State.REFUSED, State.EXHAUSTED},
                limit=MAX_REDELIVERED,
            )
        self._wake()
        return delivery_pb2.RedeliverResponse(redelivered_count=count)

    def _triggered(self, conversions: Iterable[conversion_pb2.Conversion]) -> Iterator[Triggered]:
        """Yields each conversion with each configuration of its app and event."""
        for one in conversions:
            for configuration in self._configurations.triggered(one.decision.app_id, one.decision.event_name):
                yield one, configuration

    def _claims_wanted(self, conversions: Iterable[conversion_pb2.Conversion]) -> list[Triggered]:
        return [(one, it) for one, it in self._triggered(conversions) if wants_claim(it, one)]

    async def _enqueue(self, handed: Sequence[Handed]) -> int:
        count, lost = await self._deliveries.enqueue(handed)
        if count:
            _created.inc(count)
            self._wake()
        for delivery, why in lost:
            _superseded.labels(why.name).inc()
            _log.info(
                "delivery.superseded",
                delivery_id=str(delivery.delivery_id),
                configuration_id=delivery.configuration_id,
                version=delivery.version,
                reason=why.name,
            )
        return count

    async def _decide(self, asked: Sequence[Triggered]) -> None:
        """Gives claim requests, which were made of undecided conversions, the decided ones."""
        deliveries = [new_delivery(one, it) for one, it in asked]
        with_claim = await self._claim_store.decide(deliveries)
        for (one, it), delivery in zip(asked, deliveries, strict=True):
            if delivery.delivery_id in with_claim and it.network_id in one.decision.claims_unavailable:
                note_late(delivery.delivery_id, delivery.configuration_id)

    async def _offered(self, conversions: Sequence[conversion_pb2.Conversion]) -> list[OfferedPostback]:
        told = await self._deliveries.told([(one.decision.app_id, one.decision.conversion_id) for one in conversions])
        sessions = [(one, it) for one, it in self._triggered(conversions) if once_a_day(it) and wants(it, one)]
        held = await self._deliveries.held_back([new_delivery(one, it) for one, it in sessions])
        offered = []
        for one, configuration in self._triggered(conversions):
            decision = one.decision
            key = decision.app_id, decision.conversion_id, configuration.configuration_id
            was_told = key in told
            # A configuration that is paused or archived by now told what it was for.
            if was_told and not fits(configuration, one):
                effect = OfferedPostback.EFFECT_WAS_SENT
            elif not was_told and key not in held and wants(configuration, one):
                effect = OfferedPostback.EFFECT_WOULD_BE_SENT
            else:
                continue
            offered.append(
                OfferedPostback(
                    configuration_id=configuration.configuration_id,
                    network_id=configuration.network_id,
                    conversion_id=decision.conversion_id,
                    effect=effect,
                )
            )
        return offered


def _parts(triggered: Iterable[Triggered]) -> Iterator[list[Triggered]]:
    """Yields them in parts by bytes: a call that is large is larger by as many times as it has configurations."""
    return in_parts(triggered, lambda pair: pair[0].ByteSize())


def _completed(message: configuration_pb2.Configuration) -> configuration_pb2.Configuration:
    """Returns a stored configuration with the defaults of fields that it was stored without, by an older release."""
    completed = configuration_pb2.Configuration()
    completed.CopyFrom(message)
    complete(completed)
    return completed


def _is_whole(conversion: conversion_pb2.Conversion) -> bool:
    decision = conversion.decision
    ids = (decision.app_id, decision.event_name, decision.conversion_id, decision.device_id)
    return (
        all(ids[:3])
        and not any("\0" in text or len(text) > _MAX_STORED_CHARACTERS for text in ids)
        and conversion.HasField("record")
        and is_plausible(decision.conversion_time)
        and decision.version >= 0
        and conversion.names.retention_days in _RETENTIONS
    )


def _check_batch(conversions: Sequence[conversion_pb2.Conversion]) -> None:
    if len(conversions) > MAX_CONVERSIONS:
        too_many = Violation(
            field="conversions", reason="BATCH_TOO_LARGE", description=f"must be at most {MAX_CONVERSIONS:,}"
        )
        raise InvalidArgument([too_many], "BATCH_TOO_LARGE")
    if conversions and all(map(_is_whole, conversions)):
        return
    violations = Violations()
    if not conversions:
        violations.add("conversions", "REQUIRED", f"must be 1 to {MAX_CONVERSIONS:,}")
    for number, conversion in enumerate(conversions):
        _check_conversion(violations, f"conversions[{number}]", conversion)
    violations.check()


def _check_conversion(violations: Violations, path: str, conversion: conversion_pb2.Conversion) -> None:
    decision = conversion.decision
    for name in _IDS:
        text, field = getattr(decision, name), f"{path}.decision.{name}"
        violations.check_text(field, text, max_characters=_MAX_STORED_CHARACTERS, required=name != "device_id")
    if not is_plausible(decision.conversion_time):  # each month that is named gets tables of its own
        violations.add(f"{path}.decision.conversion_time", "OUT_OF_RANGE", "must be in the years 1970 to 2999")
    if decision.version < 0:
        violations.add(f"{path}.decision.version", "OUT_OF_RANGE", "must be 0 or more")
    if not conversion.HasField("record"):
        violations.add(f"{path}.record", "REQUIRED", "must be set")
    if conversion.names.retention_days not in _RETENTIONS:
        choices = ", ".join(map(str, _RETENTIONS))
        violations.add(f"{path}.names.retention_days", "OUT_OF_RANGE", f"must be one of {choices}")


def _check_id(violations: Violations, field: str, text: str, *, required: bool = False) -> None:
    violations.check_text(field, text, max_characters=_MAX_ID_CHARACTERS, required=required)


def _states(violations: Violations, states: Iterable[delivery_pb2.Delivery.State.ValueType]) -> set[State]:
    known = set(map(int, State))
    if not known.issuperset(states):
        violations.add("states", "UNKNOWN", "must be values of State")
    return {State(state) for state in states if int(state) in known}


def _delivery_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise _no_delivery(text) from None


def _no_delivery(text: str) -> NotFound:
    return NotFound("DELIVERY_NOT_FOUND", "no such delivery", delivery_id=text)
