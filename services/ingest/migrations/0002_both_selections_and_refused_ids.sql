-- A deep-link open that stands for its own click is an engagement and a conversion: NULL says both.
-- squawk-ignore ban-drop-not-null
ALTER TABLE log ALTER COLUMN is_engagement DROP NOT NULL;

-- The record_id of a refused record, as the sender gave it; NULL when it gave none.
ALTER TABLE rejected ADD COLUMN record_id text;
