-- Configurations of postbacks, the deliveries that conversions make for them, and every attempt.
-- Times are microseconds since 1970 in UTC. Numbers of enums are those of the protos in protos/reengage/postback/v1.
-- Every table's key holds configuration_id, the column to distribute by when one machine is outgrown.

CREATE TABLE configurations (
    configuration_id text PRIMARY KEY,
    app_id text NOT NULL,
    -- 1 LIVE, 2 PAUSED, 3 ARCHIVED.
    status smallint NOT NULL CHECK (status BETWEEN 1 AND 3),
    -- The message Configuration as JSON, without its id, app, status, secrets and times.
    settings jsonb NOT NULL,
    -- Names and values, encrypted as one.
    secrets bytea NOT NULL,
    revision bigint NOT NULL,
    create_us bigint NOT NULL DEFAULT now_us(),
    update_us bigint NOT NULL DEFAULT now_us()
);

COMMENT ON TABLE configurations IS 'Which conversions of an app one network is told of, and how; archived ones too.';

CREATE INDEX configurations_of_app ON configurations (app_id, configuration_id);

CREATE INDEX configurations_by_revision ON configurations (revision);

CREATE TABLE configuration_revision (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    revision bigint NOT NULL
);

COMMENT ON TABLE configuration_revision IS
'One row, taken before any configuration is written, so that revisions become visible in their order.';

INSERT INTO configuration_revision (revision)
VALUES (0);

-- Partitioned by the month of the conversion, and in that by the retention of its app, so that what is past goes with
-- its whole partition (docs/decisions/0011).
CREATE TABLE deliveries (
    delivery_id uuid NOT NULL,
    configuration_id text NOT NULL,
    app_id text NOT NULL,
    network_id text NOT NULL,
    conversion_id text NOT NULL,
    event_name text NOT NULL,
    device_id text NOT NULL,
    conversion_us bigint NOT NULL,
    retention_days smallint NOT NULL,
    -- A serialised message Conversion, and the version of its decision; 0 while it is not decided.
    conversion bytea NOT NULL,
    version integer NOT NULL DEFAULT 0 CHECK (version >= 0),
    -- Delivery.Superseded: why that version would not have the network told.
    superseded smallint CHECK (superseded BETWEEN 1 AND 3),
    -- Made before its conversion was decided, and not handed over decided since: somebody waits for the answer.
    awaits_decision boolean NOT NULL DEFAULT false,
    -- The serialised message Claim of the network's first answer that was one.
    network_claim bytea,
    -- 1 PENDING, 2 DELIVERED, 3 REFUSED, 4 EXHAUSTED, 5 SUPERSEDED.
    state smallint NOT NULL DEFAULT 1 CHECK (state BETWEEN 1 AND 5),
    create_us bigint NOT NULL DEFAULT now_us(),
    due_us bigint NOT NULL,
    end_us bigint,
    -- Attempts begun in this run; those of them that failed. The others were interrupted, or one is under way.
    attempt_count integer NOT NULL DEFAULT 0 CHECK (attempt_count >= 0),
    failure_count integer NOT NULL DEFAULT 0 CHECK (failure_count BETWEEN 0 AND attempt_count),
    redelivery_count integer NOT NULL DEFAULT 0 CHECK (redelivery_count >= 0),
    -- Set while an attempt is under way: the lease it is made under, and since when.
    lease_id uuid,
    leased_us bigint,
    -- The id is made of the configuration's and the conversion's: this is unique by delivery_id alone. Whoever makes a
    -- delivery looks for it in every retention first.
    PRIMARY KEY (delivery_id, configuration_id, conversion_us, retention_days),
    CHECK ((lease_id IS NULL) = (leased_us IS NULL)),
    CHECK ((state = 1) = (end_us IS NULL)),
    CHECK (state = 1 OR lease_id IS NULL),
    CHECK (state <> 5 OR superseded IS NOT NULL)
) PARTITION BY RANGE (conversion_us);

COMMENT ON TABLE deliveries IS
'One conversion for one configuration, and the queue of what is to be sent: a pending delivery is due at due_us.
A lease moves due_us to its own end, so that a delivery whose sender died is simply due again.';

-- First tries and retries apart, so that neither is read past to find the other.
CREATE INDEX deliveries_first_due ON deliveries (configuration_id, due_us) WHERE state = 1 AND attempt_count = 0;

CREATE INDEX deliveries_retry_due ON deliveries (configuration_id, due_us) WHERE state = 1 AND attempt_count > 0;

CREATE INDEX deliveries_of_app ON deliveries (app_id, create_us DESC, delivery_id DESC);

CREATE INDEX deliveries_of_conversion ON deliveries (app_id, conversion_id);

CREATE TABLE attempts (
    delivery_id uuid NOT NULL,
    configuration_id text NOT NULL,
    redelivery_count integer NOT NULL,
    number integer NOT NULL CHECK (number > 0),
    conversion_us bigint NOT NULL,
    retention_days smallint NOT NULL,
    start_us bigint NOT NULL,
    -- 1 DELIVERED … 13 SUPERSEDED: Attempt.Verdict.
    verdict smallint NOT NULL CHECK (verdict BETWEEN 1 AND 13),
    -- A serialised message Attempt, secrets masked; empty of an interrupted attempt.
    attempt bytea NOT NULL,
    PRIMARY KEY (delivery_id, configuration_id, redelivery_count, number, conversion_us, retention_days)
) PARTITION BY RANGE (conversion_us);

COMMENT ON TABLE attempts IS 'One request of a delivery, and its answer. Partitioned as deliveries are.';

CREATE TABLE session_holds (
    configuration_id text NOT NULL,
    device_id text NOT NULL,
    told_us bigint NOT NULL,
    PRIMARY KEY (configuration_id, device_id)
);

COMMENT ON TABLE session_holds IS
'The last session of a device that a NETWORK_ONLY postback on SessionBegin told: one goes out in 24 hours.';

CREATE TABLE redeliveries (
    request_id text PRIMARY KEY,
    redelivered_count integer NOT NULL DEFAULT 0,
    create_us bigint NOT NULL DEFAULT now_us()
);

COMMENT ON TABLE redeliveries IS 'Requests to send again of the last day, so that none is carried out twice.';

CREATE INDEX redeliveries_by_time ON redeliveries (create_us);
