-- no transaction
CREATE INDEX CONCURRENTLY IF NOT EXISTS decisions_by_reattribution
ON decisions (lane, app_id, reattribution_id, sequence) WHERE reattribution_id IS NOT NULL;
