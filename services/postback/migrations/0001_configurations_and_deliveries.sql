-- Every table's key holds configuration_id: the column to distribute by when one machine is outgrown. Claims name it.

CREATE TABLE configurations (
    configuration_id text PRIMARY KEY,
    app_id           text NOT NULL,
    status           text NOT NULL CHECK (status IN ('LIVE', 'PAUSED', 'ARCHIVED')),
    -- The message Configuration as JSON, without its id, app, status, secrets and times.
    settings         jsonb NOT NULL,
    -- Names and values, encrypted as one.
    secrets          bytea NOT NULL,
    revision         bigint NOT NULL,
    create_time      timestamptz NOT NULL DEFAULT now(),
    update_time      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX configurations_of_app ON configurations (app_id, configuration_id);
CREATE INDEX configurations_by_revision ON configurations (revision);

-- One row, taken before any configuration is written: so revisions become visible in their order.
CREATE TABLE configuration_revision (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    revision bigint NOT NULL
);
INSERT INTO configuration_revision (revision) VALUES (0);

-- The queue is this table. A delivery is due at due_time; whoever claims it moves due_time to the end of the lease, so
-- that a delivery whose sender died is simply due again.
CREATE TABLE deliveries (
    delivery_id      uuid NOT NULL,
    configuration_id text NOT NULL,
    app_id           text NOT NULL,
    network_id       text NOT NULL,
    conversion_id    text NOT NULL,
    event_name       text NOT NULL,
    device_id        text NOT NULL,
    -- A serialised message Conversion.
    conversion       bytea NOT NULL,
    state            text NOT NULL DEFAULT 'PENDING'
                     CHECK (state IN ('PENDING', 'DELIVERED', 'REFUSED', 'EXHAUSTED')),
    create_time      timestamptz NOT NULL DEFAULT now(),
    due_time         timestamptz NOT NULL,
    end_time         timestamptz,
    -- Attempts begun in this run; those of them that failed. The others were interrupted, or one is under way.
    attempt_count    integer NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),
    failure_count    integer NOT NULL DEFAULT 0 CHECK (failure_count BETWEEN 0 AND attempt_count),
    replay_count     integer NOT NULL DEFAULT 0 CHECK (replay_count >= 0),
    -- Set while an attempt is under way: who makes it, since when.
    claim_id         uuid,
    claim_time       timestamptz,
    -- The id is made of the configuration's: this is unique by delivery_id alone.
    PRIMARY KEY (delivery_id, configuration_id),
    CHECK ((claim_id IS NULL) = (claim_time IS NULL)),
    CHECK ((state = 'PENDING') = (end_time IS NULL)),
    CHECK (state = 'PENDING' OR claim_id IS NULL)
)
-- A queue of which most rows are done: dead versions must not wait for a fifth of all rows.
WITH (autovacuum_vacuum_scale_factor = 0.02);
-- First tries and retries apart, so that neither is read past to find the other.
CREATE INDEX deliveries_first_due ON deliveries (configuration_id, due_time)
    WHERE state = 'PENDING' AND attempt_count = 0;
CREATE INDEX deliveries_retry_due ON deliveries (configuration_id, due_time)
    WHERE state = 'PENDING' AND attempt_count > 0;
CREATE INDEX deliveries_of_app ON deliveries (app_id, create_time DESC, delivery_id DESC);
CREATE INDEX deliveries_of_conversion ON deliveries (app_id, conversion_id);

CREATE TABLE attempts (
    delivery_id      uuid NOT NULL,
    configuration_id text NOT NULL,
    replay_count     integer NOT NULL,
    number           integer NOT NULL CHECK (number > 0),
    start_time       timestamptz NOT NULL,
    verdict          text NOT NULL,
    -- A serialised message Attempt, secrets masked; empty of an interrupted attempt.
    attempt          bytea NOT NULL,
    PRIMARY KEY (delivery_id, configuration_id, replay_count, number)
);

-- The last session of a device that a NETWORK_ONLY postback on SessionBegin told: one goes out in 24 hours.
CREATE TABLE session_holds (
    configuration_id text NOT NULL,
    device_id        text NOT NULL,
    told_time        timestamptz NOT NULL,
    PRIMARY KEY (configuration_id, device_id)
);

CREATE TABLE replays (
    request_id     text PRIMARY KEY,
    replayed_count integer NOT NULL DEFAULT 0,
    create_time    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX replays_by_time ON replays (create_time);
