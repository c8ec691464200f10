-- What each node's billing multiplier was since when: traffic is billed as it was when it passed, however late it is
-- reported. A node without a row has always had the one that it has.

create table node_multipliers (
    node_id integer not null references vps_nodes (id) on delete cascade,
    since integer not null,
    multiplier integer not null,
    primary key (node_id, since)
) strict;

-- Certificates of nodes that were deleted: such a node is told to stop serving when it asks for its master.

create table deleted_node_certificates (
    fingerprint blob primary key,
    deleted_at integer not null
) strict;
