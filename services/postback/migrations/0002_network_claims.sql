-- A request to a self-attributing network is a delivery like any other, and its answer may be a claim.

ALTER TABLE deliveries
    -- The serialised message Claim of the network's first answer that was one.
    ADD COLUMN network_claim bytea,
    -- Made before its conversion was decided, and not handed over decided since: somebody waits for the answer.
    ADD COLUMN awaits_decision boolean NOT NULL DEFAULT false;
