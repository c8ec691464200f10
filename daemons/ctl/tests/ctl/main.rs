//! The built `hy2ctl` against a real orchestrator on SQLite.

mod command_line;
mod fleet;
mod logins;
mod support;
mod upkeep;
mod users;
