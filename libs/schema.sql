-- What libs/migrations.py makes in every schema, as its owner, before the schema's own migrations and again at each
-- release. A service may not change tables: it makes and drops partitions by these functions (libs/periods.py).

-- Returns the time in microseconds since 1970, of the beginning of the transaction.
CREATE OR REPLACE FUNCTION now_us() RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE
RETURN (extract(epoch FROM now()) * 1000000)::bigint;

CREATE TABLE IF NOT EXISTS schema_migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL, -- SHA-256 of the file
    apply_time_us bigint NOT NULL DEFAULT now_us()
);

COMMENT ON TABLE schema_migrations IS 'The migrations that were applied to this schema.';

-- Gives each table that is kept by period a partition of what happened in a month and is kept for so many days; returns
-- whether one was missing.
CREATE OR REPLACE FUNCTION make_period(month date, days smallint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    whole text;
    part text;
    is_new boolean := false;
BEGIN
    -- Two that miss the same one: the second finds it made.
    PERFORM pg_advisory_xact_lock(hashtext(current_schema() || '.make_period'));
    FOR whole IN
        SELECT relname FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind = 'p' AND NOT relispartition
        ORDER BY relname
    LOOP
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
            EXECUTE format(
                -- Rows of a queue are updated until they are done: dead versions must not wait for a fifth of all rows.
                'CREATE TABLE %I (LIKE %I INCLUDING ALL) WITH (autovacuum_vacuum_scale_factor = 0.02)', part, whole
            );
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)', whole, part, days);
            is_new := true;
        END IF;
    END LOOP;
    RETURN is_new;
END
$$;

-- Drops a partition, and its month with the last one; what is no partition stays. All who use the table wait for that,
-- so it waits for them but a moment, and then fails.
CREATE OR REPLACE FUNCTION drop_partition(part text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '200ms' AS $$
DECLARE
    whole regclass;
BEGIN
    -- No partition of the month is made, or dropped by another, while it goes.
    PERFORM pg_advisory_xact_lock(hashtext(current_schema() || '.make_period'));
    whole := (SELECT inhparent FROM pg_inherits WHERE inhrelid = to_regclass(part));
    IF whole IS NULL THEN
        RETURN;
    END IF;
    EXECUTE format('DROP TABLE %I', part);
    IF NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = whole) THEN
        EXECUTE format('DROP TABLE %s', whole);
    END IF;
END
$$;
