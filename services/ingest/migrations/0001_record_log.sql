-- The end of every lane. A writer locks the lanes it appends to, in their order, and holds them until it has committed:
-- so positions become visible in their order and without gaps (docs/decisions: the gap trap).
CREATE TABLE lanes (
    lane                 smallint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
    next_position        bigint   NOT NULL DEFAULT 0 CHECK (next_position >= 0),
    last_receive_time_us bigint   NOT NULL DEFAULT 0
) WITH (fillfactor = 10); -- every commit updates these rows: room for it on their own page

INSERT INTO lanes (lane) SELECT generate_series(0, 63);

-- The log. Distribution column for Citus: lane.
CREATE TABLE log (
    lane            smallint NOT NULL,
    app_lane        smallint NOT NULL,
    is_engagement   boolean  NOT NULL,
    position        bigint   NOT NULL,
    receive_time_us bigint   NOT NULL, -- microseconds since 1970, of this database's clock; never falls within a lane
    record          bytea    NOT NULL, -- a serialised reengage.ingest.v1.Record
    PRIMARY KEY (lane, position)
);

-- What makes a repeat a repeat. Distribution column for Citus: key. Not the lane, because a sender's record_id is
-- unique in its app, whatever device a second record of that id names.
CREATE TABLE dedupe (
    key         bytea   PRIMARY KEY CHECK (octet_length(key) = 16),
    first_time_s integer NOT NULL -- seconds since 1970 when the record was accepted first; a part of the id made for it
);
-- Rows lie in the order they came in, so this finds old ones at next to no cost for new ones.
CREATE INDEX dedupe_first_time_s ON dedupe USING brin (first_time_s) WITH (pages_per_range = 32, autosummarize = on);

-- Refused records. Distribution column for Citus: app_id.
CREATE TABLE rejected (
    app_id         text   NOT NULL, -- as the sender named it, so it may be any text
    reject_time_us bigint NOT NULL,
    rejected_id    bigint NOT NULL, -- random, tells refusals of one microsecond apart
    refusal        bytea  NOT NULL, -- a serialised reengage.ingest.v1.RejectedRecord
    PRIMARY KEY (app_id, reject_time_us, rejected_id)
);
CREATE INDEX rejected_reject_time_us ON rejected (reject_time_us);
