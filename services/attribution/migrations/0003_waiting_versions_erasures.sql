-- Conversions that wait for the claims of self-attributing networks (E1), and those behind them that must not be decided
-- before. What they say of ids and devices has been taken; what is left is to decide them.
CREATE TABLE waiting (
    lane smallint NOT NULL,
    app_id text NOT NULL,
    conversion_id text NOT NULL,
    device_id uuid NOT NULL,
    is_install boolean NOT NULL,
    log_lane smallint NOT NULL,
    position bigint NOT NULL,
    receive_time_us bigint NOT NULL,
    settings_revision bigint NOT NULL, -- that the record was accepted under
    record bytea NOT NULL, -- reengage.ingest.v1.Record
    network_ids text [] NOT NULL, -- that are asked; none: it only waits for an earlier one of its device
    deadline_us bigint NOT NULL, -- decided without those that have not answered by then (E4)
    claims bytea, -- reengage.postback.v1.ConversionClaims, once nothing more is to come
    PRIMARY KEY (lane, conversion_id, app_id)
);

CREATE INDEX waiting_in_order ON waiting (lane, receive_time_us);

CREATE INDEX waiting_by_device ON waiting (lane, device_id);

-- The conversions that claims are requested for, as postback said last: known at a start without postback, too.
CREATE TABLE claim_triggers (
    app_id text NOT NULL,
    event_name text NOT NULL,
    network_id text NOT NULL,
    PRIMARY KEY (app_id, event_name, network_id)
);

-- What a decision was made of beside record, settings and engagements: the ids its device was known by and its record
-- does not name (kind: values); and the claims, a reengage.postback.v1.ConversionClaims. So it can be made again.
ALTER TABLE decisions ADD COLUMN known_ids jsonb;
ALTER TABLE decisions ADD COLUMN claims bytea;
-- The re-attribution that made this version, which postback hears of only if `is_relayed`.
ALTER TABLE decisions ADD COLUMN reattribution_id text;
ALTER TABLE decisions ADD COLUMN is_relayed boolean NOT NULL DEFAULT true;

-- Where a merged device's history went over to the other's: decisions from this sequence on know both.
ALTER TABLE devices ADD COLUMN merge_sequence bigint;

CREATE TABLE reattributions (
    lane smallint NOT NULL,
    app_id text NOT NULL,
    reattribution_id text NOT NULL,
    start_us bigint NOT NULL,
    end_us bigint NOT NULL CHECK (end_us > start_us),
    send_postbacks boolean NOT NULL,
    state text NOT NULL DEFAULT 'RUNNING' CHECK (state IN ('RUNNING', 'DONE', 'CANCELLED')),
    -- Devices up to this one are done; they are taken in the order of their ids.
    after_device uuid,
    conversion_count bigint NOT NULL DEFAULT 0,
    changed_count bigint NOT NULL DEFAULT 0,
    estimated_total_count bigint NOT NULL DEFAULT 0,
    totals jsonb NOT NULL DEFAULT '[]',
    create_time timestamptz NOT NULL DEFAULT now(),
    finish_time timestamptz,
    PRIMARY KEY (lane, app_id, reattribution_id),
    CHECK ((state = 'RUNNING') = (finish_time IS NULL))
);

CREATE UNIQUE INDEX reattributions_running ON reattributions (lane, app_id) WHERE state = 'RUNNING';

-- The proof that a device was forgotten. `work` names what is still to be erased (erasures.py: Work), and is gone when
-- it is done.
CREATE TABLE erasures (
    lane smallint NOT NULL,
    app_id text NOT NULL,
    erasure_id uuid NOT NULL,
    request_time timestamptz NOT NULL DEFAULT now(),
    finish_time timestamptz,
    erased_counts jsonb NOT NULL DEFAULT '{}',
    work jsonb,
    PRIMARY KEY (lane, app_id, erasure_id),
    CHECK ((work IS NULL) = (finish_time IS NOT NULL))
);

CREATE INDEX erasures_under_way ON erasures (lane, request_time) WHERE work IS NOT NULL;

-- Whatever a device was ever known by goes with it.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX identifiers_by_device ON identifiers (device_id);
