-- Users whose names have all of the parts and the whole, as many as asked for, with all that a list sorts and filters by: rows
-- that the index finds are read once. `users_named` stays for processes of the version before.
create function users_found(parts text[], whole text, most bigint)
    returns table (id bigint, username text, created_at bigint, expires_at bigint, status text, plan_id bigint, admin_id bigint)
    language sql stable
    set enable_seqscan = off set enable_indexscan = off set enable_indexonlyscan = off set jit = off
as $$
    select u.id, u.username, u.created_at, u.expires_at, u.status, u.plan_id, u.admin_id from users u
    where u.deleted_at is null and user_name_parts(u.name_folded) @> parts and strpos(u.name_folded, whole) > 0
    limit most
$$;
