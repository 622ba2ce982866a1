-- no transaction
CREATE INDEX CONCURRENTLY IF NOT EXISTS changes_by_resource ON changes (kind, resource_key, revision);
