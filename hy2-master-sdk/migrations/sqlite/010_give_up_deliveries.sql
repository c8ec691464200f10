-- Until when a delivery is tried: a day from when it was made, or sent again by hand.

alter table webhook_deliveries add column give_up_at integer not null default 0;
update webhook_deliveries set give_up_at = created_at + 86400000;

-- Due deliveries are taken webhook by webhook.
drop index webhook_deliveries_due;
create index webhook_deliveries_due on webhook_deliveries (webhook_id, next_at) where status = 'pending';
create index webhook_deliveries_give_up on webhook_deliveries (give_up_at) where status = 'pending';
