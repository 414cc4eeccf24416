//! config.json of a model, and the parameters that it describes.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("config"), |input| sterna_fuzz::read(input));
