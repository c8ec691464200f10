-- Users, plans and what subscriptions show.

create table plans (
    id bigint generated always as identity primary key,
    name text not null unique,
    quota_bytes bigint check (quota_bytes > 0),
    period text not null default 'none' check (period in ('none', 'day', 'week', 'month', 'month_rolling', 'year')),
    duration_days bigint check (duration_days > 0),
    max_devices bigint check (max_devices > 0),
    max_connections bigint check (max_connections > 0),
    up_bytes_per_s bigint check (up_bytes_per_s > 0),
    down_bytes_per_s bigint check (down_bytes_per_s > 0),
    nodes_per_user bigint not null default 3 check (nodes_per_user between 1 and 64),
    next_plan_id bigint references plans (id),
    archived_at bigint,
    rev bigint not null default 1,
    created_at bigint not null,
    updated_at bigint not null
);

create table plan_pools (
    plan_id bigint not null references plans (id) on delete cascade,
    pool_id bigint not null references node_pools (id) on delete cascade,
    quota_bytes bigint check (quota_bytes > 0),
    primary key (plan_id, pool_id)
);
create index plan_pools_pool on plan_pools (pool_id);

-- Limits are the user's own; null means the plan's, and no limit when the plan has none either.
create table users (
    id bigint generated always as identity primary key,
    uid uuid not null unique,
    username text not null check (length(username) between 1 and 64),
    -- Whose user this is, for admins who see only their own.
    admin_id bigint,
    plan_id bigint references plans (id),
    status text not null default 'active'
        check (status in ('on_hold', 'active', 'disabled', 'limited', 'expired', 'deleted')),
    status_reason text not null default '',
    -- 32 bytes, sealed; the credentials of a (user, node) derive from it.
    seed_enc bytea not null,
    -- A credential chosen by the operator, sealed, and its keyed hash; null: derived per node.
    credential_enc bytea,
    auth_hash bytea,
    subscription_hash bytea not null unique,
    subscription_enc bytea not null,
    subscription_rotated_at bigint not null,
    expires_at bigint,
    -- On hold: the clock starts with the first connection, at the latest at hold_deadline.
    hold_duration_ms bigint check (hold_duration_ms > 0),
    hold_deadline bigint,
    activated_at bigint,
    quota_bytes bigint check (quota_bytes > 0),
    period_started_at bigint not null,
    max_devices bigint check (max_devices > 0),
    max_connections bigint check (max_connections > 0),
    up_bytes_per_s bigint check (up_bytes_per_s > 0),
    down_bytes_per_s bigint check (down_bytes_per_s > 0),
    home_region_id bigint references regions (id),
    email text,
    telegram_id bigint,
    note text not null default '',
    tags jsonb not null,
    rev bigint not null default 1,
    created_at bigint not null,
    updated_at bigint not null,
    deleted_at bigint
);
create unique index users_username_key on users (username) where deleted_at is null;
create unique index users_auth_hash_key on users (auth_hash) where deleted_at is null;
create index users_status on users (status, id);
create index users_admin on users (admin_id, id);
create index users_plan on users (plan_id, period_started_at);
create index users_expiry on users (expires_at) where status in ('active', 'limited');
create index users_created on users (created_at, id);
create index users_end on users ((coalesce(expires_at, 9223372036854775807)), id);

-- Finds names by parts of them. Where the extension is not to be had, a search reads every name.
do $$
begin
    create extension if not exists pg_trgm;
    create index users_search on users using gin (lower(username) gin_trgm_ops);
exception when others then
    raise notice 'pg_trgm is not to be had: %', sqlerrm;
end
$$;

alter table node_assignments add constraint node_assignments_user_id_fkey
    foreign key (user_id) references users (id) on delete cascade;

create table devices (
    user_id bigint not null references users (id) on delete cascade,
    device_hash bytea not null,
    platform text,
    model text,
    user_agent text,
    first_seen_at bigint not null,
    last_seen_at bigint not null,
    primary key (user_id, device_hash)
);

create table subscription_requests (
    id bigint generated always as identity primary key,
    user_id bigint not null references users (id) on delete cascade,
    at bigint not null,
    address text,
    user_agent text,
    format text not null
);
create index subscription_requests_user on subscription_requests (user_id, at);
create index subscription_requests_age on subscription_requests (at);

create table subscription_templates (
    id bigint generated always as identity primary key,
    kind text not null,
    name text not null unique,
    body text not null,
    is_default boolean not null default false,
    created_at bigint not null,
    updated_at bigint not null
);
