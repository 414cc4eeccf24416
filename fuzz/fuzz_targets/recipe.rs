//! The YAML of a recipe, resolved and planned on 8 ranks.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("recipe"), |input| sterna_fuzz::read(input));
