"""The gRPC face of tracker."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from libs.errors import Violations
from reengage.tracker.v1 import tracker_pb2, tracker_pb2_grpc
from services.tracker.kinds import APP, CAMPAIGN, EVENT_DEFINITION, NETWORK, NETWORK_SETTINGS, SEGMENT, TRACKER
from services.tracker.revisions import Revisions
from services.tracker.settings import Settings
from services.tracker.store import Store
from services.tracker.watching import watch

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class TrackerConfigService(tracker_pb2_grpc.TrackerConfigServiceServicer):
    """Names the kind of resource that each method is about; `Settings` does the same for all of them."""

    def __init__(self, settings: Settings, store: Store, revisions: Revisions) -> None:
        self._settings, self._store, self._revisions = settings, store, revisions

    async def CreateApp(self, request: tracker_pb2.CreateAppRequest, context: Context) -> tracker_pb2.CreateAppResponse:
        app = await self._settings.create(APP, request.app, request.request_id)
        return tracker_pb2.CreateAppResponse(app=app)

    async def GetApp(self, request: tracker_pb2.GetAppRequest, context: Context) -> tracker_pb2.GetAppResponse:
        return tracker_pb2.GetAppResponse(app=await self._settings.get(APP, request.app_id))

    async def ListApps(self, request: tracker_pb2.ListAppsRequest, context: Context) -> tracker_pb2.ListAppsResponse:
        apps, next_page_token = await self._settings.page(APP, request)
        return tracker_pb2.ListAppsResponse(apps=apps, next_page_token=next_page_token)

    async def UpdateApp(self, request: tracker_pb2.UpdateAppRequest, context: Context) -> tracker_pb2.UpdateAppResponse:
        app = await self._settings.update(APP, request.app, request.update_mask)
        return tracker_pb2.UpdateAppResponse(app=app)

    async def ArchiveApp(
        self, request: tracker_pb2.ArchiveAppRequest, context: Context
    ) -> tracker_pb2.ArchiveAppResponse:
        return tracker_pb2.ArchiveAppResponse(app=await self._settings.archive(APP, request.app_id))

    async def CreateNetwork(
        self, request: tracker_pb2.CreateNetworkRequest, context: Context
    ) -> tracker_pb2.CreateNetworkResponse:
        network = await self._settings.create(NETWORK, request.network, request.request_id)
        return tracker_pb2.CreateNetworkResponse(network=network)

    async def GetNetwork(
        self, request: tracker_pb2.GetNetworkRequest, context: Context
    ) -> tracker_pb2.GetNetworkResponse:
        return tracker_pb2.GetNetworkResponse(network=await self._settings.get(NETWORK, request.network_id))

    async def ListNetworks(
        self, request: tracker_pb2.ListNetworksRequest, context: Context
    ) -> tracker_pb2.ListNetworksResponse:
        networks, next_page_token = await self._settings.page(NETWORK, request)
        return tracker_pb2.ListNetworksResponse(networks=networks, next_page_token=next_page_token)

    async def UpdateNetwork(
        self, request: tracker_pb2.UpdateNetworkRequest, context: Context
    ) -> tracker_pb2.UpdateNetworkResponse:
        network = await self._settings.update(NETWORK, request.network, request.update_mask)
        return tracker_pb2.UpdateNetworkResponse(network=network)

    async def ArchiveNetwork(
        self, request: tracker_pb2.ArchiveNetworkRequest, context: Context
    ) -> tracker_pb2.ArchiveNetworkResponse:
        return tracker_pb2.ArchiveNetworkResponse(network=await self._settings.archive(NETWORK, request.network_id))

    async def GetNetworkSettings(
        self, request: tracker_pb2.GetNetworkSettingsRequest, context: Context
    ) -> tracker_pb2.GetNetworkSettingsResponse:
        settings = await self._settings.get(NETWORK_SETTINGS, request.app_id, request.network_id)
        return tracker_pb2.GetNetworkSettingsResponse(network_settings=settings)

    async def UpdateNetworkSettings(
        self, request: tracker_pb2.UpdateNetworkSettingsRequest, context: Context
    ) -> tracker_pb2.UpdateNetworkSettingsResponse:
        settings = await self._settings.update(NETWORK_SETTINGS, request.network_settings, request.update_mask)
        return tracker_pb2.UpdateNetworkSettingsResponse(network_settings=settings)

    async def CreateCampaign(
        self, request: tracker_pb2.CreateCampaignRequest, context: Context
    ) -> tracker_pb2.CreateCampaignResponse:
        campaign = await self._settings.create(CAMPAIGN, request.campaign, request.request_id)
        return tracker_pb2.CreateCampaignResponse(campaign=campaign)

    async def GetCampaign(
        self, request: tracker_pb2.GetCampaignRequest, context: Context
    ) -> tracker_pb2.GetCampaignResponse:
        return tracker_pb2.GetCampaignResponse(campaign=await self._settings.get(CAMPAIGN, request.campaign_id))

    async def ListCampaigns(
        self, request: tracker_pb2.ListCampaignsRequest, context: Context
    ) -> tracker_pb2.ListCampaignsResponse:
        campaigns, next_page_token = await self._settings.page(CAMPAIGN, request, app_id=request.app_id)
        return tracker_pb2.ListCampaignsResponse(campaigns=campaigns, next_page_token=next_page_token)

    async def UpdateCampaign(
        self, request: tracker_pb2.UpdateCampaignRequest, context: Context
    ) -> tracker_pb2.UpdateCampaignResponse:
        campaign = await self._settings.update(CAMPAIGN, request.campaign, request.update_mask)
        return tracker_pb2.UpdateCampaignResponse(campaign=campaign)

    async def ArchiveCampaign(
        self, request: tracker_pb2.ArchiveCampaignRequest, context: Context
    ) -> tracker_pb2.ArchiveCampaignResponse:
        return tracker_pb2.ArchiveCampaignResponse(campaign=await self._settings.archive(CAMPAIGN, request.campaign_id))

    async def CreateSegment(
        self, request: tracker_pb2.CreateSegmentRequest, context: Context
    ) -> tracker_pb2.CreateSegmentResponse:
        segment = await self._settings.create(SEGMENT, request.segment, request.request_id)
        return tracker_pb2.CreateSegmentResponse(segment=segment)

    async def GetSegment(
        self, request: tracker_pb2.GetSegmentRequest, context: Context
    ) -> tracker_pb2.GetSegmentResponse:
        return tracker_pb2.GetSegmentResponse(segment=await self._settings.get(SEGMENT, request.segment_id))

    async def ListSegments(
        self, request: tracker_pb2.ListSegmentsRequest, context: Context
    ) -> tracker_pb2.ListSegmentsResponse:
        segments, next_page_token = await self._settings.page(SEGMENT, request, app_id=request.app_id)
        return tracker_pb2.ListSegmentsResponse(segments=segments, next_page_token=next_page_token)

    async def UpdateSegment(
        self, request: tracker_pb2.UpdateSegmentRequest, context: Context
    ) -> tracker_pb2.UpdateSegmentResponse:
        segment = await self._settings.update(SEGMENT, request.segment, request.update_mask)
        return tracker_pb2.UpdateSegmentResponse(segment=segment)

    async def ArchiveSegment(
        self, request: tracker_pb2.ArchiveSegmentRequest, context: Context
    ) -> tracker_pb2.ArchiveSegmentResponse:
        return tracker_pb2.ArchiveSegmentResponse(segment=await self._settings.archive(SEGMENT, request.segment_id))

    async def CreateTracker(
        self, request: tracker_pb2.CreateTrackerRequest, context: Context
    ) -> tracker_pb2.CreateTrackerResponse:
        tracker = await self._settings.create(TRACKER, request.tracker, request.request_id)
        return tracker_pb2.CreateTrackerResponse(tracker=tracker)

    async def GetTracker(
        self, request: tracker_pb2.GetTrackerRequest, context: Context
    ) -> tracker_pb2.GetTrackerResponse:
        return tracker_pb2.GetTrackerResponse(tracker=await self._settings.get(TRACKER, request.tracker_id))

    async def ListTrackers(
        self, request: tracker_pb2.ListTrackersRequest, context: Context
    ) -> tracker_pb2.ListTrackersResponse:
        trackers, next_page_token = await self._settings.page(TRACKER, request, app_id=request.app_id)
        return tracker_pb2.ListTrackersResponse(trackers=trackers, next_page_token=next_page_token)

    async def UpdateTracker(
        self, request: tracker_pb2.UpdateTrackerRequest, context: Context
    ) -> tracker_pb2.UpdateTrackerResponse:
        tracker = await self._settings.update(TRACKER, request.tracker, request.update_mask)
        return tracker_pb2.UpdateTrackerResponse(tracker=tracker)

    async def ArchiveTracker(
        self, request: tracker_pb2.ArchiveTrackerRequest, context: Context
    ) -> tracker_pb2.ArchiveTrackerResponse:
        return tracker_pb2.ArchiveTrackerResponse(tracker=await self._settings.archive(TRACKER, request.tracker_id))

    async def CreateEventDefinition(
        self, request: tracker_pb2.CreateEventDefinitionRequest, context: Context
    ) -> tracker_pb2.CreateEventDefinitionResponse:
        event_definition = await self._settings.create(EVENT_DEFINITION, request.event_definition, request.request_id)
        return tracker_pb2.CreateEventDefinitionResponse(event_definition=event_definition)

    async def GetEventDefinition(
        self, request: tracker_pb2.GetEventDefinitionRequest, context: Context
    ) -> tracker_pb2.GetEventDefinitionResponse:
        return tracker_pb2.GetEventDefinitionResponse(
            event_definition=await self._settings.get(EVENT_DEFINITION, request.app_id, request.event_name)
        )

    async def ListEventDefinitions(
        self, request: tracker_pb2.ListEventDefinitionsRequest, context: Context
    ) -> tracker_pb2.ListEventDefinitionsResponse:
        event_definitions, next_page_token = await self._settings.page(EVENT_DEFINITION, request, app_id=request.app_id)
        return tracker_pb2.ListEventDefinitionsResponse(
            event_definitions=event_definitions, next_page_token=next_page_token
        )

    async def UpdateEventDefinition(
        self, request: tracker_pb2.UpdateEventDefinitionRequest, context: Context
    ) -> tracker_pb2.UpdateEventDefinitionResponse:
        event_definition = await self._settings.update(EVENT_DEFINITION, request.event_definition, request.update_mask)
        return tracker_pb2.UpdateEventDefinitionResponse(event_definition=event_definition)

    async def ArchiveEventDefinition(
        self, request: tracker_pb2.ArchiveEventDefinitionRequest, context: Context
    ) -> tracker_pb2.ArchiveEventDefinitionResponse:
        return tracker_pb2.ArchiveEventDefinitionResponse(
            event_definition=await self._settings.archive(EVENT_DEFINITION, request.app_id, request.event_name)
        )

    async def GetSnapshot(
        self, request: tracker_pb2.GetSnapshotRequest, context: Context
    ) -> AsyncGenerator[tracker_pb2.GetSnapshotResponse, None]:
        async with aclosing(self._store.snapshot()) as parts:
            async for part in parts:
                yield tracker_pb2.GetSnapshotResponse(revision=part.revision, resources=part.resources)

    async def WatchSnapshot(
        self, request: tracker_pb2.WatchSnapshotRequest, context: Context
    ) -> AsyncGenerator[tracker_pb2.WatchSnapshotResponse, None]:
        if request.revision < 0:
            violations = Violations()
            violations.add("revision", "OUT_OF_RANGE", "must be 0 or a revision received")
            violations.check()
        async with aclosing(watch(self._store, self._revisions, request.revision)) as responses:
            async for response in responses:
                yield response
