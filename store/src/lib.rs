//! Door: where shared state lives.
