//! What the system asks a daemon to do.

use std::io;

/// A wish of the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End in an orderly way (SIGTERM, SIGINT, Ctrl-C).
    Terminate,
    /// Read again what can be read again (SIGHUP).
    Reload,
}

/// Receives signals from its creation on.
#[derive(Debug)]
pub struct Signals {
    #[cfg(unix)]
    streams: [tokio::signal::unix::Signal; 3],
}

impl Signals {
    /// Takes over the process's signals. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn install() -> io::Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self {
                streams: [
                    signal(SignalKind::terminate())?,
                    signal(SignalKind::interrupt())?,
                    signal(SignalKind::hangup())?,
                ],
            })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    /// Waits for the next signal.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a signal is returned or waits for the next call.
    pub async fn next(&mut self) -> Signal {
        #[cfg(unix)]
        {
            let [terminate, interrupt, hangup] = &mut self.streams;
            tokio::select! {
                _ = terminate.recv() => Signal::Terminate,
                _ = interrupt.recv() => Signal::Terminate,
                _ = hangup.recv() => Signal::Reload,
            }
        }
        #[cfg(not(unix))]
        {
            // Without a handler there is nothing to wait for.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
            Signal::Terminate
        }
    }
}
