//! `troupe`: the node with the jobs that every node has.

use std::process::ExitCode;

use troupe::job::Jobs;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    troupe::main(Jobs::default())
}
