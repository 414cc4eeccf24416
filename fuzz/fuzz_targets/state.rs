//! state.json of a folder written by save_to_disk.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("state"), |input| sterna_fuzz::read(input));
