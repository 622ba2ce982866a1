-- no transaction
-- A device's conversions in time; and an app's devices one after the other, as what-if and re-attribution take them.
CREATE INDEX CONCURRENTLY IF NOT EXISTS decisions_by_device
ON decisions (lane, app_id, device_id, conversion_time_us, sequence);
