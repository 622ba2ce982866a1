-- no transaction
CREATE INDEX CONCURRENTLY IF NOT EXISTS devices_by_merge ON devices (merged_into) WHERE merged_into IS NOT NULL;
