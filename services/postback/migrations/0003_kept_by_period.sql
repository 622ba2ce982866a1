-- Deliveries and attempts are kept by period, by month and in that by the retention of their app, so that what is past
-- goes with its whole partition (docs/decisions/0011).
-- squawk-ignore-file renaming-table, ban-drop-table, ban-drop-function

-- Gives each of these tables a partition of conversions that happened in a month and are kept for so many days; answers
-- whether one was missing.
CREATE FUNCTION make_period(month date, days smallint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    whole text;
    part text;
    is_new boolean := false;
BEGIN
    -- Two that miss the same one: the second finds it made.
    PERFORM pg_advisory_xact_lock(hashtext('postback.make_period'));
    FOREACH whole IN ARRAY ARRAY['deliveries', 'attempts'] LOOP
        -- Unlike CREATE .. PARTITION OF, ATTACH lets those that read and write the table go on.
        part := whole || to_char(month, '_YYYYMM');
        IF to_regclass(part) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL) PARTITION BY LIST (retention_days)', part, whole);
            EXECUTE format(
                'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', whole, part,
                month::timestamp AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC'
            );
        END IF;
        whole := part;
        part := format('%s_%s', whole, days);
        IF to_regclass(part) IS NULL THEN
            EXECUTE format(
                -- A queue of which most rows are done: dead versions must not wait for a fifth of all rows.
                'CREATE TABLE %I (LIKE %I INCLUDING ALL) WITH (autovacuum_vacuum_scale_factor = 0.02)', part, whole
            );
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', whole, part, days);
            is_new := true;
        END IF;
    END LOOP;
    RETURN is_new;
END
$$;

-- Drops a partition, and its month with the last one. All who use the table wait for that, so it waits for them but a
-- moment, and then fails.
CREATE FUNCTION drop_partition(part text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '200ms' AS $$
DECLARE
    whole regclass := (SELECT inhparent FROM pg_inherits WHERE inhrelid = to_regclass(part));
BEGIN
    -- No partition of the month is made while it goes.
    PERFORM pg_advisory_xact_lock(hashtext('postback.make_period'));
    EXECUTE format('DROP TABLE IF EXISTS %I', part);
    IF whole IS NOT NULL AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = whole) THEN
        EXECUTE format('DROP TABLE %s', whole);
    END IF;
END
$$;

ALTER TABLE deliveries RENAME TO deliveries_before;
ALTER TABLE attempts RENAME TO attempts_before;

-- When a serialised message Conversion happened: of its decision (field 1) field 5, a Timestamp. NULL if it does not say.
CREATE FUNCTION conversion_time_of(conversion bytea) RETURNS timestamptz
LANGUAGE plpgsql AS $$
DECLARE
    at integer := 0; -- the byte to be read next
    tags integer [] := '{}'; -- of the messages it lies in
    tag integer;
    number bigint;
    shift integer;
    seconds bigint := 0;
    nanos bigint := 0;
    stop integer := octet_length(conversion);
BEGIN
    WHILE at < stop LOOP
        tag := get_byte(conversion, at);
        number := 0;
        shift := 0;
        LOOP
            at := at + 1;
            number := number | ((get_byte(conversion, at) & 127)::bigint << shift);
            shift := shift + 7;
            EXIT WHEN get_byte(conversion, at) < 128;
        END LOOP;
        at := at + 1;
        IF (tags = '{}' AND tag = 10) OR (tags = '{10}' AND tag = 42) THEN
            tags := tags || tag;
            stop := at + number;
        ELSIF tags = '{10,42}' AND tag = 8 THEN
            seconds := number;
        ELSIF tags = '{10,42}' AND tag = 16 THEN
            nanos := number;
        ELSIF tag & 7 = 2 THEN
            at := at + number;
        ELSIF tags = '{}' OR tag & 7 <> 0 THEN
            RETURN NULL;
        END IF;
    END LOOP;
    RETURN CASE WHEN tags = '{10,42}'
        THEN 'epoch'::timestamptz + seconds * interval '1 second' + nanos / 1000 * interval '1 microsecond' END;
EXCEPTION WHEN data_exception THEN -- it is no such message
    RETURN NULL;
END
$$;

CREATE TABLE deliveries (
    LIKE deliveries_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    conversion_time timestamptz NOT NULL,
    retention_days smallint NOT NULL
) PARTITION BY RANGE (conversion_time);
CREATE TABLE attempts (
    LIKE attempts_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    conversion_time timestamptz NOT NULL,
    retention_days smallint NOT NULL
) PARTITION BY RANGE (conversion_time);

-- What is there is kept for 400 days. The conversion says when it happened: its repeats are told by that.
CREATE TABLE happened AS
SELECT delivery_id, configuration_id, coalesce(conversion_time_of(conversion), create_time) AS conversion_time
FROM deliveries_before;
SELECT make_period(month, 400::smallint) FROM (
    SELECT date_trunc('month', conversion_time AT TIME ZONE 'UTC')::date AS month FROM happened GROUP BY month
) AS months;
INSERT INTO deliveries
SELECT delivery.*, happened.conversion_time, 400
FROM deliveries_before AS delivery INNER JOIN happened USING (delivery_id, configuration_id);
INSERT INTO attempts
SELECT attempt.*, happened.conversion_time, 400
FROM attempts_before AS attempt INNER JOIN happened USING (delivery_id, configuration_id);
DROP TABLE deliveries_before, attempts_before, happened;
DROP FUNCTION conversion_time_of;

-- Their id alone makes deliveries unique; who makes one looks for it in every retention first.
ALTER TABLE deliveries ADD PRIMARY KEY (delivery_id, configuration_id, conversion_time, retention_days);
ALTER TABLE attempts
ADD PRIMARY KEY (delivery_id, configuration_id, replay_count, number, conversion_time, retention_days);
-- First tries and retries apart, so that neither is read past to find the other.
CREATE INDEX deliveries_first_due ON deliveries (configuration_id, due_time)
WHERE state = 'PENDING' AND attempt_count = 0;
CREATE INDEX deliveries_retry_due ON deliveries (configuration_id, due_time)
WHERE state = 'PENDING' AND attempt_count > 0;
CREATE INDEX deliveries_of_app ON deliveries (app_id, create_time DESC, delivery_id DESC);
CREATE INDEX deliveries_of_conversion ON deliveries (app_id, conversion_id);
