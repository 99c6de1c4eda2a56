//! Kernel network state as one ordered value, and the difference of two.
