//! How many threads a daemon works on.

use std::{io, num::NonZeroUsize, thread::available_parallelism};

use tokio::runtime::{Builder, Runtime};

/// Starts the runtime of a daemon on some worker threads; without a number, one for each processor
/// that the process may use.
///
/// With one, all work is done by the thread that calls `block_on`: what passes between tasks then
/// passes between no threads (docs/adr/0006-threads.md).
///
/// # Errors
///
/// When the system gives no thread, timer or poll.
pub fn start_runtime(threads: Option<NonZeroUsize>) -> io::Result<Runtime> {
    let threads = threads.or_else(|| available_parallelism().ok());
    let mut builder = match threads.map_or(1, NonZeroUsize::get) {
        1 => Builder::new_current_thread(),
        more => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(more);
            builder
        }
    };
    builder.enable_all().build()
}

#[cfg(test)]
mod tests {
    use tokio::runtime::RuntimeFlavor;

    use super::*;

    #[test]
    fn one_thread_works_alone_and_more_share_the_work() {
        let started = |threads: usize| {
            let runtime = start_runtime(NonZeroUsize::new(threads)).expect("a runtime");
            let flavor = runtime.handle().runtime_flavor();
            (flavor, runtime.metrics().num_workers())
        };
        assert_eq!(started(1), (RuntimeFlavor::CurrentThread, 1));
        assert_eq!(started(3), (RuntimeFlavor::MultiThread, 3));
        let of_machine = available_parallelism().expect("a number").get();
        assert_eq!(started(0).1, of_machine);
    }
}
