//! A safetensors file, every tensor of it.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("weights"), |input| sterna_fuzz::read(input));
