//! An agent around an engine of the embedder's.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use hy2_agent_sdk::{
    BoxFuture,
    engine::{Engine, EngineSession},
    hy2_core::authenticator::UserLimits,
    hy2_proto::control::rpc::{ApplyEffect, ErrorCode, FieldError},
    settings::NodeSettings,
};
use parking_lot::Mutex;

use crate::fleet::World;

/// Runs nothing, and remembers what it was told.
#[derive(Default)]
struct Stub {
    applied: Mutex<Vec<Vec<SocketAddr>>>,
    kicked: Mutex<Vec<u64>>,
    fails: AtomicBool,
    stopped: AtomicBool,
}

impl Engine for Stub {
    fn check<'a>(
        &'a self,
        _settings: &'a NodeSettings,
    ) -> BoxFuture<'a, Result<ApplyEffect, Vec<FieldError>>> {
        Box::pin(async { Ok(ApplyEffect::Hot) })
    }

    fn apply<'a>(
        &'a self,
        settings: &'a NodeSettings,
    ) -> BoxFuture<'a, Result<ApplyEffect, Vec<FieldError>>> {
        Box::pin(async {
            if self.fails.load(SeqCst) {
                let mut error = FieldError {
                    path: "listen[0]".into(),
                    ..Default::default()
                };
                error.set_code(ErrorCode::CannotBind);
                return Err(vec![error]);
            }
            self.applied.lock().push(settings.listen.clone());
            Ok(ApplyEffect::Listeners)
        })
    }

    fn listening(&self) -> Vec<SocketAddr> {
        self.applied.lock().last().cloned().unwrap_or_default()
    }

    fn kick_user(&self, user: u64) -> usize {
        self.kicked.lock().push(user);
        1
    }

    fn kick_connection(&self, _connection: u64) -> bool {
        false
    }

    fn set_limits(&self, _user: u64, _limits: UserLimits) {}

    fn sessions(&self) -> Vec<EngineSession> {
        let mut session = EngineSession::new(5, 1, ([192, 0, 2, 1], 9).into());
        session.tx = 77;
        vec![session]
    }

    fn stop(&self, _grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async { self.stopped.store(true, SeqCst) })
    }
}

#[tokio::test]
async fn an_engine_of_the_embedder_is_told_everything() {
    let mut world = World::with_users(&[(1, "alice's credential")]).await;
    let stub = Arc::new(Stub::default());
    let engine = Arc::clone(&stub);
    world
        .start_with(move |builder| builder.engine(move |_parts| engine))
        .await;
    world.master.acked(1).await;
    assert_eq!(stub.applied.lock().len(), 1);
    world
        .master
        .until_seen("its session", |seen| {
            seen.live.get(&5).is_some_and(|one| one.tx_bytes == 77)
        })
        .await;
    // A change of users alone does not touch the engine but to cut who is gone.
    world
        .master
        .publish_acked(|desired| {
            desired.users.remove(&1);
        })
        .await;
    assert_eq!(stub.applied.lock().len(), 1);
    assert_eq!(*stub.kicked.lock(), [1]);
    stub.fails.store(true, SeqCst);
    let rev = world
        .master
        .publish(|desired| desired.config.speed_test = true)
        .await;
    assert_eq!(world.master.nacked(rev).await.errors[0].path, "listen[0]");
    stub.fails.store(false, SeqCst);
    world
        .master
        .publish_acked(|desired| desired.config.speed_test = false)
        .await;
    world.shutdown().await;
    assert!(stub.stopped.load(SeqCst));
}
