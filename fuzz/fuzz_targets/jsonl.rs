//! A JSON Lines file, or a JSON list, and the chats in it.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("jsonl"), |input| sterna_fuzz::read(input));
