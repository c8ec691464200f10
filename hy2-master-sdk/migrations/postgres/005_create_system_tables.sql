-- The cluster itself: keys, masters, leases, settings, and the records of what happened.

-- One row. `epoch` is bumped by a restore from backup: revisions compare within an epoch only.
create table cluster (
    id bigint primary key check (id = 1),
    uid uuid not null unique,
    epoch bigint not null check (epoch > 0),
    epoch_started_at bigint not null,
    created_at bigint not null,
    updated_at bigint not null
);

create table settings (
    key text primary key,
    value jsonb not null,
    rev bigint not null default 1,
    updated_at bigint not null
);

-- Random keys of the cluster, sealed with the master key of the version named.
create table secrets (
    name text primary key,
    value_enc bytea not null,
    created_at bigint not null,
    updated_at bigint not null
);

create table certificate_authorities (
    id uuid primary key,
    certificate bytea not null,
    private_key_enc bytea not null,
    spki_sha256 bytea not null unique,
    -- Next: trusted, does not sign. Retired: trusted until not_after or until it is removed.
    state text not null check (state in ('next', 'active', 'retired')),
    not_before bigint not null,
    not_after bigint not null,
    created_at bigint not null,
    updated_at bigint not null
);

create table signing_keys (
    id uuid primary key,
    purpose text not null check (purpose in ('manifest', 'jwt', 'audit')),
    key_id bytea not null unique,
    public_key bytea not null,
    private_key_enc bytea not null,
    -- Issued by the CA; null for purposes that nodes do not check.
    certificate bytea,
    state text not null check (state in ('next', 'active', 'retired')),
    not_after bigint not null,
    created_at bigint not null,
    updated_at bigint not null
);
create index signing_keys_purpose on signing_keys (purpose, state);

create table masters (
    id uuid primary key,
    address text not null default '',
    version text not null,
    started_at bigint not null,
    heartbeat_at bigint not null,
    stopped_at bigint
);

-- Singleton tasks: a write of the holder names its token and changes nothing under another.
create table leases (
    name text primary key,
    holder uuid not null,
    token bigint not null,
    acquired_at bigint not null,
    expires_at bigint not null
);

-- Written unsealed in the transaction of the change; the sealer gives out `seq` and chains the
-- hashes in one order, under a lock.
create table audit_log (
    id bigint generated always as identity primary key,
    seq bigint unique,
    at bigint not null,
    actor_kind text not null check (actor_kind in ('admin', 'token', 'node', 'system', 'host')),
    actor text not null,
    address text,
    action text not null,
    object_kind text not null,
    object_id text not null,
    before jsonb,
    after jsonb,
    request_id uuid,
    previous_hash bytea,
    hash bytea
);
create index audit_log_unsealed on audit_log (id) where seq is null;
create index audit_log_object on audit_log (object_kind, object_id, id);
create index audit_log_actor on audit_log (actor, id);

create table audit_checkpoints (
    seq bigint primary key,
    hash bytea not null,
    key_id bytea not null,
    signature bytea not null,
    at bigint not null
);

-- The outbox: written in the transaction of the change, numbered by the sealer, read by live
-- streams and webhooks.
create table events (
    id bigint generated always as identity primary key,
    seq bigint unique,
    topic text not null,
    key text not null,
    payload jsonb not null,
    admin_id bigint,
    at bigint not null
);
create index events_unsealed on events (id) where seq is null;
create index events_age on events (at);

create table webhooks (
    id uuid primary key,
    url text not null,
    secret_enc bytea not null,
    topics jsonb not null,
    enabled boolean not null default true,
    -- Events up to this number have their deliveries.
    cursor_seq bigint not null default 0,
    created_by bigint,
    rev bigint not null default 1,
    created_at bigint not null,
    updated_at bigint not null
);

create table webhook_deliveries (
    id uuid primary key,
    webhook_id uuid not null references webhooks (id) on delete cascade,
    event_seq bigint not null,
    status text not null default 'pending' check (status in ('pending', 'delivered', 'failed')),
    attempts bigint not null default 0,
    next_at bigint not null,
    response_status bigint,
    error text,
    created_at bigint not null,
    updated_at bigint not null
);
create unique index webhook_deliveries_event on webhook_deliveries (webhook_id, event_seq);
create index webhook_deliveries_due on webhook_deliveries (next_at) where status = 'pending';

create table alerts (
    id uuid primary key,
    node_id bigint references vps_nodes (id) on delete cascade,
    rule text not null,
    severity text not null check (severity in ('info', 'warning', 'critical')),
    message text not null default '',
    details jsonb,
    opened_at bigint not null,
    updated_at bigint not null,
    closed_at bigint
);
create index alerts_open on alerts (node_id, rule) where closed_at is null;

create table backups (
    id uuid primary key,
    path text not null,
    bytes bigint not null,
    sha256 bytea not null,
    epoch bigint not null,
    created_at bigint not null
);
