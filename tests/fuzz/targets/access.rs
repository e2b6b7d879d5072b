//! The target `access` of `actors/src/testkit/fuzz`.

#![no_main]

use troupe_actors::testkit::fuzz::target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target("access").run(data));
