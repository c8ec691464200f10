//! How many files and sockets the process may have open.

/// Raises the process's limit of open files as far as the system lets it, as programs written in Go
/// do by themselves: each relayed connection takes one, and shells and service managers start
/// programs with 1,024. That it does not work is no reason not to run.
pub fn raise_descriptor_limit() {
    #[cfg(unix)]
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_limit_becomes_what_the_system_allows() {
        let (_, hard) = rlimit::Resource::NOFILE.get().expect("a limit");
        rlimit::Resource::NOFILE.set(64, hard).expect("lowered");
        raise_descriptor_limit();
        assert_eq!(
            rlimit::Resource::NOFILE.get().expect("a limit"),
            (hard, hard)
        );
    }
}
