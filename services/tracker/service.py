"""The gRPC face of tracker."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from libs.errors import Violations
from reengage.tracker.v1 import (
    account_pb2,
    agency_pb2,
    api_key_pb2,
    app_pb2,
    campaign_pb2,
    change_pb2,
    event_definition_pb2,
    network_pb2,
    network_settings_pb2,
    postback_draft_pb2,
    resolve_pb2,
    san_account_pb2,
    segment_pb2,
    service_pb2_grpc,
    settings_file_pb2,
    snapshot_pb2,
    tracker_edit_pb2,
    tracker_pb2,
)
from services.tracker.audit_trail import AuditTrail
from services.tracker.following import HEARTBEAT_S, MAX_CHANGES, watch
from services.tracker.keys import ApiKeys
from services.tracker.kinds import (
    ACCOUNT,
    AGENCY,
    API_KEY,
    APP,
    CAMPAIGN,
    EVENT_DEFINITION,
    NETWORK,
    NETWORK_SETTINGS,
    SAN_ACCOUNT,
    SEGMENT,
    TRACKER,
)
from services.tracker.resources import ResourceMethods, not_found
from services.tracker.revisions import Revisions
from services.tracker.settings_plans import SettingsPlans
from services.tracker.storage.store import Store
from services.tracker.trackers import Trackers, filter_conditions

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class TrackerConfigService(service_pb2_grpc.TrackerConfigServiceServicer):
    """The methods of the contract: each names its kind of resource, and converts between messages.

    A follower has a response at least every `heartbeat_s`; more than `max_changes` behind, it gets a whole snapshot.
    """

    def __init__(
        self,
        resources: ResourceMethods,
        keys: ApiKeys,
        store: Store,
        revisions: Revisions,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        max_changes: int = MAX_CHANGES,
    ) -> None:
        self._resources, self._keys, self._store, self._revisions = resources, keys, store, revisions
        self._trackers, self._plans = Trackers(resources, store), SettingsPlans(resources, store)
        self._audit_trail = AuditTrail(resources, store)
        self._heartbeat_s, self._max_changes = heartbeat_s, max_changes

    async def CreateAccount(
        self, request: account_pb2.CreateAccountRequest, context: Context
    ) -> account_pb2.CreateAccountResponse:
        account = await self._resources.create(
            ACCOUNT, request.account, request.request_id, validate_only=request.validate_only
        )
        return account_pb2.CreateAccountResponse(account=account)

    async def GetAccount(
        self, request: account_pb2.GetAccountRequest, context: Context
    ) -> account_pb2.GetAccountResponse:
        return account_pb2.GetAccountResponse(account=await self._resources.get(ACCOUNT, request.account_id))

    async def ListAccounts(
        self, request: account_pb2.ListAccountsRequest, context: Context
    ) -> account_pb2.ListAccountsResponse:
        accounts, next_page_token = await self._resources.page(ACCOUNT, request)
        return account_pb2.ListAccountsResponse(accounts=accounts, next_page_token=next_page_token)

    async def UpdateAccount(
        self, request: account_pb2.UpdateAccountRequest, context: Context
    ) -> account_pb2.UpdateAccountResponse:
        account = await self._resources.update(
            ACCOUNT, request.account, request.update_mask, validate_only=request.validate_only
        )
        return account_pb2.UpdateAccountResponse(account=account)

    async def ArchiveAccount(
        self, request: account_pb2.ArchiveAccountRequest, context: Context
    ) -> account_pb2.ArchiveAccountResponse:
        account = await self._resources.archive(
            ACCOUNT, request.account_id, etag=request.etag, validate_only=request.validate_only
        )
        return account_pb2.ArchiveAccountResponse(account=account)

    async def CreateApp(self, request: app_pb2.CreateAppRequest, context: Context) -> app_pb2.CreateAppResponse:
        app = await self._resources.create(APP, request.app, request.request_id, validate_only=request.validate_only)
        return app_pb2.CreateAppResponse(app=app)

    async def GetApp(self, request: app_pb2.GetAppRequest, context: Context) -> app_pb2.GetAppResponse:
        return app_pb2.GetAppResponse(app=await self._resources.get(APP, request.app_id))

    async def ListApps(self, request: app_pb2.ListAppsRequest, context: Context) -> app_pb2.ListAppsResponse:
        apps, next_page_token = await self._resources.page(APP, request)
        return app_pb2.ListAppsResponse(apps=apps, next_page_token=next_page_token)

    async def UpdateApp(self, request: app_pb2.UpdateAppRequest, context: Context) -> app_pb2.UpdateAppResponse:
        app = await self._resources.update(APP, request.app, request.update_mask, validate_only=request.validate_only)
        return app_pb2.UpdateAppResponse(app=app)

    async def ArchiveApp(self, request: app_pb2.ArchiveAppRequest, context: Context) -> app_pb2.ArchiveAppResponse:
        return app_pb2.ArchiveAppResponse(
            app=await self._resources.archive(
                APP, request.app_id, etag=request.etag, validate_only=request.validate_only
            )
        )

    async def CreateNetwork(
        self, request: network_pb2.CreateNetworkRequest, context: Context
    ) -> network_pb2.CreateNetworkResponse:
        network = await self._resources.create(
            NETWORK, request.network, request.request_id, validate_only=request.validate_only
        )
        return network_pb2.CreateNetworkResponse(network=network)

    async def GetNetwork(
        self, request: network_pb2.GetNetworkRequest, context: Context
    ) -> network_pb2.GetNetworkResponse:
        return network_pb2.GetNetworkResponse(network=await self._resources.get(NETWORK, request.network_id))

    async def ListNetworks(
        self, request: network_pb2.ListNetworksRequest, context: Context
    ) -> network_pb2.ListNetworksResponse:
        networks, next_page_token = await self._resources.page(NETWORK, request, with_built_in=not request.hide_unused)
        return network_pb2.ListNetworksResponse(networks=networks, next_page_token=next_page_token)

    async def UpdateNetwork(
        self, request: network_pb2.UpdateNetworkRequest, context: Context
    ) -> network_pb2.UpdateNetworkResponse:
        network = await self._resources.update(
            NETWORK, request.network, request.update_mask, validate_only=request.validate_only
        )
        return network_pb2.UpdateNetworkResponse(network=network)

    async def ArchiveNetwork(
        self, request: network_pb2.ArchiveNetworkRequest, context: Context
    ) -> network_pb2.ArchiveNetworkResponse:
        return network_pb2.ArchiveNetworkResponse(
            network=await self._resources.archive(
                NETWORK, request.network_id, etag=request.etag, validate_only=request.validate_only
            )
        )

    async def GetNetworkSettings(
        self, request: network_settings_pb2.GetNetworkSettingsRequest, context: Context
    ) -> network_settings_pb2.GetNetworkSettingsResponse:
        settings = await self._resources.get(NETWORK_SETTINGS, request.app_id, request.network_id)
        return network_settings_pb2.GetNetworkSettingsResponse(network_settings=settings)

    async def UpdateNetworkSettings(
        self, request: network_settings_pb2.UpdateNetworkSettingsRequest, context: Context
    ) -> network_settings_pb2.UpdateNetworkSettingsResponse:
        settings = await self._resources.update(
            NETWORK_SETTINGS, request.network_settings, request.update_mask, validate_only=request.validate_only
        )
        return network_settings_pb2.UpdateNetworkSettingsResponse(network_settings=settings)

    async def CreateAgency(
        self, request: agency_pb2.CreateAgencyRequest, context: Context
    ) -> agency_pb2.CreateAgencyResponse:
        agency = await self._resources.create(
            AGENCY, request.agency, request.request_id, validate_only=request.validate_only
        )
        return agency_pb2.CreateAgencyResponse(agency=agency)

    async def GetAgency(self, request: agency_pb2.GetAgencyRequest, context: Context) -> agency_pb2.GetAgencyResponse:
        return agency_pb2.GetAgencyResponse(agency=await self._resources.get(AGENCY, request.agency_id))

    async def ListAgencies(
        self, request: agency_pb2.ListAgenciesRequest, context: Context
    ) -> agency_pb2.ListAgenciesResponse:
        agencies, next_page_token = await self._resources.page(AGENCY, request)
        return agency_pb2.ListAgenciesResponse(agencies=agencies, next_page_token=next_page_token)

    async def UpdateAgency(
        self, request: agency_pb2.UpdateAgencyRequest, context: Context
    ) -> agency_pb2.UpdateAgencyResponse:
        agency = await self._resources.update(
            AGENCY, request.agency, request.update_mask, validate_only=request.validate_only
        )
        return agency_pb2.UpdateAgencyResponse(agency=agency)

    async def ArchiveAgency(
        self, request: agency_pb2.ArchiveAgencyRequest, context: Context
    ) -> agency_pb2.ArchiveAgencyResponse:
        agency = await self._resources.archive(
            AGENCY, request.agency_id, etag=request.etag, validate_only=request.validate_only
        )
        return agency_pb2.ArchiveAgencyResponse(agency=agency)

    async def CreateSanAccount(
        self, request: san_account_pb2.CreateSanAccountRequest, context: Context
    ) -> san_account_pb2.CreateSanAccountResponse:
        san_account = await self._resources.create(
            SAN_ACCOUNT, request.san_account, request.request_id, validate_only=request.validate_only
        )
        return san_account_pb2.CreateSanAccountResponse(san_account=san_account)

    async def GetSanAccount(
        self, request: san_account_pb2.GetSanAccountRequest, context: Context
    ) -> san_account_pb2.GetSanAccountResponse:
        return san_account_pb2.GetSanAccountResponse(
            san_account=await self._resources.get(SAN_ACCOUNT, request.san_account_id)
        )

    async def ListSanAccounts(
        self, request: san_account_pb2.ListSanAccountsRequest, context: Context
    ) -> san_account_pb2.ListSanAccountsResponse:
        san_accounts, next_page_token = await self._resources.page(SAN_ACCOUNT, request, app_id=request.app_id)
        return san_account_pb2.ListSanAccountsResponse(san_accounts=san_accounts, next_page_token=next_page_token)

    async def UpdateSanAccount(
        self, request: san_account_pb2.UpdateSanAccountRequest, context: Context
    ) -> san_account_pb2.UpdateSanAccountResponse:
        san_account = await self._resources.update(
            SAN_ACCOUNT, request.san_account, request.update_mask, validate_only=request.validate_only
        )
        return san_account_pb2.UpdateSanAccountResponse(san_account=san_account)

    async def ArchiveSanAccount(
        self, request: san_account_pb2.ArchiveSanAccountRequest, context: Context
    ) -> san_account_pb2.ArchiveSanAccountResponse:
        san_account = await self._resources.archive(
            SAN_ACCOUNT, request.san_account_id, etag=request.etag, validate_only=request.validate_only
        )
        return san_account_pb2.ArchiveSanAccountResponse(san_account=san_account)

    async def GetSanAccountCredentials(
        self, request: san_account_pb2.GetSanAccountCredentialsRequest, context: Context
    ) -> san_account_pb2.GetSanAccountCredentialsResponse:
        account = await self._resources.get_with_secrets(SAN_ACCOUNT, request.san_account_id)
        if account.app_id != request.app_id:
            raise not_found(SAN_ACCOUNT, (request.san_account_id,))
        return san_account_pb2.GetSanAccountCredentialsResponse(
            credentials=account.credentials, revision=account.revision
        )

    async def CreateCampaign(
        self, request: campaign_pb2.CreateCampaignRequest, context: Context
    ) -> campaign_pb2.CreateCampaignResponse:
        campaign = await self._resources.create(
            CAMPAIGN, request.campaign, request.request_id, validate_only=request.validate_only
        )
        return campaign_pb2.CreateCampaignResponse(campaign=campaign)

    async def GetCampaign(
        self, request: campaign_pb2.GetCampaignRequest, context: Context
    ) -> campaign_pb2.GetCampaignResponse:
        return campaign_pb2.GetCampaignResponse(campaign=await self._resources.get(CAMPAIGN, request.campaign_id))

    async def ListCampaigns(
        self, request: campaign_pb2.ListCampaignsRequest, context: Context
    ) -> campaign_pb2.ListCampaignsResponse:
        campaigns, next_page_token = await self._resources.page(CAMPAIGN, request, app_id=request.app_id)
        return campaign_pb2.ListCampaignsResponse(campaigns=campaigns, next_page_token=next_page_token)

    async def UpdateCampaign(
        self, request: campaign_pb2.UpdateCampaignRequest, context: Context
    ) -> campaign_pb2.UpdateCampaignResponse:
        campaign = await self._resources.update(
            CAMPAIGN, request.campaign, request.update_mask, validate_only=request.validate_only
        )
        return campaign_pb2.UpdateCampaignResponse(campaign=campaign)

    async def ArchiveCampaign(
        self, request: campaign_pb2.ArchiveCampaignRequest, context: Context
    ) -> campaign_pb2.ArchiveCampaignResponse:
        return campaign_pb2.ArchiveCampaignResponse(
            campaign=await self._resources.archive(
                CAMPAIGN, request.campaign_id, etag=request.etag, validate_only=request.validate_only
            )
        )

    async def CreateSegment(
        self, request: segment_pb2.CreateSegmentRequest, context: Context
    ) -> segment_pb2.CreateSegmentResponse:
        segment = await self._resources.create(
            SEGMENT, request.segment, request.request_id, validate_only=request.validate_only
        )
        return segment_pb2.CreateSegmentResponse(segment=segment)

    async def GetSegment(
        self, request: segment_pb2.GetSegmentRequest, context: Context
    ) -> segment_pb2.GetSegmentResponse:
        return segment_pb2.GetSegmentResponse(segment=await self._resources.get(SEGMENT, request.segment_id))

    async def ListSegments(
        self, request: segment_pb2.ListSegmentsRequest, context: Context
    ) -> segment_pb2.ListSegmentsResponse:
        segments, next_page_token = await self._resources.page(SEGMENT, request, app_id=request.app_id)
        return segment_pb2.ListSegmentsResponse(segments=segments, next_page_token=next_page_token)

    async def UpdateSegment(
        self, request: segment_pb2.UpdateSegmentRequest, context: Context
    ) -> segment_pb2.UpdateSegmentResponse:
        segment = await self._resources.update(
            SEGMENT, request.segment, request.update_mask, validate_only=request.validate_only
        )
        return segment_pb2.UpdateSegmentResponse(segment=segment)

    async def ArchiveSegment(
        self, request: segment_pb2.ArchiveSegmentRequest, context: Context
    ) -> segment_pb2.ArchiveSegmentResponse:
        return segment_pb2.ArchiveSegmentResponse(
            segment=await self._resources.archive(
                SEGMENT, request.segment_id, etag=request.etag, validate_only=request.validate_only
            )
        )

    async def CreateTracker(
        self, request: tracker_pb2.CreateTrackerRequest, context: Context
    ) -> tracker_pb2.CreateTrackerResponse:
        tracker = await self._trackers.create(request)
        return tracker_pb2.CreateTrackerResponse(
            tracker=tracker,
            postback_drafts=await self._trackers.drafts(tracker) if request.draft_postbacks else (),
            links=await self._trackers.links(tracker),
        )

    async def GetTracker(
        self, request: tracker_pb2.GetTrackerRequest, context: Context
    ) -> tracker_pb2.GetTrackerResponse:
        tracker = await self._resources.get(TRACKER, request.tracker_id)
        return tracker_pb2.GetTrackerResponse(tracker=tracker, links=await self._trackers.links(tracker))

    async def ListTrackers(
        self, request: tracker_pb2.ListTrackersRequest, context: Context
    ) -> tracker_pb2.ListTrackersResponse:
        violations = Violations()
        conditions = filter_conditions(request.filter, violations)
        violations.check()
        trackers, next_page_token = await self._resources.page(TRACKER, request, request.app_id, conditions)
        return tracker_pb2.ListTrackersResponse(trackers=trackers, next_page_token=next_page_token)

    async def UpdateTracker(
        self, request: tracker_pb2.UpdateTrackerRequest, context: Context
    ) -> tracker_pb2.UpdateTrackerResponse:
        tracker = await self._resources.update(
            TRACKER, request.tracker, request.update_mask, validate_only=request.validate_only
        )
        return tracker_pb2.UpdateTrackerResponse(tracker=tracker)

    async def ArchiveTracker(
        self, request: tracker_pb2.ArchiveTrackerRequest, context: Context
    ) -> tracker_pb2.ArchiveTrackerResponse:
        return tracker_pb2.ArchiveTrackerResponse(
            tracker=await self._resources.archive(
                TRACKER, request.tracker_id, etag=request.etag, validate_only=request.validate_only
            )
        )

    async def CopyTracker(
        self, request: tracker_pb2.CopyTrackerRequest, context: Context
    ) -> tracker_pb2.CopyTrackerResponse:
        tracker = await self._trackers.copy(request)
        return tracker_pb2.CopyTrackerResponse(tracker=tracker, links=await self._trackers.links(tracker))

    async def BulkEditTrackers(
        self, request: tracker_edit_pb2.BulkEditTrackersRequest, context: Context
    ) -> tracker_edit_pb2.BulkEditTrackersResponse:
        return await self._trackers.bulk_edit(request)

    async def ExportTrackers(
        self, request: tracker_edit_pb2.ExportTrackersRequest, context: Context
    ) -> AsyncGenerator[tracker_edit_pb2.ExportTrackersResponse, None]:
        async with aclosing(self._trackers.export(request)) as pieces:
            async for content in pieces:
                yield tracker_edit_pb2.ExportTrackersResponse(content=content)

    async def ImportTrackers(
        self, request: tracker_edit_pb2.ImportTrackersRequest, context: Context
    ) -> tracker_edit_pb2.ImportTrackersResponse:
        return await self._trackers.import_file(request)

    async def DraftPostbacks(
        self, request: postback_draft_pb2.DraftPostbacksRequest, context: Context
    ) -> postback_draft_pb2.DraftPostbacksResponse:
        return postback_draft_pb2.DraftPostbacksResponse(
            postback_drafts=await self._trackers.drafts(await self._resources.get(TRACKER, request.tracker_id))
        )

    async def ResolveSettings(
        self, request: resolve_pb2.ResolveSettingsRequest, context: Context
    ) -> resolve_pb2.ResolveSettingsResponse:
        violations = Violations()
        if bool(request.tracker_id) == bool(request.app_id):
            violations.add("tracker_id", "REQUIRED", "give a tracker, or an app with its events")
        if request.tracker_id and request.event_names:
            violations.add("event_names", "NOT_ALLOWED", "are for an app; a tracker has its own")
        violations.check()
        if request.tracker_id:
            settings, revision = await self._trackers.settings(request.tracker_id)
        else:
            settings, revision = await self._trackers.settings_of_events(request.app_id, request.event_names)
        return resolve_pb2.ResolveSettingsResponse(settings=settings, revision=revision)

    async def CreateEventDefinition(
        self, request: event_definition_pb2.CreateEventDefinitionRequest, context: Context
    ) -> event_definition_pb2.CreateEventDefinitionResponse:
        event_definition = await self._resources.create(
            EVENT_DEFINITION, request.event_definition, request.request_id, validate_only=request.validate_only
        )
        return event_definition_pb2.CreateEventDefinitionResponse(event_definition=event_definition)

    async def GetEventDefinition(
        self, request: event_definition_pb2.GetEventDefinitionRequest, context: Context
    ) -> event_definition_pb2.GetEventDefinitionResponse:
        return event_definition_pb2.GetEventDefinitionResponse(
            event_definition=await self._resources.get(EVENT_DEFINITION, request.app_id, request.event_name)
        )

    async def ListEventDefinitions(
        self, request: event_definition_pb2.ListEventDefinitionsRequest, context: Context
    ) -> event_definition_pb2.ListEventDefinitionsResponse:
        event_definitions, next_page_token = await self._resources.page(
            EVENT_DEFINITION, request, app_id=request.app_id
        )
        return event_definition_pb2.ListEventDefinitionsResponse(
            event_definitions=event_definitions, next_page_token=next_page_token
        )

    async def UpdateEventDefinition(
        self, request: event_definition_pb2.UpdateEventDefinitionRequest, context: Context
    ) -> event_definition_pb2.UpdateEventDefinitionResponse:
        event_definition = await self._resources.update(
            EVENT_DEFINITION, request.event_definition, request.update_mask, validate_only=request.validate_only
        )
        return event_definition_pb2.UpdateEventDefinitionResponse(event_definition=event_definition)

    async def ArchiveEventDefinition(
        self, request: event_definition_pb2.ArchiveEventDefinitionRequest, context: Context
    ) -> event_definition_pb2.ArchiveEventDefinitionResponse:
        return event_definition_pb2.ArchiveEventDefinitionResponse(
            event_definition=await self._resources.archive(
                EVENT_DEFINITION,
                request.app_id,
                request.event_name,
                etag=request.etag,
                validate_only=request.validate_only,
            )
        )

    async def RegisterEvents(
        self, request: event_definition_pb2.RegisterEventsRequest, context: Context
    ) -> event_definition_pb2.RegisterEventsResponse:
        created = await self._resources.register_events(request.app_id, request.event_names)
        return event_definition_pb2.RegisterEventsResponse(created_count=created)

    async def CreateApiKey(
        self, request: api_key_pb2.CreateApiKeyRequest, context: Context
    ) -> api_key_pb2.CreateApiKeyResponse:
        api_key, key = await self._keys.create(request.api_key, request.request_id, validate_only=request.validate_only)
        return api_key_pb2.CreateApiKeyResponse(api_key=api_key, key=key)

    async def GetApiKey(self, request: api_key_pb2.GetApiKeyRequest, context: Context) -> api_key_pb2.GetApiKeyResponse:
        return api_key_pb2.GetApiKeyResponse(api_key=await self._keys.get(request.api_key_id))

    async def ListApiKeys(
        self, request: api_key_pb2.ListApiKeysRequest, context: Context
    ) -> api_key_pb2.ListApiKeysResponse:
        api_keys, next_page_token = await self._resources.page(API_KEY, request)
        return api_key_pb2.ListApiKeysResponse(
            api_keys=await self._keys.with_use(api_keys), next_page_token=next_page_token
        )

    async def UpdateApiKey(
        self, request: api_key_pb2.UpdateApiKeyRequest, context: Context
    ) -> api_key_pb2.UpdateApiKeyResponse:
        api_key = await self._resources.update(
            API_KEY, request.api_key, request.update_mask, validate_only=request.validate_only
        )
        return api_key_pb2.UpdateApiKeyResponse(api_key=(await self._keys.with_use([api_key]))[0])

    async def ArchiveApiKey(
        self, request: api_key_pb2.ArchiveApiKeyRequest, context: Context
    ) -> api_key_pb2.ArchiveApiKeyResponse:
        api_key = await self._resources.archive(
            API_KEY, request.api_key_id, etag=request.etag, validate_only=request.validate_only
        )
        return api_key_pb2.ArchiveApiKeyResponse(api_key=(await self._keys.with_use([api_key]))[0])

    async def RotateApiKey(
        self, request: api_key_pb2.RotateApiKeyRequest, context: Context
    ) -> api_key_pb2.RotateApiKeyResponse:
        overlap = request.overlap if request.HasField("overlap") else None
        api_key, key = await self._keys.rotate(request.api_key_id, overlap, request.request_id)
        return api_key_pb2.RotateApiKeyResponse(api_key=api_key, key=key)

    async def PlanSettings(
        self, request: settings_file_pb2.PlanSettingsRequest, context: Context
    ) -> settings_file_pb2.PlanSettingsResponse:
        return await self._plans.plan(request.wanted)

    async def ApplySettings(
        self, request: settings_file_pb2.ApplySettingsRequest, context: Context
    ) -> settings_file_pb2.ApplySettingsResponse:
        return await self._plans.apply(request.wanted, request.etag)

    async def ListChanges(
        self, request: change_pb2.ListChangesRequest, context: Context
    ) -> change_pb2.ListChangesResponse:
        return await self._audit_trail.page(request)

    async def GetSnapshot(
        self, request: snapshot_pb2.GetSnapshotRequest, context: Context
    ) -> AsyncGenerator[snapshot_pb2.GetSnapshotResponse, None]:
        _check_revision(request.revision)
        await self._audit_trail.check_reached(request.revision)
        whole = self._store.past(request.revision) if request.revision else self._store.snapshot()
        async with aclosing(whole) as parts:
            async for part in parts:
                yield snapshot_pb2.GetSnapshotResponse(revision=part.revision, resources=part.resources)

    async def WatchSnapshot(
        self, request: snapshot_pb2.WatchSnapshotRequest, context: Context
    ) -> AsyncGenerator[snapshot_pb2.WatchSnapshotResponse, None]:
        _check_revision(request.revision)
        watched = watch(
            self._store,
            self._revisions,
            request.revision,
            heartbeat_s=self._heartbeat_s,
            max_changes=self._max_changes,
            with_secrets=request.with_secrets,
        )
        async with aclosing(watched) as responses:
            async for response in responses:
                yield response


def _check_revision(revision: int) -> None:
    if revision < 0:
        violations = Violations()
        violations.add("revision", "OUT_OF_RANGE", "must be 0 or a revision received")
        violations.check()
