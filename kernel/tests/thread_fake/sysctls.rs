//! Sysctls: of the node, and of others' links, which may be gone at any time.

use super::*;

#[test]
fn a_sysctl_is_changed_from_the_value_found() {
    let fake = Fake::new();
    let key = Key::Sysctl { ns: Netns::Host, name: "ipv4/ip_forward".into() };
    fake.put(key.clone(), Object::Sysctl("0".into()));
    let node = Node::on(fake.clone());
    let mut wanted = State::new();
    wanted.insert(key.clone(), Object::Sysctl("1".into()), Owner::Node);
    node.handle.want(1, wanted);
    node.wait("the state", |applied| applied.generation == 1);
    let [old, new] = ["0", "1"].map(|value| Object::Sysctl(value.into()));
    let changes = fake.changes();
    let first: Vec<Op<'_>> = changes[0].steps.iter().map(Step::op).collect();
    assert_eq!(first, [Op::Replace { key: &key, old: &old, new: &new }]);
}

#[test]
fn what_was_wanted_of_anothers_link_that_is_gone_is_no_failure() {
    let of_uplink = Key::UplinkSysctl { link: name("eth1"), name: "ipv6/accept_ra".into() };
    let of_node = Key::Sysctl { ns: Netns::Host, name: "ipv6/conf/all/forwarding".into() };
    for (key, errno, failures) in
        [(&of_uplink, Errno::ENOENT, 0), (&of_uplink, Errno::EACCES, 1), (&of_node, Errno::ENOENT, 1)]
    {
        let fake = Fake::new();
        fake.fail(key.clone(), Some(errno));
        let node = Node::on(fake);
        node.handle.want(
            1,
            State::from_iter([(key.clone(), Entry { object: Object::Sysctl("2".into()), owner: Owner::Node })]),
        );
        let applied = node.wait("the state", |applied| applied.generation == 1 || !applied.failures.is_empty());
        assert_eq!(applied.failures.len(), failures, "{key}: {errno}");
    }
}
