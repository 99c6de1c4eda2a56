//! Which ranges this node holds, and which claims it wants to write.
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use tartan_model::{Condition, Object, ObjectId, PerFamily, Revision, World};

use crate::held::{self, Concerns};
use crate::usage;

/// Last inputs and outputs.
#[derive(Debug, Default)]
pub struct Memo {
    concerns: Concerns,
    out: Out,
}

/// What this node holds, and what it wants to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Out {
    /// Ranges whose pods are here, sorted.
    pub blocks: Vec<IpNet>,
    /// The node's own address in each family, in one of the blocks; no pod gets it.
    pub fabric_addresses: PerFamily<IpAddr>,
    /// What is wrong.
    pub conditions: Vec<Condition>,
    /// What to write, each by compare-and-set.
    pub claims: Vec<Claim>,
    /// Look again then, if nothing happens before.
    pub wake_at: Option<Instant>,
}

/// One compare-and-set on an IPBlock.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    pub id: ObjectId,
    /// None: delete.
    pub object: Option<Object>,
    /// The state it was decided on; none: there is no such object.
    pub expect: Option<Revision>,
}

/// The plan for this world.
pub fn plan<'a>(memo: &'a mut Memo, world: &World, _now: Instant) -> &'a Out {
    memo.concerns.update(world);
    let held = held::held(world, &memo.concerns);
    memo.out = Out {
        blocks: held.iter().map(|held| held.cidr).collect(),
        fabric_addresses: usage::fabric_addresses(world, &held),
        ..Out::default()
    };
    &memo.out
}
