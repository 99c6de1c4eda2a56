//! Door: programs that carry packets between nodes in user space.
//!
//! ```text
//! agent ──Unix socket──► engine: a TUN device's packets ⇄ UDP packets of peers (`link.rs`, a thread for each way)
//!                          ▲ descriptors, kept under names
//!                        holder: starts the engine, and starts it again whenever it ends
//! ```
//!
//! Neither is a part of the agent: both go on when it ends, outside of its control group. What an engine is told it has the
//! holder keep in a file in memory, beside the descriptors of its devices and sockets; while it is started again, packets
//! wait in those. So packets notice neither an agent's end nor an engine's.
//!
//! Invariants: a packet is taken from the network only from the address of the node that its source is on; nothing that the
//! network sends, or whoever speaks on the socket, makes an engine panic or grow without bound.

mod checksum;
pub mod client;
#[cfg(test)]
mod fuzz;
mod gro;
mod gso;
pub mod holder;
mod inner;
mod link;
pub mod program;
mod rights;
mod socket;
mod table;
mod tun;
pub mod wire;
