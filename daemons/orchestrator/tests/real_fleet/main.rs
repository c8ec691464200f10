//! The fleet as it runs: `hy2-orchestrator`, `hy2-agent` and `hy2` as processes, SQLite and the real
//! PostgreSQL, the reference client, origins that count.
//!
//! The origins are the witnesses: what they took and gave is compared with what REST says. Long runs
//! of the same tests: `make chaos` (`HY2_FULL=1`). A run is repeated with `HY2_SEED`.
#![cfg(unix)]

mod canaries;
mod changes;
mod chaos;
mod client;
mod database;
mod delivery;
mod end_to_end;
mod fleet;
mod load;
mod needles;
mod operator;
mod origin;
mod outage;
mod ports;
mod postgres;
mod process;
mod quota;
mod random;
mod removed;
mod rest;
mod restored;
mod revocation;
mod roles;
mod small_disk;
mod stubs;
mod wire;

use std::time::Duration;

/// How long anything may take. Generous: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Whether this is the long run.
pub(crate) fn full() -> bool {
    std::env::var_os("HY2_FULL").is_some()
}

/// Waits for `what` and fails loudly when it takes too long.
pub(crate) async fn soon<T>(what: &str, of: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, of)
        .await
        .unwrap_or_else(|_| panic!("{what} took too long"))
}

/// Asks again and again until there is an answer.
pub(crate) async fn until<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let last = match ask().await {
            Ok(found) => return found,
            Err(why) => why,
        };
        assert!(
            tokio::time::Instant::now() < deadline,
            "{what} took too long: {last}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Says that `what` does not happen in this run and why, also where output is kept back. A long run counts only whole.
pub(crate) fn skip(what: &str, why: &str) {
    use std::io::Write;
    assert!(!full(), "HY2_FULL wants {what}, but {why}");
    let said = format!("SKIPPED: {what}: {why}\n");
    // The macros' output is shown of tests that fail only.
    let _ = std::io::stderr().write_all(said.as_bytes());
}

/// Says how a long run goes.
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}
