-- Which nodes have been told of which next authority, and have answered to what was sent after that: they trust it. It
-- takes over when all do.

create table told_authorities (
    node_id bigint not null references vps_nodes (id) on delete cascade,
    authority_id uuid not null references certificate_authorities (id) on delete cascade,
    told_at bigint not null,
    primary key (node_id, authority_id)
);
