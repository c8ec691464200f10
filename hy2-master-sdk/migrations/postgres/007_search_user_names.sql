-- Lists and searches of users read narrow indexes only, whatever is filtered, sorted or looked for.

-- The name in small letters, as the store folds it. Names of earlier versions are ASCII.
alter table users add column name_folded text not null default '';
update users set name_folded = lower(username);

-- One per order, with all that a list filters by: a row of users is read when it is on the page. PostgreSQL
-- answers from an index of an expression alone only when the index has the expression's columns as well.
drop index users_created;
drop index users_end;
create index users_by_id on users (id) include (name_folded, status, plan_id, admin_id) where deleted_at is null;
create index users_by_name on users (username) include (id, name_folded, status, plan_id, admin_id) where deleted_at is null;
create index users_by_creation on users (created_at, id) include (name_folded, status, plan_id, admin_id) where deleted_at is null;
create index users_by_end on users ((coalesce(expires_at, 9223372036854775807)), id) include (expires_at, name_folded, status, plan_id, admin_id) where deleted_at is null;
-- Pages that hold a change since the last vacuum cost a look at the row itself.
alter table users set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.02);

-- Finds names by one, two or three letters in a row, with what every PostgreSQL has. Not gathered in a
-- pending list, which each search would read through.
drop index if exists users_search;
create function user_name_parts(name text) returns text[] language sql immutable strict parallel safe as $$
    select array_agg(distinct substr(name, place, size))
    from generate_series(1, length(name)) place, generate_series(1, 3) size
$$;
create index user_name_parts on users using gin (user_name_parts(name_folded)) with (fastupdate = off) where deleted_at is null;

-- Users whose names have all of the parts and the whole, as many as asked for. Only the index answers quickly, and
-- the planner cannot know how many users several parts together leave.
create function users_named(parts text[], whole text, most bigint) returns setof bigint language sql stable
    set enable_seqscan = off set enable_indexscan = off set enable_indexonlyscan = off set jit = off
as $$
    select id from users
    where deleted_at is null and user_name_parts(name_folded) @> parts and strpos(name_folded, whole) > 0
    limit most
$$;
