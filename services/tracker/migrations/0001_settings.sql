-- Every resource is kept whole in `resource`, the serialized message of its kind. The columns beside it are those fields
-- that identify it, that lists and other rows find it by, or that a constraint must see; enums stand by their names.
-- A resource is archived, never deleted, since decisions name it.

-- One row. Whoever changes settings locks it first and raises it last, so revisions are dense and commit in order.
CREATE TABLE revision (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    revision bigint NOT NULL
);

INSERT INTO revision (revision) VALUES (0);

CREATE TABLE apps (
    app_id text COLLATE "C" PRIMARY KEY CHECK (app_id <> ''),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status text NOT NULL CHECK (status IN ('STATUS_LIVE', 'STATUS_ARCHIVED')),
    resource bytea NOT NULL
);

CREATE UNIQUE INDEX apps_live_name ON apps (name) WHERE status = 'STATUS_LIVE';

CREATE TABLE networks (
    network_id text COLLATE "C" PRIMARY KEY CHECK (network_id <> ''),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status text NOT NULL CHECK (status IN ('STATUS_LIVE', 'STATUS_ARCHIVED')),
    resource bytea NOT NULL
);

CREATE UNIQUE INDEX networks_live_name ON networks (name) WHERE status = 'STATUS_LIVE';

CREATE TABLE network_settings (
    app_id text COLLATE "C" NOT NULL REFERENCES apps,
    network_id text COLLATE "C" NOT NULL REFERENCES networks,
    resource bytea NOT NULL,
    PRIMARY KEY (app_id, network_id)
);

CREATE TABLE campaigns (
    campaign_id text COLLATE "C" PRIMARY KEY CHECK (campaign_id <> ''),
    app_id text COLLATE "C" NOT NULL REFERENCES apps,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status text NOT NULL CHECK (status IN ('STATUS_LIVE', 'STATUS_ARCHIVED')),
    resource bytea NOT NULL,
    UNIQUE (app_id, campaign_id)
);

CREATE UNIQUE INDEX campaigns_live_name ON campaigns (app_id, name) WHERE status = 'STATUS_LIVE';

CREATE TABLE segments (
    segment_id text COLLATE "C" PRIMARY KEY CHECK (segment_id <> ''),
    campaign_id text COLLATE "C" NOT NULL,
    app_id text COLLATE "C" NOT NULL,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status text NOT NULL CHECK (status IN ('STATUS_LIVE', 'STATUS_ARCHIVED')),
    resource bytea NOT NULL,
    -- A segment's app is its campaign's, a tracker's campaign and app are its segment's.
    FOREIGN KEY (app_id, campaign_id) REFERENCES campaigns (app_id, campaign_id),
    UNIQUE (app_id, segment_id),
    UNIQUE (app_id, campaign_id, segment_id)
);

CREATE UNIQUE INDEX segments_live_name ON segments (campaign_id, name) WHERE status = 'STATUS_LIVE';

CREATE TABLE trackers (
    tracker_id text COLLATE "C" PRIMARY KEY CHECK (tracker_id <> ''),
    segment_id text COLLATE "C" NOT NULL,
    campaign_id text COLLATE "C" NOT NULL,
    app_id text COLLATE "C" NOT NULL,
    network_id text COLLATE "C" NOT NULL REFERENCES networks,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    type text NOT NULL CHECK (type IN ('TYPE_ACQUISITION', 'TYPE_REENGAGEMENT')),
    events text [] NOT NULL,
    default_tracker boolean NOT NULL,
    status text NOT NULL CHECK (status IN ('STATUS_LIVE', 'STATUS_ARCHIVED')),
    resource bytea NOT NULL,
    FOREIGN KEY (app_id, campaign_id, segment_id) REFERENCES segments (app_id, campaign_id, segment_id),
    UNIQUE (app_id, tracker_id),
    -- Rule D1: a reengagement tracker selects events, an acquisition tracker none.
    CHECK ((type = 'TYPE_REENGAGEMENT') = (cardinality(events) > 0))
);

CREATE UNIQUE INDEX trackers_live_name ON trackers (app_id, name) WHERE status = 'STATUS_LIVE';
-- Rule E3: at most one default tracker per app, network and type.
CREATE UNIQUE INDEX trackers_one_default ON trackers (app_id, network_id, type)
WHERE default_tracker AND status = 'STATUS_LIVE';
CREATE INDEX trackers_by_network ON trackers (network_id) WHERE status = 'STATUS_LIVE';
CREATE INDEX trackers_by_campaign ON trackers (campaign_id) WHERE status = 'STATUS_LIVE';
CREATE INDEX trackers_by_segment ON trackers (segment_id) WHERE status = 'STATUS_LIVE';

CREATE TABLE event_definitions (
    app_id text COLLATE "C" NOT NULL REFERENCES apps,
    event_name text COLLATE "C" NOT NULL CHECK (char_length(event_name) BETWEEN 1 AND 128),
    status text NOT NULL CHECK (status IN ('STATUS_LIVE', 'STATUS_ARCHIVED')),
    resource bytea NOT NULL,
    PRIMARY KEY (app_id, event_name)
);

-- What each revision changed: the resource as it was from then on.
CREATE TABLE changes (
    revision bigint NOT NULL,
    kind text NOT NULL,
    resource_key text [] NOT NULL,
    change_time timestamptz NOT NULL,
    resource bytea NOT NULL,
    PRIMARY KEY (revision, kind, resource_key)
);

-- What a create made, by the caller's request id; kept for a day.
CREATE TABLE requests (
    kind text NOT NULL,
    request_id text NOT NULL,
    resource_key text [] NOT NULL,
    request_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, request_id)
);

CREATE INDEX requests_by_time ON requests (request_time);
