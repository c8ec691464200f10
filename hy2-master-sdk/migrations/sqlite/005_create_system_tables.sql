-- The cluster itself: keys, masters, leases, settings, and the records of what happened.

-- One row. `epoch` is bumped by a restore from backup: revisions compare within an epoch only.
create table cluster (
    id integer primary key check (id = 1),
    uid blob not null unique,
    epoch integer not null check (epoch > 0),
    epoch_started_at integer not null,
    created_at integer not null,
    updated_at integer not null
) strict;

create table settings (
    key text primary key,
    value text not null check (json_valid(value)),
    rev integer not null default 1,
    updated_at integer not null
) strict;

-- Random keys of the cluster, sealed with the master key of the version named.
create table secrets (
    name text primary key,
    value_enc blob not null,
    created_at integer not null,
    updated_at integer not null
) strict;

create table certificate_authorities (
    id blob primary key,
    certificate blob not null,
    private_key_enc blob not null,
    spki_sha256 blob not null unique,
    -- Next: trusted, does not sign. Retired: trusted until not_after or until it is removed.
    state text not null check (state in ('next', 'active', 'retired')),
    not_before integer not null,
    not_after integer not null,
    created_at integer not null,
    updated_at integer not null
) strict;

create table signing_keys (
    id blob primary key,
    purpose text not null check (purpose in ('manifest', 'jwt', 'audit')),
    key_id blob not null unique,
    public_key blob not null,
    private_key_enc blob not null,
    -- Issued by the CA; null for purposes that nodes do not check.
    certificate blob,
    state text not null check (state in ('next', 'active', 'retired')),
    not_after integer not null,
    created_at integer not null,
    updated_at integer not null
) strict;
create index signing_keys_purpose on signing_keys (purpose, state);

create table masters (
    id blob primary key,
    address text not null default '',
    version text not null,
    started_at integer not null,
    heartbeat_at integer not null,
    stopped_at integer
) strict;

-- Singleton tasks: a write of the holder names its token and changes nothing under another.
create table leases (
    name text primary key,
    holder blob not null,
    token integer not null,
    acquired_at integer not null,
    expires_at integer not null
) strict;

-- Written unsealed in the transaction of the change; the sealer gives out `seq` and chains the
-- hashes in one order, under a lock.
create table audit_log (
    id integer primary key autoincrement,
    seq integer unique,
    at integer not null,
    actor_kind text not null check (actor_kind in ('admin', 'token', 'node', 'system', 'host')),
    actor text not null,
    address text,
    action text not null,
    object_kind text not null,
    object_id text not null,
    before text check (json_valid(before)),
    after text check (json_valid(after)),
    request_id blob,
    previous_hash blob,
    hash blob
) strict;
create index audit_log_unsealed on audit_log (id) where seq is null;
create index audit_log_object on audit_log (object_kind, object_id, id);
create index audit_log_actor on audit_log (actor, id);

create table audit_checkpoints (
    seq integer primary key,
    hash blob not null,
    key_id blob not null,
    signature blob not null,
    at integer not null
) strict;

-- The outbox: written in the transaction of the change, numbered by the sealer, read by live
-- streams and webhooks.
create table events (
    id integer primary key autoincrement,
    seq integer unique,
    topic text not null,
    key text not null,
    payload text not null check (json_valid(payload)),
    admin_id integer,
    at integer not null
) strict;
create index events_unsealed on events (id) where seq is null;
create index events_age on events (at);

create table webhooks (
    id blob primary key,
    url text not null,
    secret_enc blob not null,
    topics text not null check (json_valid(topics)),
    enabled integer not null default 1,
    -- Events up to this number have their deliveries.
    cursor_seq integer not null default 0,
    created_by integer,
    rev integer not null default 1,
    created_at integer not null,
    updated_at integer not null
) strict;

create table webhook_deliveries (
    id blob primary key,
    webhook_id blob not null references webhooks (id) on delete cascade,
    event_seq integer not null,
    status text not null default 'pending' check (status in ('pending', 'delivered', 'failed')),
    attempts integer not null default 0,
    next_at integer not null,
    response_status integer,
    error text,
    created_at integer not null,
    updated_at integer not null
) strict;
create unique index webhook_deliveries_event on webhook_deliveries (webhook_id, event_seq);
create index webhook_deliveries_due on webhook_deliveries (next_at) where status = 'pending';

create table alerts (
    id blob primary key,
    node_id integer references vps_nodes (id) on delete cascade,
    rule text not null,
    severity text not null check (severity in ('info', 'warning', 'critical')),
    message text not null default '',
    details text check (json_valid(details)),
    opened_at integer not null,
    updated_at integer not null,
    closed_at integer
) strict;
create index alerts_open on alerts (node_id, rule) where closed_at is null;

create table backups (
    id blob primary key,
    path text not null,
    bytes integer not null,
    sha256 blob not null,
    epoch integer not null,
    created_at integer not null
) strict;
