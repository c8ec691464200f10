//! An authenticator whose users bring their own cells.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use hy2_core::{
    BoxFuture,
    authenticator::{AuthContext, AuthDecision, Authenticator, Grant, UserLimits},
    meter::{Traffic, UserCounters},
};

use crate::recorder::Guards;

/// Lets everybody in under the name that is the credential.
#[derive(Debug, Clone, Default)]
pub(crate) struct Users {
    cells: Arc<Mutex<HashMap<String, Arc<UserCounters>>>>,
    pub(crate) limits: Arc<Mutex<UserLimits>>,
    pub(crate) guards: Guards,
}

impl Users {
    pub(crate) fn cells(&self, user: &str) -> Arc<UserCounters> {
        let mut cells = self.cells.lock().expect("lock");
        Arc::clone(cells.entry(user.to_owned()).or_default())
    }

    /// Grants to come count into new cells.
    pub(crate) fn forget_cells(&self, user: &str) {
        self.cells.lock().expect("lock").remove(user);
    }

    pub(crate) fn traffic(&self, user: &str) -> Traffic {
        self.cells(user).snapshot()
    }
}

impl Authenticator for Users {
    fn authenticate<'a>(&'a self, request: AuthContext<'a>) -> BoxFuture<'a, AuthDecision> {
        let grant = Grant::new(request.auth)
            .counters(self.cells(request.auth))
            .limits(*self.limits.lock().expect("lock"))
            .guard(self.guards.guard());
        Box::pin(std::future::ready(AuthDecision::Accept(grant)))
    }
}
