//! A hostfile; an environment file and a selection of hosts, where there is a line `---`.
#![no_main]

libfuzzer_sys::fuzz_target!(init: sterna_fuzz::start("hostfile"), |input| sterna_fuzz::read(input));
