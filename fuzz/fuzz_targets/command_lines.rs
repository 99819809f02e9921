#![no_main]
#![allow(dead_code, reason = "only the command's parsing is wanted")]

#[path = "../../src/main.rs"]
mod command;

libfuzzer_sys::fuzz_target!(|data: &[u8]| command::command_lines(data));
