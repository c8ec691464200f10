-- What each node's billing multiplier was since when: traffic is billed as it was when it passed, however late it is
-- reported. A node without a row has always had the one that it has.

create table node_multipliers (
    node_id bigint not null references vps_nodes (id) on delete cascade,
    since bigint not null,
    multiplier bigint not null,
    primary key (node_id, since)
);

-- Certificates of nodes that were deleted: such a node is told to stop serving when it asks for its master.

create table deleted_node_certificates (
    fingerprint bytea primary key,
    deleted_at bigint not null
);
