//! The target `worker` of `actors/src/testkit/fuzz`.

#![no_main]

use troupe_actors::testkit::fuzz::target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target("worker").run(data));
