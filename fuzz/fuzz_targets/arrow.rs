//! An Arrow stream or file, and the chats in it.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("arrow"), |input| sterna_fuzz::read(input));
