//! The `entropic` program.
fn main() {}
