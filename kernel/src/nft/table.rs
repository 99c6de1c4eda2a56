//! Whose our table is. From Linux 6.9 on a table can belong to a netlink socket: nobody else can change it, `nft flush
//! ruleset` passes over it, and when the socket is closed it stays, for the next one to adopt.
//!
//! Invariant: a table that is nobody's stays nobody's, because the kernel cannot give it away; the next one that is made
//! is ours.

use super::encode::{self, NFTA_TABLE_FLAGS};
use crate::nfnetlink::{Nfnetlink, Reply, attr_u32};

const NFT_TABLE_F_DORMANT: u32 = 1;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFT_TABLE_F_PERSIST: u32 = 4;

/// Belongs to the socket that says so, and outlives it.
pub(super) const OWNED: u32 = NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST;

/// `NFT_TABLE_F_*` of the table that the answer is about.
pub(super) fn flags(reply: &Reply) -> u32 {
    attr_u32(&reply.attrs, NFTA_TABLE_FLAGS).unwrap_or(0)
}

/// What a table that somebody may have made dormant is to have.
pub(super) fn awake(flags: u32) -> u32 {
    flags & !NFT_TABLE_F_DORMANT
}

/// Whether the socket it belonged to is closed.
pub(super) fn is_orphan(flags: u32) -> bool {
    flags & OWNED == NFT_TABLE_F_PERSIST
}

/// Asks for such a table in a transaction that fails all the same: what is found fault with says whether it could be.
pub(super) fn can_be_owned(netlink: &mut Nfnetlink) -> bool {
    let refusals = netlink.transact([&encode::table("tartan-probe", OWNED), &encode::nothing()].into_iter());
    !refusals.iter().any(|refusal| refusal.index != Some(1))
}
