-- Times are microseconds since 1970, enums the numbers of the API's. 64 is the number of lanes (libs/domain/lanes.py).
-- What grows with the traffic is partitioned by the month of its time, and each month by the retention of its app, so
-- that what is past goes with its whole partition (docs/decisions/0011).

-- Lanes and their owners.

CREATE TABLE lanes (
    lane smallint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
    owner text,
    lease_until_us bigint NOT NULL DEFAULT 0,
    indexed bigint NOT NULL DEFAULT 0,
    decided bigint [] NOT NULL DEFAULT array_fill(0::bigint, ARRAY[64]) CHECK (cardinality(decided) = 64),
    next_sequence bigint NOT NULL DEFAULT 0,
    relayed bigint NOT NULL DEFAULT 0 CHECK (relayed <= next_sequence)
) WITH (fillfactor = 50); -- rewritten many times a second: room for HOT updates
COMMENT ON TABLE lanes IS
'A lane of the log, and of deciding: who owns it, and how far it is. Engagements of this lane of the log are stored
below `indexed`. Conversions of the apps homed in this lane are taken below the positions `decided`, one a lane of the
log. Decisions with a sequence under `relayed` have been handed to postback.';

INSERT INTO lanes (lane)
SELECT generate_series(0, 63);

CREATE TABLE workers (
    worker_id text PRIMARY KEY,
    seen_time_us bigint NOT NULL
);
COMMENT ON TABLE workers IS 'The workers that are alive, so that each takes its fair share of lanes.';

-- What is decided upon.

CREATE TABLE engagements (
    match_key bytea NOT NULL,
    time_us bigint NOT NULL,
    engagement_id text NOT NULL,
    lane smallint NOT NULL,
    position bigint NOT NULL,
    receive_time_us bigint NOT NULL,
    is_click boolean NOT NULL,
    is_ping boolean NOT NULL, -- its time is the word of a network (D12)
    tracker_id text NOT NULL,
    device_keys bytea NOT NULL, -- 16 bytes each, one after the other
    ip text NOT NULL,
    user_agent text, -- model, OS, major and minor version, type of device, with tabs between
    click_id text NOT NULL,
    completed_view boolean NOT NULL,
    is_valid boolean NOT NULL,
    visitor smallint NOT NULL CHECK (visitor BETWEEN 0 AND 2), -- reengage.ingest.v1.Visitor; 0: a person
    country text NOT NULL, -- ISO 3166-1; empty when it is not known
    record bytea, -- reengage.ingest.v1.Record, only in the row under the engagement's own key
    retention_days smallint NOT NULL,
    -- A repeat of a row has its time and retention: the key holds them, as a partitioned table's must.
    PRIMARY KEY (match_key, time_us, engagement_id, retention_days)
) PARTITION BY RANGE (time_us);
COMMENT ON TABLE engagements IS
'A click or an impression, once under each of its match keys, with all that a decision needs. `lane` and `position` are
its place in the log. A conversion considers what was received up to the end of its late window (D12).';

CREATE TABLE network_clicks (
    click_key bytea NOT NULL,
    time_us bigint NOT NULL,
    engagement_id text NOT NULL,
    receive_time_us bigint NOT NULL,
    retention_days smallint NOT NULL,
    PRIMARY KEY (click_key, time_us, engagement_id, retention_days)
) PARTITION BY RANGE (time_us);
COMMENT ON TABLE network_clicks IS
'A person''s click under its tracker and the network''s own click id, to find duplicates (A6).';

CREATE TABLE hashed_kinds (
    app_id text NOT NULL,
    kind text NOT NULL,
    is_on_conversions boolean NOT NULL,
    lane smallint NOT NULL, -- the app's home lane
    is_indexed boolean NOT NULL DEFAULT false,
    PRIMARY KEY (app_id, kind, is_on_conversions)
);
COMMENT ON TABLE hashed_kinds IS
'The kinds of hashed device ids that engagements of an app ever carried, or conversions: only these hashes are worth
computing (A3). Indexed: `identifiers` has the hashes of all raw ids; of one on conversions `hashed_ids`, too, and no
conversion waits for that.';

CREATE INDEX hashed_kinds_by_lane ON hashed_kinds (lane);

CREATE TABLE hashed_ids (
    hash_key bytea NOT NULL,
    raw_key bytea NOT NULL,
    time_us bigint NOT NULL, -- the day of the engagement: one row a day for each id
    retention_days smallint NOT NULL,
    PRIMARY KEY (hash_key, raw_key, time_us, retention_days)
) PARTITION BY RANGE (time_us);
COMMENT ON TABLE hashed_ids IS
'The match keys of the raw ids that an app''s engagements carry, under the match keys of their hashes: so that a
conversion which carries only a hash finds them. Only for the hashes that conversions of the app carry.';

-- An erasure takes the hashes of the ids of an engagement.
CREATE INDEX hashed_ids_by_raw_key ON hashed_ids (raw_key);

CREATE TABLE retentions (
    app_id text PRIMARY KEY,
    least_days smallint NOT NULL,
    most_days smallint NOT NULL CHECK (most_days >= least_days)
);
COMMENT ON TABLE retentions IS
'For how long, at least and at most, an app''s engagements are kept: the partitions in which to look for them.';

CREATE TABLE devices (
    device_id uuid PRIMARY KEY,
    app_id text NOT NULL,
    ids jsonb NOT NULL, -- kind: values
    history jsonb NOT NULL,
    identities jsonb NOT NULL DEFAULT '{}',
    create_time_us bigint NOT NULL,
    sightings jsonb NOT NULL, -- the ids that records named together, each with the earliest times (D12)
    merged_into uuid,
    merge_sequence bigint -- where its history went over: decisions from this sequence on know both
);
COMMENT ON TABLE devices IS
'One install of one app on one device. A merged device stays as a signpost to the one that it became.';

CREATE INDEX devices_by_merge ON devices (merged_into) WHERE merged_into IS NOT NULL;

CREATE TABLE identifiers (
    id_key bytea NOT NULL, -- a digest of app and value: the match key of engagements that carry it
    kind text NOT NULL,
    device_id uuid, -- NULL: it is shared, and leads to none
    met bytea, -- digests of 8 bytes of the advertising ids that came with it, one after the other (A8)
    PRIMARY KEY (id_key, kind)
);
COMMENT ON TABLE identifiers IS
'The device that an id leads to. Where an app has hashed ids, the hashes of a raw id lead to its device, too (A3).';

-- An erasure takes all ids that a device was ever known by.
CREATE INDEX identifiers_by_device ON identifiers (device_id);

CREATE TABLE shared_ids (
    app_id text NOT NULL,
    share_time_us bigint NOT NULL, -- of receipt of the record that showed it
    kind text NOT NULL,
    value text NOT NULL,
    id_key bytea NOT NULL,
    PRIMARY KEY (app_id, share_time_us, id_key, kind)
);
COMMENT ON TABLE shared_ids IS
'The ids that are nobody''s because several devices share them (A8), each once; `identifiers` has what they have met.';

CREATE TABLE claim_triggers (
    app_id text NOT NULL,
    event_name text NOT NULL,
    network_id text NOT NULL,
    PRIMARY KEY (app_id, event_name, network_id)
);
COMMENT ON TABLE claim_triggers IS
'The conversions that claims are requested for, as postback said last: known at a start without postback, too.';

CREATE TABLE pending_conversions (
    lane smallint NOT NULL,
    app_id text NOT NULL,
    conversion_id text NOT NULL,
    device_id uuid NOT NULL, -- all zero: not known, as it waits for the hashes of ids to be indexed
    is_install boolean NOT NULL,
    log_lane smallint NOT NULL,
    position bigint NOT NULL,
    receive_time_us bigint NOT NULL,
    settings_revision bigint NOT NULL, -- that the record was accepted under
    record bytea NOT NULL, -- reengage.ingest.v1.Record
    network_ids text [] NOT NULL, -- that are asked; none: it waits for an earlier one of its device, or for hashes
    deadline_us bigint NOT NULL, -- decided without those that have not answered by then (E4)
    claims bytea, -- reengage.postback.v1.ConversionClaims, once nothing more is to come
    PRIMARY KEY (lane, conversion_id, app_id)
);
COMMENT ON TABLE pending_conversions IS
'A conversion that waits for the claims of self-attributing networks (E1), or behind an install that does. What it says
of ids and devices has been taken; only deciding it is left. Or one whose hashed ids (A3) are the first of their kind:
nothing of it is taken until the hashes of the ids that came before are indexed.';

CREATE INDEX pending_conversions_in_order ON pending_conversions (lane, receive_time_us);

CREATE INDEX pending_conversions_by_device ON pending_conversions (lane, device_id);

-- What was decided.

CREATE TABLE decisions (
    lane smallint NOT NULL,
    sequence bigint NOT NULL,
    app_id text NOT NULL,
    conversion_id text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    device_id uuid NOT NULL, -- all zero: an identity link of a device that was not known (F3)
    outcome smallint NOT NULL CHECK (outcome > 0), -- reengage.attribution.v1.Outcome
    conversion_time_us bigint NOT NULL,
    receive_time_us bigint NOT NULL, -- of the conversion, as in every version
    retention_days smallint NOT NULL,
    tracker_id text,
    engagement_id text,
    decision bytea NOT NULL, -- reengage.attribution.v1.Decision
    record bytea NOT NULL, -- reengage.ingest.v1.Record, as it was received
    engagement bytea, -- reengage.ingest.v1.Record of the winner
    -- With the record, the rules and the engagements these are what it was made of: so it can be made again.
    known_ids jsonb, -- kind: values that its device was known by and its record does not name
    claims bytea, -- reengage.postback.v1.ConversionClaims
    reattribution_id text, -- that made this version
    is_relayed boolean NOT NULL DEFAULT true, -- else postback does not hear of it
    -- By these a late engagement finds the conversions that it may change (D12).
    address_key bytea, -- of one that an engagement from its address could win
    missing_click text, -- a click id of ours that came back, of a click that had not arrived
    -- Nothing is decided twice. Later versions of a decision have the time and the retention of the first.
    PRIMARY KEY (lane, conversion_id, app_id, version, conversion_time_us, retention_days)
) PARTITION BY RANGE (conversion_time_us);
COMMENT ON TABLE decisions IS
'A version of a decision. Sequences are dense in each lane and commit in order: so the table is its own outbox.';

-- Dense and unique, as the lane's owner numbers them. Without the time: with it, this would seem an index of times.
CREATE INDEX decisions_in_order ON decisions (lane, sequence);

CREATE INDEX decisions_by_tracker ON decisions (lane, tracker_id, sequence) WHERE tracker_id IS NOT NULL;

CREATE INDEX decisions_by_engagement ON decisions (lane, engagement_id) WHERE engagement_id IS NOT NULL;

-- Several apps share a lane: an app with few decisions is listed without reading those of the others.
CREATE INDEX decisions_by_app ON decisions (lane, app_id, sequence);

-- A device's conversions in time; and an app's devices one after the other, as replays take them.
CREATE INDEX decisions_by_device ON decisions (lane, app_id, device_id, conversion_time_us, sequence);

CREATE INDEX decisions_by_reattribution ON decisions (lane, app_id, reattribution_id, sequence)
WHERE reattribution_id IS NOT NULL;

CREATE INDEX decisions_by_address ON decisions (address_key, conversion_time_us) WHERE address_key IS NOT NULL;

CREATE INDEX decisions_by_missing_click ON decisions (lane, missing_click) WHERE missing_click IS NOT NULL;

CREATE VIEW newest_decisions AS
SELECT
    lane, sequence, app_id, conversion_id, version, device_id, outcome, conversion_time_us, receive_time_us,
    retention_days, tracker_id, engagement_id, decision, record, engagement, known_ids, claims, reattribution_id,
    is_relayed
FROM decisions
WHERE version = (
    SELECT max(other.version) FROM decisions AS other
    WHERE other.lane = decisions.lane AND other.conversion_id = decisions.conversion_id
      AND other.app_id = decisions.app_id
      -- All versions have these, and so one partition holds them.
      AND other.conversion_time_us = decisions.conversion_time_us
      AND other.retention_days = decisions.retention_days
);
COMMENT ON VIEW newest_decisions IS 'The newest version of each decision: the one that counts.';

-- What arrived late.

CREATE TABLE late_arrivals (
    lane smallint NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    app_id text NOT NULL,
    record_id text NOT NULL,
    receive_time_us bigint NOT NULL,
    because smallint NOT NULL, -- reengage.attribution.v1.Because
    device_id uuid, -- that it concerns
    engagement_id text, -- or the engagement that decides which devices it concerns
    engagement bytea, -- reengage.ingest.v1.Record
    PRIMARY KEY (lane, number),
    CHECK ((device_id IS NULL) = (engagement_id IS NOT NULL AND engagement IS NOT NULL))
);
COMMENT ON TABLE late_arrivals IS
'A record that arrived after later ones were decided: what it changes is decided again (D12), and then it is gone.';

CREATE INDEX late_arrivals_in_order ON late_arrivals (lane, app_id, receive_time_us);

-- What could not be processed.

CREATE TABLE quarantined (
    lane smallint NOT NULL, -- home lane of the app
    number bigint GENERATED ALWAYS AS IDENTITY,
    work smallint NOT NULL CHECK (work BETWEEN 1 AND 6), -- reengage.attribution.v1.QuarantineWork
    app_id text NOT NULL, -- empty: the record could not be read
    place text NOT NULL, -- within the work: of the log, of a lane's decisions, of a device, of an erasure
    record_id text NOT NULL,
    reason smallint NOT NULL CHECK (reason BETWEEN 1 AND 5), -- reengage.attribution.v1.QuarantineReason
    error text NOT NULL CHECK (length(error) <= 500),
    create_time_us bigint NOT NULL DEFAULT now_us(),
    try_time_us bigint NOT NULL DEFAULT now_us(),
    try_count integer NOT NULL DEFAULT 1,
    is_retry_asked boolean NOT NULL DEFAULT false,
    -- By these it is tried again.
    log_lane smallint,
    position bigint, -- in the log; of a decision its sequence
    receive_time_us bigint,
    record bytea, -- reengage.ingest.v1.Record, unless it is too large
    claims bytea, -- reengage.postback.v1.ConversionClaims, of a conversion that had waited for them
    because smallint, -- of a late arrival
    device_id uuid, -- of a late arrival that concerns one, and of a re-attribution
    PRIMARY KEY (lane, number),
    UNIQUE (lane, work, app_id, place)
);
COMMENT ON TABLE quarantined IS
'A record, decision, device or erasure that could not be processed: it was set aside in the transaction that moved past
it, and waits for a person who has it tried again, or drops it.';

CREATE INDEX quarantined_by_app ON quarantined (app_id, lane, number);

CREATE INDEX quarantined_to_retry ON quarantined (lane, number) WHERE is_retry_asked;

-- Jobs.

CREATE TABLE reattributions (
    lane smallint NOT NULL,
    app_id text NOT NULL,
    reattribution_id text NOT NULL,
    start_us bigint NOT NULL,
    end_us bigint NOT NULL CHECK (end_us > start_us),
    send_postbacks boolean NOT NULL,
    state smallint NOT NULL DEFAULT 1 CHECK (state IN (1, 2, 3)), -- RUNNING, DONE, CANCELLED, as in the API
    after_device uuid, -- devices up to this one are done; they are taken in the order of their ids
    conversion_count bigint NOT NULL DEFAULT 0,
    changed_count bigint NOT NULL DEFAULT 0,
    estimated_total_count bigint NOT NULL DEFAULT 0,
    totals jsonb NOT NULL DEFAULT '[]',
    create_time_us bigint NOT NULL DEFAULT now_us(),
    finish_time_us bigint,
    PRIMARY KEY (lane, app_id, reattribution_id),
    CHECK ((state = 1) = (finish_time_us IS NULL))
);
COMMENT ON TABLE reattributions IS 'A re-attribution (G4): what it decides again, and how far it is.';

CREATE UNIQUE INDEX reattributions_running ON reattributions (lane, app_id) WHERE state = 1;

CREATE TABLE erasures (
    lane smallint NOT NULL,
    app_id text NOT NULL,
    erasure_id uuid NOT NULL,
    request_time_us bigint NOT NULL DEFAULT now_us(),
    finish_time_us bigint,
    erased_counts jsonb NOT NULL DEFAULT '{}',
    work jsonb,
    PRIMARY KEY (lane, app_id, erasure_id),
    CHECK ((work IS NULL) = (finish_time_us IS NOT NULL))
);
COMMENT ON TABLE erasures IS
'The proof that a device was forgotten. `work` names what is still to be erased, and is gone when it is done.';

CREATE INDEX erasures_under_way ON erasures (lane, request_time_us) WHERE work IS NOT NULL;
