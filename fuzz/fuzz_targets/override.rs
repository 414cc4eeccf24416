//! `--set KEY=VALUE`, applied to a recipe.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("override"), |input| sterna_fuzz::read(input));
