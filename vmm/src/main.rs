//! The `understudy` program: parse, run, exit status.
fn main() {}
