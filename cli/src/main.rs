//! The tartan binary.

fn main() {}
