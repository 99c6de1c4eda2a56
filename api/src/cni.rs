//! CNI: network configuration, results and errors (spec 1.1.0 and every version before it).
