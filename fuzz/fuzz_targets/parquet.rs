//! A Parquet file, and the chats in it.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("parquet"), |input| sterna_fuzz::read(input));
