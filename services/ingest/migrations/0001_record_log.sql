-- Times are microseconds since 1970, of this database's clock. 64 is the number of lanes (libs/domain/lanes.py).

CREATE TABLE lanes (
    lane smallint PRIMARY KEY CHECK (lane BETWEEN 0 AND 63),
    next_position bigint NOT NULL DEFAULT 0 CHECK (next_position >= 0),
    last_receive_time_us bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10); -- every commit updates these rows: the new versions find room on the same page

COMMENT ON TABLE lanes IS
'The end of every lane. A writer locks the lanes it appends to, in their order, until it has committed. So positions
become visible in their order and without gaps (the gap trap, docs/decisions).';

INSERT INTO lanes (lane)
SELECT generate_series(0, 63);

CREATE TABLE log (
    lane smallint NOT NULL,
    app_lane smallint NOT NULL,
    is_engagement boolean, -- NULL: both, as a deep-link open that stands for its own click
    position bigint NOT NULL,
    receive_time_us bigint NOT NULL, -- of this database's clock; never falls within a lane
    record bytea NOT NULL, -- a serialised reengage.ingest.v1.Record
    PRIMARY KEY (lane, position)
);

COMMENT ON TABLE log IS 'Every accepted record, in ordered lanes. Distribution column for Citus: lane.';

CREATE TABLE dedupe (
    key bytea PRIMARY KEY CHECK (octet_length(key) = 16),
    first_time_us bigint NOT NULL, -- when the record was accepted first; its second is a part of the id made for it
    meaning integer -- for kind and event name, if the sender gave an id; else 0, NULL if he gave no time either
);

COMMENT ON TABLE dedupe IS
'The keys that repeats are known by. Distribution column for Citus: key. Not the lane, because a record_id of the
sender is unique within its app, whatever device a second record with that id names.';

-- Rows lie in the order they came in. So this finds old ones at next to no cost for new ones.
CREATE INDEX dedupe_first_time_us ON dedupe USING brin (first_time_us) WITH (pages_per_range = 32, autosummarize = on);

CREATE TABLE rejected (
    app_id text NOT NULL, -- as the sender named it, so it may be any text
    reject_time_us bigint NOT NULL,
    rejected_id bigint NOT NULL, -- random; tells refusals of one microsecond apart
    record_id text, -- as the sender gave it; NULL when it gave none
    refusal bytea NOT NULL, -- a serialised reengage.ingest.v1.RejectedRecord
    PRIMARY KEY (app_id, reject_time_us, rejected_id)
);

COMMENT ON TABLE rejected IS 'Refused records with their reasons. Distribution column for Citus: app_id.';

CREATE INDEX rejected_reject_time_us ON rejected (reject_time_us);

-- LookUpRecord finds the refusals of one record, however many its app has.
CREATE INDEX rejected_by_record ON rejected (app_id, record_id, reject_time_us) WHERE record_id IS NOT NULL;

CREATE TABLE warned (
    app_id text NOT NULL,
    warn_time_us bigint NOT NULL,
    warned_id bigint NOT NULL, -- random; tells records of one microsecond apart
    record_id text NOT NULL,
    warned bytea NOT NULL, -- a serialised reengage.ingest.v1.WarnedRecord
    PRIMARY KEY (app_id, warn_time_us, warned_id)
);

COMMENT ON TABLE warned IS
'The newest records of each app that something was left out of. Distribution column for Citus: app_id.';

-- EraseRecords finds those of erased records.
CREATE INDEX warned_by_record ON warned (app_id, record_id);
