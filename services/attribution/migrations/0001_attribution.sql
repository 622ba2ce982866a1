-- Everything attribution keeps. Each big table's keys begin with its distribution column (lane or match key), so that
-- Citus can shard them; no query of the hot path joins across.

-- A lane is read, indexed and decided by one worker at a time. `indexed`: engagements of the log's lane below this
-- position are stored. `decided`: per log lane, conversions of the apps homed in this lane are decided below this.
-- `next_sequence`: of the lane's decisions. `relayed`: decisions below this were handed to postback.
CREATE TABLE lanes (
    lane smallint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
    owner text,
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    indexed bigint NOT NULL DEFAULT 0,
    decided bigint [] NOT NULL DEFAULT array_fill(0::bigint, ARRAY[64]) CHECK (cardinality(decided) = 64),
    next_sequence bigint NOT NULL DEFAULT 0,
    relayed bigint NOT NULL DEFAULT 0 CHECK (relayed <= next_sequence)
) WITH (fillfactor = 50); -- rewritten many times a second: room for HOT updates

INSERT INTO lanes (lane)
SELECT generate_series(0, 63);

-- Workers that are alive, so that each takes its fair share of lanes.
CREATE TABLE workers (
    worker_id text PRIMARY KEY,
    seen_time timestamptz NOT NULL
);

-- A click or impression, once under each of its match keys with all that a decision needs. `record` is filled only in
-- the row under the engagement's own key. `lane` and `position` are its place in the log: a decision considers only what
-- lies below the heads it was made at. `device_keys` are 16 bytes each, one after the other. `user_agent` is the
-- signature: model, os, major, minor, tab-separated.
CREATE TABLE engagements (
    match_key bytea NOT NULL,
    time_us bigint NOT NULL,
    engagement_id text NOT NULL,
    lane smallint NOT NULL,
    position bigint NOT NULL,
    is_click boolean NOT NULL,
    tracker_id text NOT NULL,
    device_keys bytea NOT NULL,
    ip text NOT NULL,
    user_agent text,
    click_id text NOT NULL,
    completed_view boolean NOT NULL,
    is_valid boolean NOT NULL,
    record bytea,
    PRIMARY KEY (match_key, time_us, engagement_id)
);

-- Clicks by the network's own click id and tracker, to find duplicates (A6).
CREATE TABLE network_clicks (
    click_key bytea NOT NULL,
    time_us bigint NOT NULL,
    engagement_id text NOT NULL,
    lane smallint NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (click_key, time_us, engagement_id)
);

-- Lengths of hashes that an app's engagements ever carried as device ids: only these are worth computing (A3).
CREATE TABLE hash_lengths (
    app_id text NOT NULL,
    length smallint NOT NULL,
    PRIMARY KEY (app_id, length)
);

-- One install of one app on one device. `ids` are all its ids by kind, `history` what it was credited to. A merged device
-- stays as a signpost to the one it became.
CREATE TABLE devices (
    device_id uuid PRIMARY KEY,
    app_id text NOT NULL,
    ids jsonb NOT NULL,
    history jsonb NOT NULL,
    identities jsonb NOT NULL DEFAULT '{}',
    create_time_us bigint NOT NULL,
    merged_into uuid
);

-- Which device an id belongs to. The key is a digest of app, kind and value.
CREATE TABLE identifiers (
    id_key bytea PRIMARY KEY,
    device_id uuid NOT NULL
);

-- Decisions, in a dense sequence per lane that commits in order: they are their own outbox. `heads` is the end of the
-- log's lanes that the decision was made at: engagements below it were considered, and no others (G5).
CREATE TABLE rounds (
    round_id uuid PRIMARY KEY,
    heads bigint [] NOT NULL,
    decide_time timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE decisions (
    lane smallint NOT NULL,
    sequence bigint NOT NULL,
    app_id text NOT NULL,
    conversion_id text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    round_id uuid NOT NULL,
    device_id uuid NOT NULL,
    outcome smallint NOT NULL,
    conversion_time_us bigint NOT NULL,
    tracker_id text,
    engagement_id text,
    decision bytea NOT NULL, -- reengage.attribution.v1.Decision
    record bytea NOT NULL, -- reengage.ingest.v1.Record, as it was received
    engagement bytea, -- reengage.ingest.v1.Record of the winner
    PRIMARY KEY (lane, sequence),
    UNIQUE (lane, conversion_id, app_id, version) -- nothing is decided twice
);

CREATE INDEX decisions_by_tracker ON decisions (lane, tracker_id, sequence) WHERE tracker_id IS NOT NULL;

CREATE INDEX decisions_by_engagement ON decisions (lane, engagement_id) WHERE engagement_id IS NOT NULL;
