//! How much memory glibc's allocator keeps that nobody uses any more.
#![allow(
    unsafe_code,
    reason = "glibc has no other interface for it, and 29 of 106 MiB with 300 nodes were free memory (docs/benchmarks.md)"
)]

/// Makes the allocator of glibc give memory back to the kernel once it is free; elsewhere it does nothing.
///
/// Left alone it has eight heaps for each processor, which share nothing, and after the first large block that was freed it
/// keeps up to 64 MiB free at the end of each: what a fleet takes that connects all at once, a master would keep for good
/// (docs/benchmarks.md). For the beginning of `main`, before there are other threads; what the environment says of the same
/// (`MALLOC_ARENA_MAX`, `MALLOC_TRIM_THRESHOLD_`) wins.
pub fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (variable, option, value) in [
        ("MALLOC_ARENA_MAX", libc::M_ARENA_MAX, 2),
        (
            "MALLOC_TRIM_THRESHOLD_",
            libc::M_TRIM_THRESHOLD,
            TRIM_THRESHOLD,
        ),
    ] {
        if std::env::var_os(variable).is_none() {
            // SAFETY: takes two numbers; there is no other thread yet that allocates.
            unsafe { libc::mallopt(option, value) };
        }
    }
}

/// Eight times what glibc begins with.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const TRIM_THRESHOLD: i32 = 1 << 20;
