-- Accounting. Counters only grow; a reset moves `base_billed` and appends a row.

create table user_counters (
    user_id integer primary key references users (id) on delete cascade,
    tx integer not null default 0,
    rx integer not null default 0,
    billed integer not null default 0,
    base_billed integer not null default 0,
    online_at integer,
    last_node_id integer
) strict;

create table node_counters (
    node_id integer primary key references vps_nodes (id) on delete cascade,
    tx integer not null default 0,
    rx integer not null default 0,
    quarantined_tx integer not null default 0,
    quarantined_rx integer not null default 0
) strict;

create table traffic_cursors (
    node_id integer not null references vps_nodes (id) on delete cascade,
    spool_id blob not null,
    last_seq integer not null check (last_seq >= 0),
    updated_at integer not null,
    primary key (node_id, spool_id)
) strict;

-- Batches a restored master cannot have seen: the cursor was moved over them.
create table traffic_gaps (
    id integer primary key autoincrement,
    node_id integer not null references vps_nodes (id) on delete cascade,
    spool_id blob not null,
    first_seq integer not null,
    last_seq integer not null,
    at integer not null
) strict;

create table traffic_hourly (
    bucket integer not null,
    node_id integer not null,
    user_id integer not null,
    tx integer not null,
    rx integer not null,
    primary key (bucket, node_id, user_id)
) strict;
create index traffic_hourly_user on traffic_hourly (user_id, bucket);

create table traffic_daily (
    day integer not null,
    user_id integer not null,
    tx integer not null,
    rx integer not null,
    primary key (user_id, day)
) strict;
create index traffic_daily_day on traffic_daily (day);

create table node_traffic_daily (
    day integer not null,
    node_id integer not null references vps_nodes (id) on delete cascade,
    tx integer not null,
    rx integer not null,
    primary key (node_id, day)
) strict;

create table traffic_quarantine (
    id integer primary key autoincrement,
    node_id integer not null references vps_nodes (id) on delete cascade,
    spool_id blob not null,
    seq integer not null,
    -- As reported; such a user need not exist.
    user_id integer not null,
    tx integer not null,
    rx integer not null,
    reason text not null check (reason in ('unknown_user', 'foreign_user', 'invalid')),
    at integer not null
) strict;
create index traffic_quarantine_node on traffic_quarantine (node_id, id);
create index traffic_quarantine_age on traffic_quarantine (at);

create table traffic_resets (
    id integer primary key autoincrement,
    user_id integer not null references users (id) on delete cascade,
    used_before integer not null,
    base_billed integer not null,
    reason text not null,
    actor text not null,
    at integer not null
) strict;
create index traffic_resets_user on traffic_resets (user_id, id);

-- Slices of quotas. granted - consumed of an open lease stays debited until the node's spool
-- arrives, the node gives it back, or an operator forfeits it.
create table quota_leases (
    id integer primary key autoincrement,
    user_id integer not null references users (id) on delete cascade,
    node_id integer not null references vps_nodes (id) on delete cascade,
    granted integer not null check (granted >= 0),
    consumed integer not null default 0 check (consumed >= 0),
    billing_multiplier integer not null,
    created_at integer not null,
    expires_at integer not null,
    -- Closed: nothing of it is debited any more; late consumption still counts in `consumed`.
    closed_at integer,
    close_reason text check (close_reason in ('released', 'spent', 'recalled', 'forfeited'))
) strict;
create index quota_leases_open on quota_leases (user_id, node_id) where closed_at is null;
create index quota_leases_node on quota_leases (node_id) where closed_at is null;

create table device_leases (
    user_id integer not null references users (id) on delete cascade,
    node_id integer not null references vps_nodes (id) on delete cascade,
    slots integer not null check (slots >= 0),
    in_use integer not null default 0 check (in_use >= 0),
    expires_at integer not null,
    updated_at integer not null,
    primary key (user_id, node_id)
) strict;
create index device_leases_node on device_leases (node_id);
