-- Accounting. Counters only grow; a reset moves `base_billed` and appends a row.

create table user_counters (
    user_id bigint primary key references users (id) on delete cascade,
    tx bigint not null default 0,
    rx bigint not null default 0,
    billed bigint not null default 0,
    base_billed bigint not null default 0,
    online_at bigint,
    last_node_id bigint
) with (fillfactor = 50);

create table node_counters (
    node_id bigint primary key references vps_nodes (id) on delete cascade,
    tx bigint not null default 0,
    rx bigint not null default 0,
    quarantined_tx bigint not null default 0,
    quarantined_rx bigint not null default 0
) with (fillfactor = 50);

create table traffic_cursors (
    node_id bigint not null references vps_nodes (id) on delete cascade,
    spool_id uuid not null,
    last_seq bigint not null check (last_seq >= 0),
    updated_at bigint not null,
    primary key (node_id, spool_id)
);

-- Batches a restored master cannot have seen: the cursor was moved over them.
create table traffic_gaps (
    id bigint generated always as identity primary key,
    node_id bigint not null references vps_nodes (id) on delete cascade,
    spool_id uuid not null,
    first_seq bigint not null,
    last_seq bigint not null,
    at bigint not null
);

create table traffic_hourly (
    bucket bigint not null,
    node_id bigint not null,
    user_id bigint not null,
    tx bigint not null,
    rx bigint not null,
    primary key (bucket, node_id, user_id)
);
create index traffic_hourly_user on traffic_hourly (user_id, bucket);

create table traffic_daily (
    day bigint not null,
    user_id bigint not null,
    tx bigint not null,
    rx bigint not null,
    primary key (user_id, day)
);
create index traffic_daily_day on traffic_daily (day);

create table node_traffic_daily (
    day bigint not null,
    node_id bigint not null references vps_nodes (id) on delete cascade,
    tx bigint not null,
    rx bigint not null,
    primary key (node_id, day)
);

create table traffic_quarantine (
    id bigint generated always as identity primary key,
    node_id bigint not null references vps_nodes (id) on delete cascade,
    spool_id uuid not null,
    seq bigint not null,
    -- As reported; such a user need not exist.
    user_id bigint not null,
    tx bigint not null,
    rx bigint not null,
    reason text not null check (reason in ('unknown_user', 'foreign_user', 'invalid')),
    at bigint not null
);
create index traffic_quarantine_node on traffic_quarantine (node_id, id);
create index traffic_quarantine_age on traffic_quarantine (at);

create table traffic_resets (
    id bigint generated always as identity primary key,
    user_id bigint not null references users (id) on delete cascade,
    used_before bigint not null,
    base_billed bigint not null,
    reason text not null,
    actor text not null,
    at bigint not null
);
create index traffic_resets_user on traffic_resets (user_id, id);

-- Slices of quotas. granted - consumed of an open lease stays debited until the node's spool
-- arrives, the node gives it back, or an operator forfeits it.
create table quota_leases (
    id bigint generated always as identity primary key,
    user_id bigint not null references users (id) on delete cascade,
    node_id bigint not null references vps_nodes (id) on delete cascade,
    granted bigint not null check (granted >= 0),
    consumed bigint not null default 0 check (consumed >= 0),
    billing_multiplier bigint not null,
    created_at bigint not null,
    expires_at bigint not null,
    -- Closed: nothing of it is debited any more; late consumption still counts in `consumed`.
    closed_at bigint,
    close_reason text check (close_reason in ('released', 'spent', 'recalled', 'forfeited'))
);
create index quota_leases_open on quota_leases (user_id, node_id) where closed_at is null;
create index quota_leases_node on quota_leases (node_id) where closed_at is null;

create table device_leases (
    user_id bigint not null references users (id) on delete cascade,
    node_id bigint not null references vps_nodes (id) on delete cascade,
    slots bigint not null check (slots >= 0),
    in_use bigint not null default 0 check (in_use >= 0),
    expires_at bigint not null,
    updated_at bigint not null,
    primary key (user_id, node_id)
);
create index device_leases_node on device_leases (node_id);
