//! model.safetensors.index.json, beside two files.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("index"), |input| sterna_fuzz::read(input));
