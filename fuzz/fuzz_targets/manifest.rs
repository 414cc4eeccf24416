//! manifest.json of a cache entry; a damaged one is rebuilt.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("manifest"), |input| sterna_fuzz::read(input));
