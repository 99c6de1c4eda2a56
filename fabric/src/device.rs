//! A device that wraps packets, as every fabric that encapsulates wants it.

use tartan_model::Family;
use tartan_netstate::claims::DEVICE_ADDRESS;
use tartan_netstate::{Key, Link, LinkName, Netns, Object, Owner, Scope, State};

use crate::Instance;

/// The device and what makes it take in what it should.
pub(crate) fn put(state: &mut State, device: LinkName, link: Link, at: &Instance) {
    let owner = Owner::Fabric(at.to_string().into());
    state.insert(Key::Link { ns: Netns::Host, link: device.clone() }, Object::Link(link.into()), owner.clone());
    // Loose, which takes an address on the device: while a fabric changes, a peer's packets come in here though our
    // own route to it leads elsewhere.
    let address = Family::host_net(DEVICE_ADDRESS.into());
    let key = Key::Address { ns: Netns::Host, link: device.clone(), address };
    state.insert(key, Object::Address(Scope::Link), owner.clone());
    for (name, value) in [("ipv4/rp_filter", "2"), ("ipv6/accept_ra", "0")] {
        let key = Key::LinkSysctl { ns: Netns::Host, link: device.clone(), name: name.into() };
        state.insert(key, Object::Sysctl(value.into()), owner.clone());
    }
}
