-- no transaction
-- What became of one record, whatever else of its app was refused.
CREATE INDEX CONCURRENTLY IF NOT EXISTS rejected_by_record
ON rejected (app_id, record_id, reject_time_us) WHERE record_id IS NOT NULL;
