//! Passwords of administrators: argon2id, off the async threads, a bounded number at a time.
//!
//! Checking a password of an account that does not exist costs the same as one that does: the
//! attempt is made against a hash that nothing matches.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Semaphore;

/// Shortest password that is accepted for an administrator, in characters (NIST SP 800-63B-4).
pub const MIN_PASSWORD: usize = 12;

/// Longest password that is accepted, in bytes: bounds the work of hashing it.
pub const MAX_PASSWORD: usize = 256;

/// What a hash costs: 64 MiB and three passes (RFC 9106 §4, second choice).
pub const DEFAULT_COST: Cost = Cost {
    memory_kib: 65_536,
    passes: 3,
};

/// Memory and passes of argon2id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
}

/// Why a password was not hashed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PasswordError {
    /// Shorter than [`MIN_PASSWORD`].
    #[error("must have at least 12 characters")]
    TooShort,
    /// Longer than [`MAX_PASSWORD`].
    #[error("must have at most 256 bytes")]
    TooLong,
    /// The hashing itself failed; says so of the parameters or of memory, not of the password.
    #[error("password hashing failed")]
    Hashing,
}

/// Hashes and checks passwords; cheap to clone.
#[derive(Debug, Clone)]
pub struct Passwords {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    params: Params,
    /// As many at once as there are cores: 100 logins at once cost the memory of a few.
    permits: Arc<Semaphore>,
    /// Matches nothing; checked in place of the hash of an account that does not exist.
    dummy: String,
    checks: AtomicU64,
}

impl Passwords {
    /// Makes a hasher with the given cost.
    ///
    /// # Errors
    ///
    /// [`PasswordError::Hashing`] if argon2 refuses the parameters.
    pub fn new(cost: Cost) -> Result<Self, PasswordError> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, None)
            .map_err(|_| PasswordError::Hashing)?;
        let unguessable = hex::encode(rand::random::<[u8; 32]>());
        let dummy = hash_with(&params, unguessable.as_bytes())?;
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Ok(Self {
            inner: Arc::new(Inner {
                params,
                permits: Arc::new(Semaphore::new(cores)),
                dummy,
                checks: AtomicU64::new(0),
            }),
        })
    }

    /// Returns the PHC string of a password.
    ///
    /// # Errors
    ///
    /// [`PasswordError`] says whether the password or the hashing is at fault.
    pub async fn hash(&self, password: SecretString) -> Result<String, PasswordError> {
        check_rules(&password)?;
        self.run(move |inner| hash_with(&inner.params, password.expose_secret().as_bytes()))
            .await?
    }

    /// Returns whether the password belongs to `hash`; `None` is an account that does not exist,
    /// which costs the same.
    ///
    /// # Errors
    ///
    /// [`PasswordError::Hashing`] if the check could not be made.
    pub async fn verify(
        &self,
        password: SecretString,
        hash: Option<String>,
    ) -> Result<bool, PasswordError> {
        self.run(move |inner| {
            inner.checks.fetch_add(1, Ordering::Relaxed);
            let known = hash.is_some();
            let text = hash.unwrap_or_else(|| inner.dummy.clone());
            let parsed = PasswordHash::new(&text).map_err(|_| PasswordError::Hashing)?;
            let secret = password.expose_secret().as_bytes();
            // A hash is bounded work for any password up to the body limit of a request, but
            // nothing longer than `MAX_PASSWORD` was ever stored.
            let bounded = secret.get(..MAX_PASSWORD).unwrap_or(secret);
            let matches = Argon2::default().verify_password(bounded, &parsed).is_ok();
            Ok(matches && known && secret.len() <= MAX_PASSWORD)
        })
        .await?
    }

    /// Returns how many checks were made since the start.
    #[must_use]
    pub fn checks(&self) -> u64 {
        self.inner.checks.load(Ordering::Relaxed)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let inner = Arc::clone(&self.inner);
        let permit = Arc::clone(&self.inner.permits)
            .acquire_owned()
            .await
            .map_err(|_| PasswordError::Hashing)?;
        tokio::task::spawn_blocking(move || {
            // The work goes on when whoever asked for it has gone, and so does what it costs.
            let _permit = permit;
            work(&inner)
        })
        .await
        .map_err(|_| PasswordError::Hashing)
    }
}

/// Checks the rules for a new password.
///
/// # Errors
///
/// [`PasswordError`] with the rule that it breaks.
pub fn check_rules(password: &SecretString) -> Result<(), PasswordError> {
    let text = password.expose_secret();
    if text.chars().count() < MIN_PASSWORD {
        return Err(PasswordError::TooShort);
    }
    if text.len() > MAX_PASSWORD {
        return Err(PasswordError::TooLong);
    }
    Ok(())
}

fn hash_with(params: &Params, password: &[u8]) -> Result<String, PasswordError> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone())
        .hash_password(password)
        .map(|hash| hash.to_string())
        .map_err(|_| PasswordError::Hashing)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    const CHEAP: Cost = Cost {
        memory_kib: 64,
        passes: 1,
    };

    #[tokio::test]
    async fn a_password_matches_its_own_hash_only() {
        let passwords = Passwords::new(CHEAP).unwrap();
        let hash = passwords
            .hash("correct horse battery".into())
            .await
            .unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=64,t=1,p=1$"));
        let right = passwords.verify("correct horse battery".into(), Some(hash.clone()));
        assert!(right.await.unwrap());
        let wrong = passwords.verify("correct horse batterz".into(), Some(hash));
        assert!(!wrong.await.unwrap());
    }

    #[tokio::test]
    async fn an_unknown_account_costs_one_check_too() {
        let passwords = Passwords::new(CHEAP).unwrap();
        assert!(
            !passwords
                .verify("whatever it may be".into(), None)
                .await
                .unwrap()
        );
        assert_eq!(passwords.checks(), 1);
        assert!(passwords.inner.dummy.contains("m=64,t=1"));
    }

    #[tokio::test]
    async fn a_longer_password_does_not_match_by_its_beginning() {
        let passwords = Passwords::new(CHEAP).unwrap();
        let stored = "a".repeat(MAX_PASSWORD);
        let hash = passwords.hash(stored.clone().into()).await.unwrap();
        let longer = format!("{stored}b");
        assert!(!passwords.verify(longer.into(), Some(hash)).await.unwrap());
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_keeps_its_permit_until_it_is_done() {
        let passwords = Passwords::new(CHEAP).unwrap();
        let bound = passwords.inner.permits.available_permits();
        let running = Arc::new(AtomicUsize::new(0));
        // Work that goes on until its gate is dropped.
        let work = || {
            let (gate, waits) = std::sync::mpsc::channel::<()>();
            let (passwords, running) = (passwords.clone(), Arc::clone(&running));
            let asked = async move {
                let held = move |_: &Inner| {
                    running.fetch_add(1, Ordering::SeqCst);
                    let _ = waits.recv();
                    running.fetch_sub(1, Ordering::SeqCst);
                };
                passwords.run(held).await
            };
            (gate, tokio::spawn(asked))
        };
        let mut gates = Vec::new();
        let mut asked = Vec::new();
        for _ in 0..bound {
            let (gate, asking) = work();
            gates.push(gate);
            asked.push(asking);
        }
        while running.load(Ordering::SeqCst) < bound {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for asking in asked {
            asking.abort();
            assert!(asking.await.unwrap_err().is_cancelled());
        }
        assert_eq!(passwords.inner.permits.available_permits(), 0);
        for _ in 0..30 {
            let (gate, asking) = work();
            tokio::task::yield_now().await;
            asking.abort();
            let _ = asking.await;
            gates.push(gate);
        }
        assert_eq!(running.load(Ordering::SeqCst), bound);
        drop(gates);
        let wrong = passwords.verify("whatever it may be".into(), None);
        assert!(!wrong.await.unwrap());
    }

    #[test]
    fn rules_name_what_is_wrong() {
        assert!(matches!(
            check_rules(&"short".into()),
            Err(PasswordError::TooShort)
        ));
        assert!(matches!(
            check_rules(&"x".repeat(257).into()),
            Err(PasswordError::TooLong)
        ));
        assert!(check_rules(&"twelve chars".into()).is_ok());
    }
}
