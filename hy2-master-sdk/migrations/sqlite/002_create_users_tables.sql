-- Users, plans and what subscriptions show.

create table plans (
    id integer primary key autoincrement,
    name text not null unique,
    quota_bytes integer check (quota_bytes > 0),
    period text not null default 'none' check (period in ('none', 'day', 'week', 'month', 'month_rolling', 'year')),
    duration_days integer check (duration_days > 0),
    max_devices integer check (max_devices > 0),
    max_connections integer check (max_connections > 0),
    up_bytes_per_s integer check (up_bytes_per_s > 0),
    down_bytes_per_s integer check (down_bytes_per_s > 0),
    nodes_per_user integer not null default 3 check (nodes_per_user between 1 and 64),
    next_plan_id integer references plans (id),
    archived_at integer,
    rev integer not null default 1,
    created_at integer not null,
    updated_at integer not null
) strict;

create table plan_pools (
    plan_id integer not null references plans (id) on delete cascade,
    pool_id integer not null references node_pools (id) on delete cascade,
    quota_bytes integer check (quota_bytes > 0),
    primary key (plan_id, pool_id)
) strict;
create index plan_pools_pool on plan_pools (pool_id);

-- Limits are the user's own; null means the plan's, and no limit when the plan has none either.
create table users (
    id integer primary key autoincrement,
    uid blob not null unique,
    username text not null check (length(username) between 1 and 64),
    -- Whose user this is, for admins who see only their own.
    admin_id integer references admins (id),
    plan_id integer references plans (id),
    status text not null default 'active'
        check (status in ('on_hold', 'active', 'disabled', 'limited', 'expired', 'deleted')),
    status_reason text not null default '',
    -- 32 bytes, sealed; the credentials of a (user, node) derive from it.
    seed_enc blob not null,
    -- A credential chosen by the operator, sealed, and its keyed hash; null: derived per node.
    credential_enc blob,
    auth_hash blob,
    subscription_hash blob not null unique,
    subscription_enc blob not null,
    subscription_rotated_at integer not null,
    expires_at integer,
    -- On hold: the clock starts with the first connection, at the latest at hold_deadline.
    hold_duration_ms integer check (hold_duration_ms > 0),
    hold_deadline integer,
    activated_at integer,
    quota_bytes integer check (quota_bytes > 0),
    period_started_at integer not null,
    max_devices integer check (max_devices > 0),
    max_connections integer check (max_connections > 0),
    up_bytes_per_s integer check (up_bytes_per_s > 0),
    down_bytes_per_s integer check (down_bytes_per_s > 0),
    home_region_id integer references regions (id),
    email text,
    telegram_id integer,
    note text not null default '',
    tags text not null check (json_valid(tags)),
    rev integer not null default 1,
    created_at integer not null,
    updated_at integer not null,
    deleted_at integer
) strict;
create unique index users_username_key on users (username) where deleted_at is null;
create unique index users_auth_hash_key on users (auth_hash) where deleted_at is null;
create index users_status on users (status, id);
create index users_admin on users (admin_id, id);
create index users_plan on users (plan_id, period_started_at);
create index users_expiry on users (expires_at) where status in ('active', 'limited');
create index users_created on users (created_at, id);
create index users_end on users (coalesce(expires_at, 9223372036854775807), id);

-- Finds names by parts of three letters. Keeps no text: what it finds is compared again.
create virtual table users_search using fts5 (
    username, content = 'users', content_rowid = 'id', tokenize = 'trigram', detail = 'none', columnsize = 0
);
create trigger users_search_insert after insert on users begin insert into users_search (rowid, username) values (new.id, new.username); end;
create trigger users_search_delete after delete on users begin insert into users_search (users_search, rowid, username) values ('delete', old.id, old.username); end;
create trigger users_search_update after update of username on users begin insert into users_search (users_search, rowid, username) values ('delete', old.id, old.username); insert into users_search (rowid, username) values (new.id, new.username); end;

create table devices (
    user_id integer not null references users (id) on delete cascade,
    device_hash blob not null,
    platform text,
    model text,
    user_agent text,
    first_seen_at integer not null,
    last_seen_at integer not null,
    primary key (user_id, device_hash)
) strict;

create table subscription_requests (
    id integer primary key autoincrement,
    user_id integer not null references users (id) on delete cascade,
    at integer not null,
    address text,
    user_agent text,
    format text not null
) strict;
create index subscription_requests_user on subscription_requests (user_id, at);
create index subscription_requests_age on subscription_requests (at);

create table subscription_templates (
    id integer primary key autoincrement,
    kind text not null,
    name text not null unique,
    body text not null,
    is_default integer not null default 0,
    created_at integer not null,
    updated_at integer not null
) strict;
