-- no transaction
CREATE INDEX CONCURRENTLY IF NOT EXISTS changes_by_app ON changes (app_id, revision);
