//! REST, AdminService and subscriptions over real sockets, on SQLite and on PostgreSQL.

mod accounts;
mod authorisation;
mod backups;
mod contract;
mod events;
mod grpc;
mod harness;
mod hostile;
mod resources;
mod subscriptions;
