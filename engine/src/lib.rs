//! Door: programs that carry packets between nodes in user space.
//!
//! ```text
//! agent ──Unix socket──► engine: a TUN device's packets ⇄ UDP packets of peers, a thread for each way:
//!                          ▲       in clear (`link.rs`) or by WireGuard (`wireguard/link.rs`)
//!                          ▲ descriptors, kept under names
//!                        holder: starts the engine, and starts it again whenever it ends
//! ```
//!
//! Neither is a part of the agent: both go on when it ends, outside of its control group. What an engine is told it has the
//! holder keep in a file in memory, beside the descriptors of its devices and sockets; while it is started again, packets
//! wait in those. So packets notice neither an agent's end nor an engine's; but session keys of WireGuard are with nobody else,
//! and packets that were encrypted to those are lost with the engine that had them, if that is killed. One that gives way to
//! another program has that make sessions of its own first (`program/handover.rs`).
//!
//! Invariants: a packet is taken from the network only from the node that its source is on, known by its address or by its
//! key; nothing that the network sends, or whoever speaks on the socket, makes an engine panic or grow without bound.

mod checksum;
pub mod client;
#[cfg(test)]
mod fuzz;
mod gro;
mod gso;
pub mod holder;
mod inner;
mod link;
mod outbox;
mod passage;
pub mod program;
pub mod rights;
mod socket;
mod table;
mod threads;
mod tun;
pub mod wire;
mod wireguard;
