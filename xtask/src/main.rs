//! test, tidy, gen, demo, bench.

fn main() {}
