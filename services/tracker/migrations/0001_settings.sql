-- Every resource is kept whole in `resource`, the serialized message of its kind. The columns beside it are those
-- fields that identify it, that lists and other rows find it by, or that a constraint must see. Enums are the numbers
-- of the contract: a status is 1 (live) or 2 (archived). Times are microseconds since 1970. A resource is archived,
-- never deleted, since decisions name it.

CREATE TABLE revision (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    revision bigint NOT NULL
);

COMMENT ON TABLE revision IS
'One row: the newest revision. Whoever changes settings locks it first and raises it last, so that revisions have no
gaps and commit in their order.';

INSERT INTO revision (revision) VALUES (0);

CREATE TABLE accounts (
    account_id text COLLATE "C" PRIMARY KEY CHECK (account_id <> ''),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status smallint NOT NULL CHECK (status IN (1, 2)),
    resource bytea NOT NULL
);

COMMENT ON TABLE accounts IS 'Accounts, which own apps.';

CREATE UNIQUE INDEX accounts_live_name ON accounts (name) WHERE status = 1;

CREATE TABLE apps (
    app_id text COLLATE "C" PRIMARY KEY CHECK (app_id <> ''),
    account_id text COLLATE "C" REFERENCES accounts,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status smallint NOT NULL CHECK (status IN (1, 2)),
    resource bytea NOT NULL
);

COMMENT ON TABLE apps IS 'Apps, each on one platform.';

-- Within an account, so that nobody learns what others call theirs.
CREATE UNIQUE INDEX apps_live_name ON apps (coalesce(account_id, ''), name) WHERE status = 1;

CREATE TABLE networks (
    network_id text COLLATE "C" PRIMARY KEY CHECK (network_id <> ''),
    account_id text COLLATE "C" REFERENCES accounts,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status smallint NOT NULL CHECK (status IN (1, 2)),
    resource bytea NOT NULL
);

COMMENT ON TABLE networks IS 'Networks that somebody created, and those of the catalogue from their first use on.';

CREATE UNIQUE INDEX networks_live_name ON networks (coalesce(account_id, ''), name) WHERE status = 1;

CREATE TABLE agencies (
    agency_id text COLLATE "C" PRIMARY KEY CHECK (agency_id <> ''),
    account_id text COLLATE "C" REFERENCES accounts,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status smallint NOT NULL CHECK (status IN (1, 2)),
    resource bytea NOT NULL
);

COMMENT ON TABLE agencies IS 'Agencies, which work on trackers for an account, or for all.';

CREATE UNIQUE INDEX agencies_live_name ON agencies (coalesce(account_id, ''), name) WHERE status = 1;

CREATE TABLE network_settings (
    app_id text COLLATE "C" NOT NULL REFERENCES apps,
    network_id text COLLATE "C" NOT NULL REFERENCES networks,
    resource bytea NOT NULL,
    PRIMARY KEY (app_id, network_id)
);

COMMENT ON TABLE network_settings IS 'The settings of a network for an app, once somebody changed them.';

CREATE TABLE san_accounts (
    san_account_id text COLLATE "C" PRIMARY KEY CHECK (san_account_id <> ''),
    app_id text COLLATE "C" NOT NULL REFERENCES apps,
    network_id text COLLATE "C" NOT NULL REFERENCES networks,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status smallint NOT NULL CHECK (status IN (1, 2)),
    resource bytea NOT NULL
);

COMMENT ON TABLE san_accounts IS 'The accounts that apps have with self-attributing networks.';

CREATE UNIQUE INDEX san_accounts_live_name ON san_accounts (app_id, name) WHERE status = 1;

CREATE TABLE campaigns (
    campaign_id text COLLATE "C" PRIMARY KEY CHECK (campaign_id <> ''),
    app_id text COLLATE "C" NOT NULL REFERENCES apps,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status smallint NOT NULL CHECK (status IN (1, 2)),
    resource bytea NOT NULL,
    UNIQUE (app_id, campaign_id)
);

COMMENT ON TABLE campaigns IS 'Campaigns, the first level of the tree of trackers.';

CREATE UNIQUE INDEX campaigns_live_name ON campaigns (app_id, name) WHERE status = 1;

CREATE TABLE segments (
    segment_id text COLLATE "C" PRIMARY KEY CHECK (segment_id <> ''),
    campaign_id text COLLATE "C" NOT NULL,
    app_id text COLLATE "C" NOT NULL,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status smallint NOT NULL CHECK (status IN (1, 2)),
    resource bytea NOT NULL,
    -- A segment's app is its campaign's, a tracker's campaign and app are its segment's.
    FOREIGN KEY (app_id, campaign_id) REFERENCES campaigns (app_id, campaign_id),
    UNIQUE (app_id, segment_id),
    UNIQUE (app_id, campaign_id, segment_id)
);

COMMENT ON TABLE segments IS 'Segments, the second level of the tree of trackers.';

CREATE UNIQUE INDEX segments_live_name ON segments (campaign_id, name) WHERE status = 1;

CREATE TABLE trackers (
    tracker_id text COLLATE "C" PRIMARY KEY CHECK (tracker_id <> ''),
    segment_id text COLLATE "C" NOT NULL,
    campaign_id text COLLATE "C" NOT NULL,
    app_id text COLLATE "C" NOT NULL,
    network_id text COLLATE "C" NOT NULL REFERENCES networks,
    agency_id text COLLATE "C" REFERENCES agencies,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    -- 1 acquisition, 2 reengagement.
    type smallint NOT NULL CHECK (type IN (1, 2)),
    events text [] NOT NULL,
    default_tracker boolean NOT NULL,
    san_account_ids text [] NOT NULL,
    share_with_publisher boolean NOT NULL,
    status smallint NOT NULL CHECK (status IN (1, 2)),
    resource bytea NOT NULL,
    FOREIGN KEY (app_id, campaign_id, segment_id) REFERENCES segments (app_id, campaign_id, segment_id),
    UNIQUE (app_id, tracker_id),
    -- Rule D1: a reengagement tracker selects events, an acquisition tracker none.
    CHECK ((type = 2) = (cardinality(events) > 0))
);

COMMENT ON TABLE trackers IS 'Trackers: each belongs to a segment, and to a network.';

CREATE UNIQUE INDEX trackers_live_name ON trackers (app_id, name) WHERE status = 1;
-- Rule E3: at most one default tracker per app, network, type and selected event (such a tracker has one at most).
CREATE UNIQUE INDEX trackers_one_default ON trackers (app_id, network_id, type, events)
WHERE default_tracker AND status = 1;
CREATE INDEX trackers_by_network ON trackers (network_id) WHERE status = 1;
CREATE INDEX trackers_by_campaign ON trackers (campaign_id) WHERE status = 1;
CREATE INDEX trackers_by_segment ON trackers (segment_id) WHERE status = 1;

CREATE TABLE event_definitions (
    app_id text COLLATE "C" NOT NULL REFERENCES apps,
    event_name text COLLATE "C" NOT NULL CHECK (char_length(event_name) BETWEEN 1 AND 128),
    status smallint NOT NULL CHECK (status IN (1, 2)),
    resource bytea NOT NULL,
    PRIMARY KEY (app_id, event_name)
);

COMMENT ON TABLE event_definitions IS 'The settings of the events of an app.';

CREATE TABLE api_keys (
    api_key_id text COLLATE "C" PRIMARY KEY CHECK (api_key_id <> ''),
    account_id text COLLATE "C" REFERENCES accounts,
    app_id text COLLATE "C" REFERENCES apps,
    network_id text COLLATE "C" REFERENCES networks,
    agency_id text COLLATE "C" REFERENCES agencies,
    status smallint NOT NULL CHECK (status IN (1, 2)),
    resource bytea NOT NULL
);

COMMENT ON TABLE api_keys IS 'API keys by their ids: role and scope, not the keys themselves.';

CREATE TABLE api_key_hashes (
    api_key_id text COLLATE "C" PRIMARY KEY REFERENCES api_keys,
    key_hash bytea NOT NULL UNIQUE,
    last_use_us bigint
);

COMMENT ON TABLE api_key_hashes IS
'The SHA-256 of each key, and when it was last used. A key holds 256 random bits, so the bare digest gives
nothing away.';

CREATE TABLE sealed (
    kind smallint NOT NULL,
    resource_key text [] NOT NULL,
    sealed bytea NOT NULL,
    PRIMARY KEY (kind, resource_key)
);

COMMENT ON TABLE sealed IS
'Secrets of resources, encrypted; apart from them, so that neither snapshots nor the audit trail hold secrets.';

CREATE TABLE changes (
    revision bigint NOT NULL,
    -- The number of ResourceKind.
    kind smallint NOT NULL,
    resource_key text [] NOT NULL,
    change_us bigint NOT NULL,
    resource bytea NOT NULL,
    actor text NOT NULL,
    -- The app it belongs to; null: none, or several.
    app_id text COLLATE "C",
    PRIMARY KEY (revision, kind, resource_key)
);

COMMENT ON TABLE changes IS
'The audit trail: the resources that each revision changed, as they were from then on, and who changed them.';

CREATE INDEX changes_by_resource ON changes (kind, resource_key, revision);
CREATE INDEX changes_by_app ON changes (app_id, revision);

CREATE TABLE requests (
    kind smallint NOT NULL,
    actor text NOT NULL,
    request_id text NOT NULL,
    resource_key text [] NOT NULL,
    request_us bigint NOT NULL,
    PRIMARY KEY (kind, actor, request_id)
);

COMMENT ON TABLE requests IS 'What a create made, by its caller and his request id; kept for a day.';

CREATE INDEX requests_by_time ON requests (request_us);
