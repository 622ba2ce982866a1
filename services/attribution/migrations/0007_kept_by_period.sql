-- What grows with the traffic is kept by period, by month and in that by the retention of its app, so that what is past
-- goes with its whole partition (docs/decisions/0011). A repeat of a row has its time and retention: unique keys hold them.
-- squawk-ignore-file renaming-table, ban-drop-table

-- Gives each of these tables a partition of what happened in a month and is kept for so many days; answers whether one
-- was missing.
CREATE FUNCTION make_period(month date, days smallint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    whole text;
    part text;
    is_new boolean := false;
BEGIN
    -- Two that miss the same one: the second finds it made.
    PERFORM pg_advisory_xact_lock(hashtext('attribution.make_period'));
    FOREACH whole IN ARRAY ARRAY['engagements', 'network_clicks', 'rounds', 'decisions'] LOOP
        -- Unlike CREATE .. PARTITION OF, ATTACH lets those that read and write the table go on.
        part := whole || to_char(month, '_YYYYMM');
        IF to_regclass(part) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL) PARTITION BY LIST (retention_days)', part, whole);
            EXECUTE format(
                'ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', whole, part,
                extract(epoch FROM month)::bigint * 1000000,
                extract(epoch FROM month + interval '1 month')::bigint * 1000000
            );
        END IF;
        whole := part;
        part := format('%s_%s', whole, days);
        IF to_regclass(part) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', part, whole);
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
    PERFORM pg_advisory_xact_lock(hashtext('attribution.make_period'));
    EXECUTE format('DROP TABLE IF EXISTS %I', part);
    IF whole IS NOT NULL AND NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = whole) THEN
        EXECUTE format('DROP TABLE %s', whole);
    END IF;
END
$$;

-- For how long, at least and at most, an app's engagements are kept: where to look for them.
CREATE TABLE retentions (
    app_id text PRIMARY KEY,
    least_days smallint NOT NULL,
    most_days smallint NOT NULL CHECK (most_days >= least_days)
);

ALTER TABLE engagements RENAME TO engagements_before;
ALTER TABLE network_clicks RENAME TO network_clicks_before;
ALTER TABLE rounds RENAME TO rounds_before;
ALTER TABLE decisions RENAME TO decisions_before;

CREATE TABLE engagements (LIKE engagements_before, retention_days smallint NOT NULL) PARTITION BY RANGE (time_us);
CREATE TABLE network_clicks (LIKE network_clicks_before, retention_days smallint NOT NULL)
PARTITION BY RANGE (time_us);
-- As long as the longest kept decision of the round, and of its latest conversion.
CREATE TABLE rounds (
    LIKE rounds_before INCLUDING DEFAULTS, conversion_time_us bigint NOT NULL, retention_days smallint NOT NULL
) PARTITION BY RANGE (conversion_time_us);
CREATE TABLE decisions (
    LIKE decisions_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS, retention_days smallint NOT NULL
) PARTITION BY RANGE (conversion_time_us);

-- What is there is kept for 400 days.
SELECT make_period(month, 400::smallint) FROM (
    SELECT date_trunc('month', to_timestamp(time_us / 1000000) AT TIME ZONE 'UTC')::date AS month FROM (
        SELECT time_us FROM engagements_before
        UNION ALL SELECT time_us FROM network_clicks_before
        UNION ALL SELECT conversion_time_us FROM decisions_before
    ) AS times
    GROUP BY month
) AS months;
INSERT INTO engagements SELECT *, 400 FROM engagements_before;
INSERT INTO network_clicks SELECT *, 400 FROM network_clicks_before;
INSERT INTO rounds
SELECT round_id, heads, decide_time, max(conversion_time_us), 400
FROM rounds_before INNER JOIN decisions_before USING (round_id)
GROUP BY round_id, heads, decide_time;
INSERT INTO decisions SELECT *, 400 FROM decisions_before;
-- Which apps the engagements are of, only their records say: in the second field, behind a first that may be longer than
-- 127 bytes. Not every app has devices yet.
INSERT INTO retentions
SELECT app_id, 400, 400 FROM (
    SELECT app_id FROM devices
    UNION
    SELECT convert_from(substring(record FROM field + 3 FOR get_byte(record, field + 1)), 'UTF8')
    FROM engagements_before
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN get_byte(record, 1) < 128 THEN 2 + get_byte(record, 1)
            ELSE 3 + get_byte(record, 1) - 128 + 128 * get_byte(record, 2)
        END AS field
    ) AS place
    WHERE record IS NOT NULL
) AS apps;
DROP TABLE engagements_before, network_clicks_before, rounds_before, decisions_before;

ALTER TABLE engagements ADD PRIMARY KEY (match_key, time_us, engagement_id, retention_days);
ALTER TABLE network_clicks ADD PRIMARY KEY (click_key, time_us, engagement_id, retention_days);
ALTER TABLE rounds ADD PRIMARY KEY (round_id, conversion_time_us, retention_days);
-- Nothing is decided twice. Later versions of a decision have the time and the retention of the first.
ALTER TABLE decisions ADD PRIMARY KEY (lane, conversion_id, app_id, version, conversion_time_us, retention_days);
-- Dense and unique, as the lane's owner numbers them. Without the time: with it, this would seem an index of times.
CREATE INDEX decisions_in_order ON decisions (lane, sequence);
CREATE INDEX decisions_by_tracker ON decisions (lane, tracker_id, sequence) WHERE tracker_id IS NOT NULL;
CREATE INDEX decisions_by_engagement ON decisions (lane, engagement_id) WHERE engagement_id IS NOT NULL;
CREATE INDEX decisions_by_app ON decisions (lane, app_id, sequence);
CREATE INDEX decisions_by_device ON decisions (lane, app_id, device_id, conversion_time_us, sequence);
CREATE INDEX decisions_by_reattribution ON decisions (lane, app_id, reattribution_id, sequence)
WHERE reattribution_id IS NOT NULL;
