-- Who owns, runs and is credited: accounts, agencies, and apps' accounts with self-attributing networks.

CREATE TABLE accounts (
    account_id text COLLATE "C" PRIMARY KEY CHECK (account_id <> ''),
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status text NOT NULL CHECK (status IN ('STATUS_LIVE', 'STATUS_ARCHIVED')),
    resource bytea NOT NULL
);

CREATE UNIQUE INDEX accounts_live_name ON accounts (name) WHERE status = 'STATUS_LIVE';

CREATE TABLE agencies (
    agency_id text COLLATE "C" PRIMARY KEY CHECK (agency_id <> ''),
    account_id text COLLATE "C" REFERENCES accounts,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status text NOT NULL CHECK (status IN ('STATUS_LIVE', 'STATUS_ARCHIVED')),
    resource bytea NOT NULL
);

CREATE UNIQUE INDEX agencies_live_name ON agencies (name) WHERE status = 'STATUS_LIVE';

CREATE TABLE san_accounts (
    san_account_id text COLLATE "C" PRIMARY KEY CHECK (san_account_id <> ''),
    app_id text COLLATE "C" NOT NULL REFERENCES apps,
    network_id text COLLATE "C" NOT NULL REFERENCES networks,
    name text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 128),
    status text NOT NULL CHECK (status IN ('STATUS_LIVE', 'STATUS_ARCHIVED')),
    resource bytea NOT NULL
);

CREATE UNIQUE INDEX san_accounts_live_name ON san_accounts (app_id, name) WHERE status = 'STATUS_LIVE';

-- What is never answered, encrypted; apart from the resource, so that neither snapshots nor the audit trail hold it.
CREATE TABLE sealed (
    kind text NOT NULL,
    resource_key text [] NOT NULL,
    sealed bytea NOT NULL,
    PRIMARY KEY (kind, resource_key)
);

-- Not valid, so that no row is read now: those that are there hold null.
ALTER TABLE apps ADD COLUMN account_id text COLLATE "C";
ALTER TABLE apps ADD CONSTRAINT apps_account FOREIGN KEY (account_id) REFERENCES accounts NOT VALID;
ALTER TABLE networks ADD COLUMN account_id text COLLATE "C";
ALTER TABLE networks ADD CONSTRAINT networks_account FOREIGN KEY (account_id) REFERENCES accounts NOT VALID;
ALTER TABLE trackers ADD COLUMN agency_id text COLLATE "C";
ALTER TABLE trackers ADD CONSTRAINT trackers_agency FOREIGN KEY (agency_id) REFERENCES agencies NOT VALID;
ALTER TABLE trackers ADD COLUMN san_account_ids text [] NOT NULL DEFAULT '{}';
