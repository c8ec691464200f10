-- A reseller's quota is for good: what its users have used is not to be had again.

-- Used in periods that are over, and by users who are gone. Nothing of before this migration counts.
alter table admins add column spent_bytes integer not null default 0;

-- What nodes report of a deleted user counts from its deletion.
update user_counters set base_billed = billed
where base_billed <> billed and user_id in (select id from users where deleted_at is not null);

-- Nodes that users leave for those of their new plan, once they have one of these.
create index node_assignments_leaving on node_assignments (user_id) where reason is not null and released_at is null;
