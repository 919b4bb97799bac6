//! The `mayfly` command.

use std::process::ExitCode;

/// Issuing allocates small things on one thread and frees them on another, which the C library's
/// allocator does at a tenth of a broker's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mayfly::cli::main()
}
