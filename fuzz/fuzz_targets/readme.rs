//! The head of a data set's README, which says which file is which split.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("readme"), |input| sterna_fuzz::read(input));
