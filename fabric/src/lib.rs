//! Planner: how packets get from node to node, one file per mode.
