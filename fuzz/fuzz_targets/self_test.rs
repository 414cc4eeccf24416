//! What no reader may do, behind bytes that only coverage finds: `cargo xtask fuzz --self-test`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("self_test"), |input| sterna_fuzz::read(input));
