-- Nodes, their identities, whom they serve and what they are told to run.
-- Times are milliseconds since 1970 (UTC), given by the master's clock; rates are bytes per second.
-- Columns that operators and reconcilers decide and columns that nodes report are kept apart.

create table regions (
    id integer primary key autoincrement,
    code text not null unique,
    name text not null,
    latitude real,
    longitude real,
    created_at integer not null,
    updated_at integer not null
) strict;

create table vps_nodes (
    id integer primary key autoincrement,
    uid blob not null unique,
    name text not null unique,
    public_host text not null,
    listen_port integer not null default 8080 check (listen_port between 1 and 65535),
    region_id integer references regions (id),
    country text,
    asn integer,
    provider text,
    tags text not null check (json_valid(tags)),
    weight integer not null default 100 check (weight between 0 and 10000),
    capacity_sessions integer check (capacity_sessions > 0),
    capacity_bytes_per_s integer check (capacity_bytes_per_s > 0),
    -- Raw bytes times this, in parts per billion, are billed.
    billing_multiplier integer not null default 1000000000 check (billing_multiplier between 0 and 1000000000000),
    traffic_limit_bytes integer check (traffic_limit_bytes > 0),
    note text not null default '',
    control_mode text not null default 'reverse' check (control_mode in ('reverse', 'dial')),
    dial_address text,
    -- Decided. desired_rev is the revision of the manifest the node should have; it is bumped in the
    -- transaction of each change that concerns the node, at the moment desired_at: everything in a
    -- manifest follows from its revision. config_rev and users_rev say at which desired_rev either
    -- resource changed last.
    desired_state text not null default 'active'
        check (desired_state in ('active', 'cordoned', 'draining', 'maintenance', 'disabled')),
    drain_deadline integer,
    desired_rev integer not null default 1,
    config_rev integer not null default 1,
    users_rev integer not null default 1,
    desired_at integer not null,
    -- Reported.
    observed_state text not null default 'pending'
        check (observed_state in ('pending', 'enrolling', 'online', 'suspect', 'offline', 'error', 'revoked')),
    state_reason text not null default '',
    state_since integer not null,
    engine_state text not null default 'waiting'
        check (engine_state in ('waiting', 'serving', 'draining', 'stopped', 'failed')),
    applied_rev integer not null default 0,
    applied_epoch integer not null default 0,
    refused_rev integer,
    refused_errors text check (json_valid(refused_errors)),
    agent_version text not null default '',
    capabilities text not null check (json_valid(capabilities)),
    hostname text not null default '',
    listening text not null check (json_valid(listening)),
    boot_id blob,
    last_seen_at integer,
    connections integer not null default 0,
    users_online integer not null default 0,
    -- Which master holds the node's Session; each write of that master names the epoch it was given.
    owner_master blob,
    owner_epoch integer not null default 0,
    rev integer not null default 1,
    created_at integer not null,
    updated_at integer not null
) strict;
create index vps_nodes_observed on vps_nodes (observed_state, id);
create index vps_nodes_region on vps_nodes (region_id);

create table node_certificates (
    fingerprint blob primary key,
    node_id integer not null references vps_nodes (id) on delete cascade,
    serial blob not null unique,
    spki_sha256 blob not null,
    not_before integer not null,
    not_after integer not null,
    -- A renewed certificate stays good until grace_until.
    replaced_at integer,
    grace_until integer,
    revoked_at integer,
    revoke_reason text,
    created_at integer not null
) strict;
create index node_certificates_node on node_certificates (node_id, created_at);
create index node_certificates_spki on node_certificates (spki_sha256);

-- The certificate a node's Hysteria server shows when the private CA issues it.
create table node_tls (
    node_id integer primary key references vps_nodes (id) on delete cascade,
    certificate blob not null,
    private_key_enc blob not null,
    sha256 blob not null,
    host text not null,
    not_after integer not null,
    created_at integer not null,
    updated_at integer not null
) strict;

create table enrolment_tokens (
    id blob primary key,
    secret_hash blob not null unique,
    label text not null default '',
    bind_cidr text,
    region_id integer references regions (id),
    tags text not null check (json_valid(tags)),
    expires_at integer not null,
    created_by integer,
    used_at integer,
    -- Of the request that used it: the same key gets the same answer again.
    used_spki_sha256 blob,
    node_id integer references vps_nodes (id) on delete set null,
    revoked_at integer,
    created_at integer not null
) strict;

create table node_pools (
    id integer primary key autoincrement,
    name text not null unique,
    strategy text not null default 'least_loaded' check (strategy in ('least_loaded', 'nearest')),
    created_at integer not null,
    updated_at integer not null
) strict;

create table pool_members (
    pool_id integer not null references node_pools (id) on delete cascade,
    node_id integer not null references vps_nodes (id) on delete cascade,
    weight integer,
    primary key (pool_id, node_id)
) strict;
create index pool_members_node on pool_members (node_id);

-- Released rows are kept: they decide whether late traffic belongs to a user. `rev` is the node's
-- desired_rev at which its entry for the user changed last.
create table node_assignments (
    id integer primary key autoincrement,
    user_id integer not null references users (id) on delete cascade,
    node_id integer not null references vps_nodes (id) on delete cascade,
    rank integer not null default 0,
    source text not null check (source in ('auto', 'manual', 'pinned', 'failover')),
    score real,
    reason text check (json_valid(reason)),
    rev integer not null,
    assigned_at integer not null,
    released_at integer,
    updated_at integer not null
) strict;
create unique index node_assignments_active on node_assignments (user_id, node_id) where released_at is null;
create index node_assignments_rev on node_assignments (node_id, rev);
create index node_assignments_pair on node_assignments (node_id, user_id);
create index node_assignments_user on node_assignments (user_id, id);

create table node_metrics (
    node_id integer not null references vps_nodes (id) on delete cascade,
    -- 15: raw samples, 300 and 3600: averages.
    resolution_s integer not null,
    at integer not null,
    cpu_permille integer not null,
    memory_used_bytes integer not null,
    memory_total_bytes integer not null,
    load1 real not null,
    disk_free_bytes integer not null,
    open_files integer not null,
    tx_bytes_per_s integer not null,
    rx_bytes_per_s integer not null,
    connections integer not null,
    users_online integer not null,
    tcp_streams integer not null,
    udp_sessions integer not null,
    auth_accepted integer not null,
    auth_rejected integer not null,
    handshakes_failed integer not null,
    rtt_p50_ms real not null,
    rtt_p95_ms real not null,
    loss_permille integer not null,
    spool_bytes integer not null,
    agent_memory_bytes integer not null,
    panics integer not null,
    primary key (node_id, resolution_s, at)
) strict;
create index node_metrics_age on node_metrics (resolution_s, at);

-- Bodies are merged fleet, region, node. Going back to an older one appends it anew.
create table config_revisions (
    id integer primary key autoincrement,
    scope text not null check (scope in ('fleet', 'region', 'node')),
    scope_id integer not null default 0,
    body text not null check (json_valid(body)),
    sha256 blob not null,
    author integer,
    message text not null default '',
    parent integer references config_revisions (id),
    created_at integer not null
) strict;
create index config_revisions_scope on config_revisions (scope, scope_id, id);

create table deployments (
    id blob primary key,
    kind text not null check (kind in ('config', 'agent', 'certificate', 'users')),
    target_rev integer,
    from_rev integer,
    artifact text,
    selector text not null check (json_valid(selector)),
    strategy text not null check (json_valid(strategy)),
    status text not null default 'pending' check (status in
        ('pending', 'canary', 'rolling', 'paused', 'succeeded', 'failed', 'rolling_back', 'rolled_back', 'aborted')),
    reason text not null default '',
    created_by integer,
    started_at integer,
    finished_at integer,
    created_at integer not null,
    updated_at integer not null
) strict;

create table deployment_nodes (
    deployment_id blob not null references deployments (id) on delete cascade,
    node_id integer not null references vps_nodes (id) on delete cascade,
    wave integer not null,
    status text not null default 'pending'
        check (status in ('pending', 'applying', 'soaking', 'healthy', 'failed', 'reverted', 'skipped')),
    previous_rev integer,
    started_at integer,
    healthy_at integer,
    error text,
    baseline text check (json_valid(baseline)),
    observed text check (json_valid(observed)),
    primary key (deployment_id, node_id)
) strict;
create index deployment_nodes_node on deployment_nodes (node_id);
