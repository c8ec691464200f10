-- Who may do what, and proofs of who they are.

create table admin_roles (
    id bigint generated always as identity primary key,
    name text not null unique,
    permissions jsonb not null,
    built_in boolean not null default false,
    created_at bigint not null,
    updated_at bigint not null
);

create table admins (
    id bigint generated always as identity primary key,
    username text not null unique check (length(username) between 1 and 64),
    password_hash text not null,
    role_id bigint not null references admin_roles (id),
    status text not null default 'active' check (status in ('active', 'disabled')),
    totp_enc bytea,
    -- Counter of the last accepted code: none is taken twice.
    totp_last_step bigint not null default 0,
    -- Sealed until the first code proves that the admin has it.
    totp_pending_enc bytea,
    recovery_hashes jsonb not null,
    must_change_password boolean not null default false,
    quota_bytes bigint check (quota_bytes > 0),
    max_users bigint check (max_users >= 0),
    -- Bumped to end all sessions at once.
    session_epoch bigint not null default 0,
    last_login_at bigint,
    rev bigint not null default 1,
    created_at bigint not null,
    updated_at bigint not null
);
create index admins_role on admins (role_id);

alter table users add constraint users_admin_id_fkey foreign key (admin_id) references admins (id);

create table admin_sessions (
    id uuid primary key,
    admin_id bigint not null references admins (id) on delete cascade,
    -- Of the refresh token in force; a token used again ends the whole session.
    refresh_hash bytea not null unique,
    previous_hash bytea,
    address text,
    user_agent text,
    created_at bigint not null,
    refreshed_at bigint not null,
    expires_at bigint not null,
    revoked_at bigint,
    revoke_reason text
);
create index admin_sessions_admin on admin_sessions (admin_id);
create index admin_sessions_previous on admin_sessions (previous_hash);
create index admin_sessions_expiry on admin_sessions (expires_at);

create table api_tokens (
    id uuid primary key,
    admin_id bigint not null references admins (id) on delete cascade,
    name text not null,
    prefix text not null,
    secret_hash bytea not null unique,
    scopes jsonb not null,
    cidrs jsonb not null,
    expires_at bigint,
    last_used_at bigint,
    revoked_at bigint,
    created_at bigint not null
);
create index api_tokens_admin on api_tokens (admin_id);

create table login_attempts (
    key_hash bytea primary key,
    failures bigint not null,
    window_started_at bigint not null,
    blocked_until bigint
);
create index login_attempts_age on login_attempts (window_started_at);

create table idempotency_keys (
    admin_id bigint not null,
    key text not null check (length(key) between 1 and 128),
    request_hash bytea not null,
    -- Null while the first request runs.
    status bigint,
    response_enc bytea,
    created_at bigint not null,
    expires_at bigint not null,
    primary key (admin_id, key)
);
create index idempotency_keys_expiry on idempotency_keys (expires_at);
