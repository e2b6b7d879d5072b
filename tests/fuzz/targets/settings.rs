//! The target `settings` of `src/fuzz.rs`.

#![no_main]

use troupe::fuzz::target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target("settings").run(data));
