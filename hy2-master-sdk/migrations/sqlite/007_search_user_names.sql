-- Lists and searches of users read narrow indexes only, whatever is filtered, sorted or looked for.

-- The name in small letters, as the store folds it. Names of earlier versions are ASCII.
alter table users add column name_folded text not null default '';
update users set name_folded = lower(username);

-- One per order, with all that a list filters by: a row of users is read when it is on the page.
drop index users_created;
drop index users_end;
create index users_by_id on users (id, name_folded, status, plan_id, admin_id) where deleted_at is null;
create index users_by_name on users (username, name_folded, status, plan_id, admin_id) where deleted_at is null;
create index users_by_creation on users (created_at, id, name_folded, status, plan_id, admin_id) where deleted_at is null;
create index users_by_end on users (coalesce(expires_at, 9223372036854775807), id, name_folded, status, plan_id, admin_id) where deleted_at is null;

-- Finds names by three letters in a row. Two letters more follow each name, so that a part of three begins
-- at each of its letters: one and two letters are found as the beginnings of parts. Keeps no text: what it
-- finds is compared again.
drop trigger users_search_insert;
drop trigger users_search_delete;
drop trigger users_search_update;
drop table users_search;
create virtual table user_name_parts using fts5 (
    name, content = '', tokenize = 'trigram case_sensitive 1', detail = 'none', columnsize = 0
);
create virtual table user_name_part_rows using fts5vocab ('user_name_parts', 'instance');
insert into user_name_parts (rowid, name) select id, name_folded || char(1, 1) from users where deleted_at is null;
create trigger user_name_parts_insert after insert on users when new.deleted_at is null begin insert into user_name_parts (rowid, name) values (new.id, new.name_folded || char(1, 1)); end;
create trigger user_name_parts_delete after delete on users when old.deleted_at is null begin insert into user_name_parts (user_name_parts, rowid, name) values ('delete', old.id, old.name_folded || char(1, 1)); end;
-- The old name leaves before the new one comes: triggers of one time have no order.
create trigger user_name_parts_leave before update of name_folded, deleted_at on users when old.deleted_at is null and (new.deleted_at is not null or new.name_folded <> old.name_folded) begin insert into user_name_parts (user_name_parts, rowid, name) values ('delete', old.id, old.name_folded || char(1, 1)); end;
create trigger user_name_parts_enter after update of name_folded, deleted_at on users when new.deleted_at is null and (old.deleted_at is not null or new.name_folded <> old.name_folded) begin insert into user_name_parts (rowid, name) values (new.id, new.name_folded || char(1, 1)); end;
