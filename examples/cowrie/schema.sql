-- A honeypot's sessions, and what is known of the addresses that they came from. The snapshot columns are NULL at the
-- start: country and network of a session are found by a join over the address in its document.
CREATE TABLE ip_inventory (
    ip_address            inet PRIMARY KEY,
    current_asn           integer,
    geo_country           text,
    ip_type               text,
    first_seen            timestamptz NOT NULL,
    last_seen             timestamptz NOT NULL,
    enrichment_updated_at timestamptz NOT NULL
);

CREATE TABLE session_summaries (
    session_id        text PRIMARY KEY,
    first_event_at    timestamptz NOT NULL,
    last_event_at     timestamptz NOT NULL,
    event_count       integer NOT NULL,
    command_count     integer NOT NULL,
    file_downloads    integer NOT NULL,
    login_attempts    integer NOT NULL,
    risk_score        numeric(5, 2),
    enrichment        jsonb,
    source_ip         inet,
    snapshot_asn      integer,
    snapshot_country  text,
    snapshot_ip_types text,
    enrichment_at     timestamptz
);
