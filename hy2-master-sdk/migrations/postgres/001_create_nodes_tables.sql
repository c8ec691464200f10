-- Nodes, their identities, whom they serve and what they are told to run.
-- Times are milliseconds since 1970 (UTC), given by the master's clock; rates are bytes per second.
-- Columns that operators and reconcilers decide and columns that nodes report are kept apart.

create table regions (
    id bigint generated always as identity primary key,
    code text not null unique,
    name text not null,
    latitude double precision,
    longitude double precision,
    created_at bigint not null,
    updated_at bigint not null
);

create table vps_nodes (
    id bigint generated always as identity primary key,
    uid uuid not null unique,
    name text not null unique,
    public_host text not null,
    listen_port bigint not null default 8080 check (listen_port between 1 and 65535),
    region_id bigint references regions (id),
    country text,
    asn bigint,
    provider text,
    tags jsonb not null,
    weight bigint not null default 100 check (weight between 0 and 10000),
    capacity_sessions bigint check (capacity_sessions > 0),
    capacity_bytes_per_s bigint check (capacity_bytes_per_s > 0),
    -- Raw bytes times this, in parts per billion, are billed.
    billing_multiplier bigint not null default 1000000000 check (billing_multiplier between 0 and 1000000000000),
    traffic_limit_bytes bigint check (traffic_limit_bytes > 0),
    note text not null default '',
    control_mode text not null default 'reverse' check (control_mode in ('reverse', 'dial')),
    dial_address text,
    -- Decided. desired_rev is the revision of the manifest the node should have; it is bumped in the
    -- transaction of each change that concerns the node, at the moment desired_at: everything in a
    -- manifest follows from its revision. config_rev and users_rev say at which desired_rev either
    -- resource changed last.
    desired_state text not null default 'active'
        check (desired_state in ('active', 'cordoned', 'draining', 'maintenance', 'disabled')),
    drain_deadline bigint,
    desired_rev bigint not null default 1,
    config_rev bigint not null default 1,
    users_rev bigint not null default 1,
    desired_at bigint not null,
    -- Reported.
    observed_state text not null default 'pending'
        check (observed_state in ('pending', 'enrolling', 'online', 'suspect', 'offline', 'error', 'revoked')),
    state_reason text not null default '',
    state_since bigint not null,
    engine_state text not null default 'waiting'
        check (engine_state in ('waiting', 'serving', 'draining', 'stopped', 'failed')),
    applied_rev bigint not null default 0,
    applied_epoch bigint not null default 0,
    refused_rev bigint,
    refused_errors jsonb,
    agent_version text not null default '',
    capabilities jsonb not null,
    hostname text not null default '',
    listening jsonb not null,
    boot_id uuid,
    last_seen_at bigint,
    connections bigint not null default 0,
    users_online bigint not null default 0,
    -- Which master holds the node's Session; each write of that master names the epoch it was given.
    owner_master uuid,
    owner_epoch bigint not null default 0,
    rev bigint not null default 1,
    created_at bigint not null,
    updated_at bigint not null
);
create index vps_nodes_observed on vps_nodes (observed_state, id);
create index vps_nodes_region on vps_nodes (region_id);

create table node_certificates (
    fingerprint bytea primary key,
    node_id bigint not null references vps_nodes (id) on delete cascade,
    serial bytea not null unique,
    spki_sha256 bytea not null,
    not_before bigint not null,
    not_after bigint not null,
    -- A renewed certificate stays good until grace_until.
    replaced_at bigint,
    grace_until bigint,
    revoked_at bigint,
    revoke_reason text,
    created_at bigint not null
);
create index node_certificates_node on node_certificates (node_id, created_at);
create index node_certificates_spki on node_certificates (spki_sha256);

-- The certificate a node's Hysteria server shows when the private CA issues it.
create table node_tls (
    node_id bigint primary key references vps_nodes (id) on delete cascade,
    certificate bytea not null,
    private_key_enc bytea not null,
    sha256 bytea not null,
    host text not null,
    not_after bigint not null,
    created_at bigint not null,
    updated_at bigint not null
);

create table enrolment_tokens (
    id uuid primary key,
    secret_hash bytea not null unique,
    label text not null default '',
    bind_cidr text,
    region_id bigint references regions (id),
    tags jsonb not null,
    expires_at bigint not null,
    created_by bigint,
    used_at bigint,
    -- Of the request that used it: the same key gets the same answer again.
    used_spki_sha256 bytea,
    node_id bigint references vps_nodes (id) on delete set null,
    revoked_at bigint,
    created_at bigint not null
);

create table node_pools (
    id bigint generated always as identity primary key,
    name text not null unique,
    strategy text not null default 'least_loaded' check (strategy in ('least_loaded', 'nearest')),
    created_at bigint not null,
    updated_at bigint not null
);

create table pool_members (
    pool_id bigint not null references node_pools (id) on delete cascade,
    node_id bigint not null references vps_nodes (id) on delete cascade,
    weight bigint,
    primary key (pool_id, node_id)
);
create index pool_members_node on pool_members (node_id);

-- Released rows are kept: they decide whether late traffic belongs to a user. `rev` is the node's
-- desired_rev at which its entry for the user changed last.
create table node_assignments (
    id bigint generated always as identity primary key,
    user_id bigint not null,
    node_id bigint not null references vps_nodes (id) on delete cascade,
    rank bigint not null default 0,
    source text not null check (source in ('auto', 'manual', 'pinned', 'failover')),
    score double precision,
    reason jsonb,
    rev bigint not null,
    assigned_at bigint not null,
    released_at bigint,
    updated_at bigint not null
);
create unique index node_assignments_active on node_assignments (user_id, node_id) where released_at is null;
create index node_assignments_rev on node_assignments (node_id, rev);
create index node_assignments_pair on node_assignments (node_id, user_id);
create index node_assignments_user on node_assignments (user_id, id);

create table node_metrics (
    node_id bigint not null references vps_nodes (id) on delete cascade,
    -- 15: raw samples, 300 and 3600: averages.
    resolution_s bigint not null,
    at bigint not null,
    cpu_permille bigint not null,
    memory_used_bytes bigint not null,
    memory_total_bytes bigint not null,
    load1 double precision not null,
    disk_free_bytes bigint not null,
    open_files bigint not null,
    tx_bytes_per_s bigint not null,
    rx_bytes_per_s bigint not null,
    connections bigint not null,
    users_online bigint not null,
    tcp_streams bigint not null,
    udp_sessions bigint not null,
    auth_accepted bigint not null,
    auth_rejected bigint not null,
    handshakes_failed bigint not null,
    rtt_p50_ms double precision not null,
    rtt_p95_ms double precision not null,
    loss_permille bigint not null,
    spool_bytes bigint not null,
    agent_memory_bytes bigint not null,
    panics bigint not null,
    primary key (node_id, resolution_s, at)
);
create index node_metrics_age on node_metrics (resolution_s, at);

-- Bodies are merged fleet, region, node. Going back to an older one appends it anew.
create table config_revisions (
    id bigint generated always as identity primary key,
    scope text not null check (scope in ('fleet', 'region', 'node')),
    scope_id bigint not null default 0,
    body jsonb not null,
    sha256 bytea not null,
    author bigint,
    message text not null default '',
    parent bigint references config_revisions (id),
    created_at bigint not null
);
create index config_revisions_scope on config_revisions (scope, scope_id, id);

create table deployments (
    id uuid primary key,
    kind text not null check (kind in ('config', 'agent', 'certificate', 'users')),
    target_rev bigint,
    from_rev bigint,
    artifact text,
    selector jsonb not null,
    strategy jsonb not null,
    status text not null default 'pending' check (status in
        ('pending', 'canary', 'rolling', 'paused', 'succeeded', 'failed', 'rolling_back', 'rolled_back', 'aborted')),
    reason text not null default '',
    created_by bigint,
    started_at bigint,
    finished_at bigint,
    created_at bigint not null,
    updated_at bigint not null
);

create table deployment_nodes (
    deployment_id uuid not null references deployments (id) on delete cascade,
    node_id bigint not null references vps_nodes (id) on delete cascade,
    wave bigint not null,
    status text not null default 'pending'
        check (status in ('pending', 'applying', 'soaking', 'healthy', 'failed', 'reverted', 'skipped')),
    previous_rev bigint,
    started_at bigint,
    healthy_at bigint,
    error text,
    baseline jsonb,
    observed jsonb,
    primary key (deployment_id, node_id)
);
create index deployment_nodes_node on deployment_nodes (node_id);
