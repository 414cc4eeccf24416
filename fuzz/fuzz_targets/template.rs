//! A chat template, and a conversation that it renders.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("template"), |input| sterna_fuzz::read(input));
