//! manifest.json of a checkpoint, its hash made anew; listed, verified, read and exported.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("checkpoint"), |input| sterna_fuzz::read(input));
