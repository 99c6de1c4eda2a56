//! Planner: pools to blocks to addresses.
