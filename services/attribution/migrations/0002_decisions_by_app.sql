-- no transaction
-- Several apps share a lane: an app with few decisions is listed without reading those of the others.
CREATE INDEX CONCURRENTLY IF NOT EXISTS decisions_by_app ON decisions (lane, app_id, sequence);
