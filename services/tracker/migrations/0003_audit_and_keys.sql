-- Who changed what, and the keys that say who it is.

ALTER TABLE changes ADD COLUMN actor text NOT NULL DEFAULT '';
-- The app it belongs to; null: none, or several.
ALTER TABLE changes ADD COLUMN app_id text COLLATE "C";

UPDATE changes SET app_id = resource_key [1] WHERE kind IN ('app', 'network_settings', 'event_definition');
UPDATE changes SET app_id = campaigns.app_id FROM campaigns
WHERE changes.kind = 'campaign' AND campaigns.campaign_id = changes.resource_key [1];
UPDATE changes SET app_id = segments.app_id FROM segments
WHERE changes.kind = 'segment' AND segments.segment_id = changes.resource_key [1];
UPDATE changes SET app_id = trackers.app_id FROM trackers
WHERE changes.kind = 'tracker' AND trackers.tracker_id = changes.resource_key [1];

-- What a network's key may list.
ALTER TABLE trackers ADD COLUMN share_with_publisher boolean NOT NULL DEFAULT true;

CREATE TABLE api_keys (
    api_key_id text COLLATE "C" PRIMARY KEY CHECK (api_key_id <> ''),
    account_id text COLLATE "C" REFERENCES accounts,
    app_id text COLLATE "C" REFERENCES apps,
    network_id text COLLATE "C" REFERENCES networks,
    agency_id text COLLATE "C" REFERENCES agencies,
    status text NOT NULL CHECK (status IN ('STATUS_LIVE', 'STATUS_ARCHIVED')),
    resource bytea NOT NULL
);

-- A key holds 256 random bits, so its bare SHA-256 gives nothing away.
CREATE TABLE api_key_hashes (
    api_key_id text COLLATE "C" PRIMARY KEY REFERENCES api_keys,
    key_hash bytea NOT NULL UNIQUE,
    last_use_time timestamptz
);
