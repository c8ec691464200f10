-- Who may do what, and proofs of who they are.

create table admin_roles (
    id integer primary key autoincrement,
    name text not null unique,
    permissions text not null check (json_valid(permissions)),
    built_in integer not null default 0,
    created_at integer not null,
    updated_at integer not null
) strict;

create table admins (
    id integer primary key autoincrement,
    username text not null unique check (length(username) between 1 and 64),
    password_hash text not null,
    role_id integer not null references admin_roles (id),
    status text not null default 'active' check (status in ('active', 'disabled')),
    totp_enc blob,
    -- Counter of the last accepted code: none is taken twice.
    totp_last_step integer not null default 0,
    -- Sealed until the first code proves that the admin has it.
    totp_pending_enc blob,
    recovery_hashes text not null check (json_valid(recovery_hashes)),
    must_change_password integer not null default 0,
    quota_bytes integer check (quota_bytes > 0),
    max_users integer check (max_users >= 0),
    -- Bumped to end all sessions at once.
    session_epoch integer not null default 0,
    last_login_at integer,
    rev integer not null default 1,
    created_at integer not null,
    updated_at integer not null
) strict;
create index admins_role on admins (role_id);

create table admin_sessions (
    id blob primary key,
    admin_id integer not null references admins (id) on delete cascade,
    -- Of the refresh token in force; a token used again ends the whole session.
    refresh_hash blob not null unique,
    previous_hash blob,
    address text,
    user_agent text,
    created_at integer not null,
    refreshed_at integer not null,
    expires_at integer not null,
    revoked_at integer,
    revoke_reason text
) strict;
create index admin_sessions_admin on admin_sessions (admin_id);
create index admin_sessions_previous on admin_sessions (previous_hash);
create index admin_sessions_expiry on admin_sessions (expires_at);

create table api_tokens (
    id blob primary key,
    admin_id integer not null references admins (id) on delete cascade,
    name text not null,
    prefix text not null,
    secret_hash blob not null unique,
    scopes text not null check (json_valid(scopes)),
    cidrs text not null check (json_valid(cidrs)),
    expires_at integer,
    last_used_at integer,
    revoked_at integer,
    created_at integer not null
) strict;
create index api_tokens_admin on api_tokens (admin_id);

create table login_attempts (
    key_hash blob primary key,
    failures integer not null,
    window_started_at integer not null,
    blocked_until integer
) strict;
create index login_attempts_age on login_attempts (window_started_at);

create table idempotency_keys (
    admin_id integer not null,
    key text not null check (length(key) between 1 and 128),
    request_hash blob not null,
    -- Null while the first request runs.
    status integer,
    response_enc blob,
    created_at integer not null,
    expires_at integer not null,
    primary key (admin_id, key)
) strict;
create index idempotency_keys_expiry on idempotency_keys (expires_at);
