//! World: what a node knows, as one persistent value.
