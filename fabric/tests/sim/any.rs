//! What a cluster may be and what may happen to it, at random.

use std::time::Duration;

use proptest::prelude::*;
use tartan_model::{Across, Config, Encapsulation, Encryption, FabricMode, Family, IpsecConfig, WireguardConfig};

use super::Delays;
use crate::{config, encrypts};

/// What happens to a cluster.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Configure(Config),
    /// What the pool of nodes with odd numbers, or of the others, says of its addresses.
    Pool(bool, Option<Encapsulation>),
    KillAgent(u8),
    StartAgent(u8),
    PowerOff(u8),
    PowerOn(u8),
    Join(u8),
    Leave(u8),
    /// A new address; the old one stays for a while.
    Readdress(u8),
    /// Of one node, for so many seconds, fewer than a lease.
    CutOff(u8, u64),
    /// The node's clock is set so many seconds ahead of the right time.
    Clock(u8, i64),
    /// There is to be another secret, or none; this node has it already, and others will.
    Secret(u8, Option<u32>),
    /// Of all nodes.
    StoreAway(u64),
    /// By hand, and everything else of ours with them.
    DeleteDevices(u8),
    /// The node's self-test says of ways that they are blocked or not, by the bits of a number. None of them is.
    Tested(u8, u64),
}

pub(crate) const NODES: u8 = 4;
pub(crate) const BOTH: [Family; 2] = Family::ALL;

/// Which families a machine's underlay and its pods have, and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub underlay: &'static [Family],
    pub pods: &'static [Family],
    pub site: u8,
}

pub(crate) fn any_config() -> impl Strategy<Value = Config> {
    use FabricMode::{HostGw, Ipip, Ipsec, Udp, Vxlan, Wireguard};
    let modes = [HostGw, Vxlan, Ipip, Udp, Wireguard, Ipsec];
    let fabric = prop::sample::select(modes.to_vec());
    let underlay = prop_oneof![3 => Just(None), 1 => Just(Some(Family::V4)), 1 => Just(Some(Family::V6))];
    let mtu = prop_oneof![3 => Just(None), 1 => Just(Some(1400))];
    let fallback = prop_oneof![Just(None), Just(Some(FabricMode::Udp))];
    let encryption = prop_oneof![
        2 => Just(Encryption::None),
        1 => Just(Encryption::Wireguard),
        1 => Just(Encryption::Ipsec),
    ];
    let rotate_after = prop_oneof![2 => Just(None), 1 => Just(Some(Duration::from_secs(900)))];
    let encrypted = (encryption, (0..5u32, rotate_after), any::<bool>());
    let mtu_and_fallback = (mtu, fallback);
    (fabric, 1..3u32, prop_oneof![Just(8472u16), Just(4789)], any::<bool>(), underlay, mtu_and_fallback, encrypted)
        .prop_map(|(fabric, vni, port, direct, underlay, (underlay_mtu, fallback), (encryption, keys, strict))| {
            let config = Config { underlay, underlay_mtu, fallback, encryption, ..config(fabric, vni, port, direct) };
            let wireguard = WireguardConfig { rotation: keys.0, rotate_after: keys.1, ..config.wireguard };
            // No store takes strictness without encryption.
            let rotate_after = keys.1.unwrap_or(config.ipsec.rotate_after);
            let port = (keys.0 > 2).then_some(4500);
            let ipsec = IpsecConfig { port, rotation: keys.0, rotate_after };
            Config { strict_encryption: strict && encrypts(&config), wireguard, ipsec, ..config }
        })
}

fn any_encapsulation() -> impl Strategy<Value = Option<Encapsulation>> {
    let across = || prop_oneof![Just(Across::Nodes), Just(Across::Subnets)];
    prop_oneof![
        Just(None),
        Just(Some(Encapsulation::Never)),
        across().prop_map(|across| Some(Encapsulation::Ipip(across))),
        across().prop_map(|across| Some(Encapsulation::Vxlan(across))),
    ]
}

pub(crate) fn any_event() -> impl Strategy<Value = Event> {
    let node = || 0..NODES;
    prop_oneof![
        10 => any_config().prop_map(Event::Configure),
        4 => (any::<bool>(), any_encapsulation()).prop_map(|(odd, says)| Event::Pool(odd, says)),
        2 => node().prop_map(Event::KillAgent),
        3 => node().prop_map(Event::StartAgent),
        1 => node().prop_map(Event::PowerOff),
        2 => node().prop_map(Event::PowerOn),
        2 => node().prop_map(Event::Join),
        1 => node().prop_map(Event::Leave),
        1 => node().prop_map(Event::Readdress),
        1 => (node(), 1..12u64).prop_map(|(node, secs)| Event::CutOff(node, secs)),
        1 => (1..90u64).prop_map(Event::StoreAway),
        2 => (node(), prop_oneof![Just(None), (1..4u32).prop_map(Some)]).prop_map(|(node, id)| Event::Secret(node, id)),
        2 => (node(), -2_000..2_000i64).prop_map(|(node, ahead)| Event::Clock(node, ahead)),
        1 => node().prop_map(Event::DeleteDevices),
        4 => (node(), any::<u64>()).prop_map(|(node, bits)| Event::Tested(node, bits)),
    ]
}

pub(crate) fn any_shape() -> impl Strategy<Value = Shape> {
    let families = || prop_oneof![1 => Just(&BOTH[..1]), 1 => Just(&BOTH[1..]), 3 => Just(&BOTH[..])];
    (families(), families(), prop_oneof![2 => Just(0u8), 1 => Just(1)]).prop_map(|(underlay, pods, site)| Shape {
        underlay,
        pods,
        site,
    })
}

pub(crate) fn any_delays() -> impl Strategy<Value = Delays> {
    let word = prop_oneof![Just(100u64), Just(3_000), Just(10_000)];
    (word, prop_oneof![Just(100u64), Just(2_000)], prop_oneof![Just(100u64), Just(1_500)])
        .prop_map(|(word, write, kernel)| Delays { word, write, kernel })
}
