//! Planner: pods, NAT and filtering on one node.
