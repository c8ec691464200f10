//! Tasks that make the state so, over and over: they read the whole of what they are about, take no
//! input saying what changed, and are woken by calls and by a timer. Restart, failover and the happy
//! path are one path.

mod driver;
mod expiry;
mod fleet;
mod people;
mod upkeep;

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::task::JoinSet;

use self::driver::Task;
use crate::core::Core;
use crate::store::Topic;

/// Starts every task of a master.
pub(crate) fn spawn_all(
    tasks: &mut JoinSet<()>,
    core: &Arc<Core>,
    tls: &Arc<ArcSwap<ServerConfig>>,
) {
    let config = &core.config;
    let every = config.reconcile_interval;
    let mut spawn = |task: Task| {
        tasks.spawn(task.run(Arc::clone(core)));
    };
    spawn(Task::new("poke", every, |core, _| Box::pin(fleet::poke(core))).on(&[Topic::Nodes]));
    spawn(
        Task::new(
            "revocations",
            every.min(fleet::MAX_REVOCATION_DELAY),
            |core, _| Box::pin(fleet::revocations(core)),
        )
        .on(&[Topic::Revocations]),
    );
    spawn(Task::new("seen", config.seen_flush, |core, _| {
        Box::pin(fleet::seen(core))
    }));
    spawn(Task::new("idle", config.seen_flush, |core, _| {
        Box::pin(fleet::idle(core))
    }));
    let tls = Arc::clone(tls);
    spawn(
        Task::new("settings", upkeep::SETTINGS_INTERVAL, move |core, _| {
            Box::pin(upkeep::settings(core, Arc::clone(&tls)))
        })
        .on(&[Topic::Settings])
        .patience(upkeep::EVERY_NODE_PATIENCE),
    );
    spawn(
        Task::new("liveness", every, |core, fence| {
            Box::pin(fleet::liveness(core, fence))
        })
        .alone(),
    );
    spawn(
        Task::new("users", every, |core, fence| {
            Box::pin(people::limits(core, fence))
        })
        .on(&[Topic::Users])
        .alone(),
    );
    // Not alone: each master looks at what it counted.
    spawn(
        Task::new("quotas", every, |core, fence| {
            Box::pin(people::quotas(core, fence))
        })
        .on_traffic(),
    );
    spawn(
        Task::new("all quotas", people::ALL_QUOTAS_INTERVAL, |core, fence| {
            Box::pin(people::all_quotas(core, fence))
        })
        .alone(),
    );
    if config.auto_assign {
        spawn(
            Task::new("assign", people::ASSIGN_INTERVAL, |core, fence| {
                Box::pin(people::assign(core, fence))
            })
            .on(&[Topic::Users])
            .pause(people::ASSIGN_PAUSE)
            .alone(),
        );
    }
    spawn(
        Task::new("upkeep", upkeep::INTERVAL, |core, fence| {
            Box::pin(upkeep::upkeep(core, fence))
        })
        .patience(upkeep::PATIENCE)
        .alone(),
    );
    spawn(
        Task::new("signers", upkeep::INTERVAL, |core, fence| {
            Box::pin(upkeep::signers(core, fence))
        })
        .on(&[Topic::Settings])
        .alone(),
    );
    spawn(
        Task::new("expiry figures", upkeep::INTERVAL, |core, _| {
            Box::pin(expiry::figures(core))
        })
        .on(&[Topic::Settings]),
    );
    spawn(
        Task::new("expiry", upkeep::INTERVAL, |core, fence| {
            Box::pin(expiry::alert(core, fence))
        })
        .on(&[Topic::Settings])
        .alone(),
    );
    tasks.spawn(driver::relay(Arc::clone(core)));
}
