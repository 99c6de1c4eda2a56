//! Random schedules of two nodes, one store and small pools: whatever is delayed, lost or refused, an address has one
//! pod, lies in a range of its node, and rests before it is given out again; and in the end nothing has leaked.

mod sim;

use proptest::prelude::*;
use sim::{Cluster, Op};

fn any_op() -> impl Strategy<Value = Op> {
    let node = 0..2_usize;
    prop_oneof![
        6 => node.clone().prop_map(Op::Attach),
        1 => (node.clone(), 0..64_u8).prop_map(|(node, host)| Op::AttachAs(node, host)),
        5 => (node.clone(), any::<prop::sample::Index>()).prop_map(|(node, which)| Op::Detach(node, which)),
        1 => node.clone().prop_map(Op::DetachAll),
        5 => (node.clone(), 1..6_usize).prop_map(|(node, events)| Op::Hear(node, events)),
        5 => node.clone().prop_map(Op::Plan),
        5 => node.clone().prop_map(Op::Write),
        3 => (1..40_u64).prop_map(Op::Wait),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, lose_writes)| Op::Crash(node, lose_writes)),
        2 => node.prop_map(Op::Settle),
        1 => any::<bool>().prop_map(Op::Enable),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_address_has_one_pod_and_nothing_leaks(
        // Length of the pool's prefix and of its blocks': from one block for two nodes to more than they need.
        (pool, block) in prop_oneof![Just((26, 28)), Just((27, 28)), Just((28, 28)), Just((28, 30)), Just((27, 27))],
        ops in prop::collection::vec(any_op(), 1..160),
    ) {
        let mut cluster = Cluster::new(pool, block);
        for op in &ops {
            cluster.step(op);
            cluster.check();
        }
        cluster.drain();
    }
}

#[test]
fn a_full_pool_is_shared_by_giving_parts_away() {
    let mut cluster = Cluster::new(27, 27);
    cluster.settle();
    let owner = usize::from(cluster.free(0) == 0);
    let needy = 1 - owner;
    assert!(cluster.free(owner) > 16, "one node has the only block");
    for _ in 0..6 {
        cluster.step(&Op::Attach(needy));
        cluster.settle();
    }
    assert!(cluster.pods(needy) > 0, "the other one has got a part of it:\n{cluster}");
    cluster.check();
    cluster.drain();
}

#[test]
fn debug_case() {
    let mut c = Cluster::new(28, 30);
    c.step(&Op::Settle(1));
    for _ in 0..3 { c.step(&Op::Attach(1)); }
    c.step(&Op::Plan(1));
    c.step(&Op::DetachAll(1));
    c.settle();
    for _ in 0..3 { c.step(&Op::Wait(60)); c.settle(); c.debug(1); }
}
