//! The target `config` of `src/fuzz.rs`.

#![no_main]

use troupe::fuzz::target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target("config").run(data));
