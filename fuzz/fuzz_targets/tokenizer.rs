//! tokenizer.json, and a text that it encodes and decodes.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("tokenizer"), |input| sterna_fuzz::read(input));
