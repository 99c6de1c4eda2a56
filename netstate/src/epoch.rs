//! The number of what is in force of policy. It changes with every transaction in which any of that does.
//!
//! A packet is judged by several lookups, and the kernel may go over from one state to the next between any two of them; and
//! while it does, kernels before 6.17 may find neither what an element was nor what it is. So a rule reads the number first,
//! and last of all looks whether it is still in force: else what it has found is worth nothing, and it is for another rule to
//! judge.
//!
//! In the kernel the map has two elements, from 0 to the number and from the number to 0. Which number that is does nobody
//! need to know but the kernel door, so that there is one object, the same whatever the number.
//!
//! Invariant: a transaction that changes anything of policy has a step of this object.

use crate::claims::NFT_EPOCH_MAP;
use crate::nft::Fields;
use crate::{Key, Object, policy};

/// The object that stands for both elements.
pub fn element() -> (Key, Object) {
    let key = Key::NftElement { set: NFT_EPOCH_MAP.into(), key: Fields::new().number(0).key() };
    (key, policy::leads_to(0))
}

/// Whether it is this object's.
pub fn is_key(key: &Key) -> bool {
    matches!(key, Key::NftElement { set, key } if **set == *NFT_EPOCH_MAP && *key.bytes == [0; 4])
}
