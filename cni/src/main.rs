//! The tartan-cni binary.

fn main() {}
