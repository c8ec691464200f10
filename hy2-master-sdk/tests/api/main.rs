//! REST, AdminService and subscriptions over real sockets, on SQLite and on PostgreSQL.

mod accounts;
mod alerts;
mod authorisation;
mod backups;
mod contract;
mod embedding;
mod enumeration;
mod events;
mod front;
mod grpc;
mod harness;
mod holds;
mod hostile;
mod imports;
mod obfuscation;
#[path = "../support/postgres.rs"]
mod postgres;
mod reconciled;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
#[path = "../support/redis.rs"]
mod redis_server;
mod regions;
mod repeated;
mod resources;
mod rights;
mod round_trip;
mod spent;
mod subscriptions;
mod traffic;
mod vanished;
mod webhooks;
