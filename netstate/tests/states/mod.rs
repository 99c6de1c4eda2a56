//! Random states: thirty-two bytes choose what is there and how it looks. Shared with the tests of crate kernel.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use tartan_netstate::claims::POD_LINK_GROUP;
use tartan_netstate::nft::{Chain, ChainKind, ElementData, Fields, HookPoint, Nfproto, Selector, Set, Type, rule};
use tartan_netstate::{
    Encap, EspEnd, EspPeer, Fdb, Key, Link, LinkKind, LinkName, Mac, Neigh, Netns, Object, Owner, PodNetns, PublicKey,
    Route, Rule, Scope, Socket, State, Tbf, VxlanParams, WgDevice, WgPeer,
};

/// What there is of everything; all zero is nothing. Small values first, so that a failure shrinks well.
pub type Choice = [u8; 32];

/// Pods' namespaces that are only names.
pub fn pretended_pods() -> Vec<PodNetns> {
    (1..=2).map(|ino| PodNetns { dev: 4, ino, path: format!("/run/netns/{ino}").into() }).collect()
}

struct Maker<'a> {
    state: State,
    bytes: &'a mut dyn Iterator<Item = &'a u8>,
}

impl Maker<'_> {
    fn byte(&mut self) -> u8 {
        self.bytes.next().copied().unwrap_or(0)
    }

    fn put(&mut self, key: Key, object: Object) {
        self.state.insert(key, object, Owner::Node);
    }

    fn link(&mut self, name: &LinkName, kind: LinkKind, look: u8) {
        let group = if matches!(kind, LinkKind::Veth { .. }) { POD_LINK_GROUP } else { 0 };
        let has_mac = matches!(kind, LinkKind::Veth { .. } | LinkKind::Vxlan(_) | LinkKind::Bridge);
        let mac = has_mac.then(|| mac(look % 3));
        let link = Link { kind, mac, mtu: 1400 + u32::from(look % 4), group, up: true };
        self.put(Key::Link { ns: Netns::Host, link: name.clone() }, Object::Link(link.into()));
    }

    fn sysctl(&mut self, ns: &Netns, link: &LinkName, name: &str, value: &str) {
        let key = Key::LinkSysctl { ns: ns.clone(), link: link.clone(), name: name.into() };
        self.put(key, Object::Sysctl(value.into()));
    }

    fn neigh(&mut self, ns: &Netns, link: &LinkName, address: IpAddr, look: u8) {
        let key = Key::Neigh { ns: ns.clone(), link: link.clone(), address };
        self.put(key, Object::Neigh(Neigh { mac: mac(look) }));
    }

    fn address(&mut self, ns: &Netns, link: &LinkName, address: IpNet, scope: Scope) {
        let scope = if address.addr().is_ipv6() { Scope::Global } else { scope };
        let key = Key::Address { ns: ns.clone(), link: link.clone(), address };
        self.put(key, Object::Address(scope));
    }

    fn route(&mut self, ns: &Netns, dst: IpNet, metric: u32, route: Route) {
        let scope = if dst.addr().is_ipv4() && route.via.is_none() && route.dev.is_some() {
            Scope::Link
        } else {
            Scope::Global
        };
        let key = Key::Route { ns: ns.clone(), table: 254, dst, metric };
        self.put(key, Object::Route(Route { scope, ..route }.into()));
    }

    fn pod(&mut self, number: u8, pod: &PodNetns) {
        let (there, look) = (self.byte(), self.byte());
        if there.is_multiple_of(4) {
            return;
        }
        // Another attachment of the same interface in the same namespace has another name on the node.
        let host = name(&format!("ttp{:011x}", number + look % 2 * 16));
        let eth = name(if there % 4 == 3 { "net1" } else { "eth0" });
        let inside = Netns::from(pod.clone());
        self.link(&host, LinkKind::Veth { peer: inside.clone(), peer_name: eth.clone() }, look);
        self.sysctl(&Netns::Host, &host, "ipv4/rp_filter", "1");
        self.sysctl(&Netns::Host, &host, "ipv6/accept_ra", "0");
        let end = Link {
            kind: LinkKind::VethPeer,
            mac: Some(mac(look % 5)),
            mtu: 1400 + u32::from(look % 7),
            group: 0,
            up: true,
        };
        self.put(Key::Link { ns: inside.clone(), link: eth.clone() }, Object::Link(end.into()));
        self.sysctl(&inside, &eth, "ipv6/disable_ipv6", "0");
        for (ns, link, limited) in [(&Netns::Host, &host, look % 4 == 1), (&inside, &eth, look % 8 > 4)] {
            if limited {
                let limit = Tbf::new(1_000_000 * (1 + u64::from(look % 3)), 80_000 * u64::from(there % 5), 1500);
                self.put(Key::Qdisc { ns: ns.clone(), link: link.clone() }, Object::Tbf(limit));
            }
        }
        for (v6, gateway) in [(false, "169.254.1.1"), (true, "fe80::1")] {
            let choice = self.byte();
            if choice.is_multiple_of(3) {
                continue;
            }
            let address = host_net(v6, 1 + number * 8 + choice % 8);
            let gateway: IpAddr = gateway.parse().unwrap();
            self.neigh(&Netns::Host, &host, address.addr(), look % 5);
            self.route(&Netns::Host, address, 1024, Route::on_link(host.clone()));
            self.address(&inside, &eth, address, Scope::Global);
            self.neigh(&inside, &eth, gateway, look % 3);
            self.route(&inside, gateway.into(), 1024, Route::on_link(eth.clone()));
            let mtu = choice.is_multiple_of(2).then_some(1300 + u32::from(choice));
            let mtu_locked = !v6 && choice % 8 == 2;
            self.route(&inside, everything(v6), 1024, Route { mtu, mtu_locked, ..Route::via(gateway, eth.clone()) });
            if choice % 5 == 1 {
                let src = Some(plus(gateway, choice % 3));
                let rule = Rule { src, finds_src: false, iif: None, udp_sport: None, table: 1000 };
                self.put(Key::Rule { ns: inside.clone(), v6, priority: 20_000 }, Object::Rule(rule.into()));
            }
        }
    }

    /// What the node answers for on a link of others, which is always there, and what that link is.
    fn proxied(&mut self) {
        for last in 0..3 {
            if self.byte() % 3 == 1 {
                let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, last);
                self.put(Key::Proxied { link: name("lo"), address }, Object::Proxied);
            }
        }
        if self.byte() % 3 == 1 {
            self.put(Key::PodBridge { link: name("lo") }, Object::PodBridge);
        }
    }

    fn vxlan(&mut self, number: u8, local: IpAddr) {
        let (there, look) = (self.byte(), self.byte());
        if there.is_multiple_of(3) {
            return;
        }
        let device = name(&format!("ttx{}", number + there % 2 * 4));
        let params = VxlanParams {
            vni: 1 + u32::from(look % 2),
            port: 8472 + u16::from(number),
            local: plus(local, look % 3),
            learning: look % 7 == 6,
            gbp: look % 5 == 4,
        };
        self.link(&device, LinkKind::Vxlan(params), look);
        self.sysctl(&Netns::Host, &device, "ipv4/rp_filter", "2");
        for peer in 0..3 {
            let choice = self.byte();
            if choice.is_multiple_of(2) {
                continue;
            }
            let fdb = Key::Fdb { link: device.clone(), mac: mac(10 + peer) };
            self.put(fdb, Object::Fdb(Fdb { dst: plus(local, 10 + choice % 4) }));
            for v6 in [false, true] {
                let vtep = host_net(v6, 100 + peer).addr();
                self.neigh(&Netns::Host, &device, vtep, 10 + choice % 4);
                self.route(
                    &Netns::Host,
                    block(v6, peer),
                    1024,
                    Route { onlink: true, ..Route::via(vtep, device.clone()) },
                );
            }
        }
    }

    /// One tunnel, with routes that may be another device's in another state.
    fn tunnel(&mut self, number: u8, kind: impl Fn(u8) -> LinkKind, hops: impl Fn(u8) -> Vec<(bool, Route)>) {
        let (there, look) = (self.byte(), self.byte());
        if there.is_multiple_of(3) {
            return;
        }
        let device = name(&format!("ttx{}", 8 + number + there % 2 * 4));
        self.link(&device, kind(look % 3), look);
        self.sysctl(&Netns::Host, &device, "ipv4/rp_filter", "2");
        for peer in 0..3 {
            let choice = self.byte();
            for (v6, hop) in hops(choice % 4).into_iter().filter(|_| !choice.is_multiple_of(3)) {
                self.route(&Netns::Host, block(v6, peer), 1024, Route { dev: Some(device.clone()), ..hop });
            }
        }
    }

    fn tunnels(&mut self) {
        let v4 = |last: u8| Ipv4Addr::new(192, 0, 2, last);
        let hop = |via: IpAddr| Route { onlink: true, ..Route::via(via, name("lo")) };
        self.tunnel(0, |look| LinkKind::Ipip { local: v4(1 + look) }, |peer| vec![(false, hop(v4(10 + peer).into()))]);
        let compatible = |peer| v4(10 + peer).to_ipv6_compatible();
        let sit = |look| LinkKind::Sit { local: v4(1 + look), on: (look == 1).then(|| name("lo")) };
        self.tunnel(1, sit, |peer| vec![(true, hop(compatible(peer).into()))]);
        let (src, dst) = ("2001:db8::1".parse().unwrap(), |peer| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, peer));
        let carried = |peer| Some(Encap { src, dst: dst(10 + u16::from(peer)) });
        let both = |peer| [false, true].map(|v6| (v6, Route { encap: carried(peer), ..Route::on_link(name("lo")) }));
        self.tunnel(2, |_| LinkKind::Ip6Tnl, |peer| both(peer).into());
    }

    /// A device of an engine; its socket and its remotes, which no kernel has, only where they are asked for.
    fn tun(&mut self, with_engine: bool) {
        let (there, look) = (self.byte(), self.byte());
        if there.is_multiple_of(3) {
            return;
        }
        let device = name(&format!("ttx{}", 16 + there % 2));
        self.link(&device, LinkKind::Tun { label: format!("udp/{}", look % 2).into() }, look);
        self.sysctl(&Netns::Host, &device, "ipv4/rp_filter", "2");
        if with_engine {
            let socket = Socket {
                source: ["192.0.2.1", "2001:db8::1"][usize::from(look % 2)].parse().unwrap(),
                port: 8285 + u16::from(look % 3),
                esp: false,
            };
            self.put(Key::Socket { link: device.clone() }, Object::Socket(socket));
        }
        for peer in 0..3 {
            let choice = self.byte();
            for v6 in [false, true] {
                if with_engine && choice % 5 > 1 {
                    let at = plus("192.0.2.1".parse().unwrap(), choice % 4);
                    self.put(Key::Remote { link: device.clone(), dst: block(v6, 40 + peer) }, Object::Remote(at));
                }
                if !choice.is_multiple_of(3) {
                    self.route(&Netns::Host, block(v6, 40 + peer), 1024, Route::on_link(device.clone()));
                }
            }
        }
    }

    /// A WireGuard device by one of `keys`, the public halves of key pairs that are there, and peers that share and swap
    /// ranges.
    fn wireguard(&mut self, keys: &[PublicKey]) {
        let (there, look) = (self.byte(), self.byte());
        if there.is_multiple_of(3) {
            return;
        }
        let device = name(&format!("ttx{}", 24 + there % 2));
        self.link(&device, LinkKind::Wireguard { label: format!("wireguard/{}", look % 2).into() }, look);
        self.sysctl(&Netns::Host, &device, "ipv4/rp_filter", "2");
        let public_key = keys[usize::from(look) % keys.len()];
        let listen_port = 51820 + u16::from(look % 3);
        self.put(Key::WgDevice { link: device.clone() }, Object::WgDevice(WgDevice { listen_port, public_key }));
        // From the last on: what two want is the first one's.
        let mut ranges: BTreeMap<IpNet, u8> = BTreeMap::new();
        let choices = [self.byte(), self.byte(), self.byte()];
        for (peer, choice) in (0..3).zip(choices).filter(|(_, choice)| !choice.is_multiple_of(3)).rev() {
            // The next one's in another state.
            ranges.extend([false, true].map(|v6| (block(v6, 50 + peer + choice % 2), peer)));
        }
        for (peer, choice) in (0..3).zip(choices).filter(|(_, choice)| !choice.is_multiple_of(3)) {
            let public_key = PublicKey([10 + peer; 32]);
            let at: IpAddr = if choice % 5 == 1 { "2001:db8::1" } else { "192.0.2.1" }.parse().unwrap();
            let endpoint = (plus(at, choice % 4), 51820 + u16::from(choice % 3)).into();
            let keepalive = u16::from(choice % 2) * 25;
            let key = Key::WgPeer { link: device.clone(), public_key };
            let own: Vec<IpNet> = ranges.iter().filter(|(_, of)| **of == peer).map(|(range, _)| *range).collect();
            self.put(key, Object::WgPeer(WgPeer::of(endpoint, keepalive, own.iter().copied()).into()));
            for range in own {
                self.route(&Netns::Host, range, 1024, Route::on_link(device.clone()));
            }
        }
    }

    /// An IPsec device by one of `keys`, as for WireGuard.
    fn ipsec(&mut self, keys: &[PublicKey]) {
        let (there, look) = (self.byte(), self.byte());
        if there.is_multiple_of(3) {
            return;
        }
        let device = name(&format!("ttx{}", 26 + there % 2));
        self.link(&device, LinkKind::Xfrm { label: format!("ipsec/{}", look % 2).into() }, look);
        let v6 = look % 5 == 4;
        let base = |v6: bool, number| plus(if v6 { "2001:db8::10" } else { "192.0.2.10" }.parse().unwrap(), number);
        let port = (there % 2 == 1).then_some(4500);
        let own = EspEnd { address: base(v6, look % 3), public_key: keys[usize::from(look) % keys.len()], port };
        self.put(Key::EspDevice { link: device.clone() }, Object::EspDevice(own));
        let mut ranges: BTreeMap<IpNet, u8> = BTreeMap::new();
        let choices = [self.byte(), self.byte(), self.byte()];
        for (peer, choice) in (0..3).zip(choices).filter(|(_, choice)| !choice.is_multiple_of(3)).rev() {
            ranges.extend([false, true].map(|v6| (block(v6, 60 + peer + choice % 2), peer)));
        }
        for (peer, choice) in (0..3).zip(choices).filter(|(_, choice)| !choice.is_multiple_of(3)) {
            let key = Key::EspPeer { link: device.clone(), public_key: PublicKey([20 + peer; 32]) };
            let own_ranges = ranges.iter().filter(|(_, of)| **of == peer).map(|(range, _)| *range);
            // One without ranges is none to the kernel.
            let own_ranges: Vec<IpNet> = own_ranges.chain([block(v6, 70 + peer)]).collect();
            let it = EspPeer::of(base(v6, 100 + choice % 4), own, own_ranges);
            self.put(key, Object::EspPeer(it.into()));
        }
    }

    fn nft(&mut self) {
        let (there, elements) = (self.byte(), self.byte());
        if there.is_multiple_of(3) {
            return;
        }
        self.put(Key::NftTable, Object::NftTable);
        let set = if there % 5 == 4 { Type::Ipv6Addr } else { Type::Ipv4Addr };
        self.put(Key::NftSet { set: "pods".into() }, Object::NftSet(Set::exact(&[set]).into()));
        for number in (0..8).filter(|bit| elements & (1 << bit) != 0) {
            let key = Fields::new().addr(host_net(there % 5 == 4, 1 + number).addr()).key();
            self.put(Key::NftElement { set: "pods".into(), key }, Object::NftElement(ElementData::default()));
        }
        let nfproto = if there % 5 == 4 { Nfproto::Ipv6 } else { Nfproto::Ipv4 };
        let mut rules = vec![rule("out").within(nfproto, &[Selector::Saddr], "pods").masquerade()];
        if there % 2 == 1 {
            rules.push(rule("in").counter().returns());
        }
        let chain = Chain::base(ChainKind::Nat, HookPoint::Postrouting, 100 + i32::from(there % 2), rules);
        self.put(Key::NftChain { chain: "postrouting".into() }, Object::NftChain(chain.into()));
    }

    fn rest(&mut self) {
        let (bridge, addresses) = (self.byte(), self.byte());
        let fabric = addresses % 3;
        if fabric > 0 {
            for v6 in [false, true] {
                self.address(&Netns::Host, &name("lo"), host_net(v6, 200 + fabric), Scope::Link);
            }
        }
        if bridge % 2 == 1 {
            let link = name("ttxbr");
            self.link(&link, LinkKind::Bridge, bridge);
            for v6 in [false, true] {
                let net = if v6 { "fd99::1/64" } else { "10.99.0.1/24" };
                self.address(&Netns::Host, &link, net.parse().unwrap(), Scope::Global);
                let src = (fabric > 0).then(|| host_net(v6, 200 + fabric).addr());
                self.route(&Netns::Host, block(v6, 20), 10, Route { src, ..Route::on_link(link.clone()) });
                let moves = if bridge % 3 == 1 { Route::unreachable() } else { Route::on_link(link.clone()) };
                self.route(&Netns::Host, block(v6, 21), 10, moves);
            }
        }
        for v6 in [false, true] {
            let (rule, dead) = (self.byte(), self.byte());
            if rule % 2 == 1 {
                let udp_sport = (rule % 3 > 0).then_some((51820, 51820 + u16::from(rule % 3)));
                let iif = rule.is_multiple_of(5).then(|| name("lo"));
                // Of IPv4, 0.0.0.0 too.
                let src = (rule % 4 > 1).then(|| if v6 { host_net(v6, rule).addr() } else { [0, 0, 0, 0].into() });
                let finds_src = src.is_some() && v6;
                let rule = Rule { src, finds_src, iif, udp_sport, table: 1000 + u32::from(rule % 7) };
                self.put(Key::Rule { ns: Netns::Host, v6, priority: 5000 }, Object::Rule(rule.into()));
            }
            if dead % 2 == 1 {
                self.route(&Netns::Host, block(v6, 30 + dead % 2), 4_294_967_294, Route::unreachable());
            }
        }
        let forward = self.byte();
        let sysctl = Key::Sysctl { ns: Netns::Host, name: "ipv4/ip_forward".into() };
        self.put(sysctl, Object::Sysctl(if forward % 2 == 1 { "1" } else { "0" }.into()));
    }
}

/// The state that the bytes choose.
pub fn state(pods: &[PodNetns], choice: &Choice) -> State {
    let mut maker = Maker { state: State::new(), bytes: &mut choice.iter() };
    for (number, pod) in (0..).zip(pods) {
        maker.pod(number, pod);
    }
    maker.rest();
    maker.vxlan(0, "192.0.2.1".parse().unwrap());
    maker.vxlan(1, "2001:db8::1".parse().unwrap());
    maker.nft();
    let mut maker = Maker { state: maker.state, bytes: &mut choice.iter().rev() };
    maker.tun(false);
    maker.proxied();
    maker.state
}

/// The same, with tunnels that not every kernel can make; the same bytes choose them, from the end.
pub fn with_tunnels(pods: &[PodNetns], choice: &Choice) -> State {
    let mut maker = Maker { state: state(pods, choice), bytes: &mut choice.iter().rev() };
    maker.tunnels();
    maker.state
}

/// The same, with WireGuard by one of these keys.
pub fn with_wireguard(pods: &[PodNetns], choice: &Choice, keys: &[PublicKey]) -> State {
    let mut maker = Maker { state: with_tunnels(pods, choice), bytes: &mut choice.iter().rev().skip(7) };
    maker.wireguard(keys);
    maker.state
}

/// The same, with IPsec by one of these keys.
#[allow(dead_code, reason = "not for every kernel")]
pub fn with_ipsec(pods: &[PodNetns], choice: &Choice, keys: &[PublicKey]) -> State {
    let mut maker = Maker { state: state(pods, choice), bytes: &mut choice.iter().rev().skip(3) };
    maker.ipsec(keys);
    maker.state
}

/// The same, with what engines hold.
#[allow(dead_code, reason = "no kernel holds it")]
pub fn with_engines(pods: &[PodNetns], choice: &Choice) -> State {
    let keys = [PublicKey([1; 32]), PublicKey([2; 32])];
    let mut maker = Maker { state: with_wireguard(pods, choice, &keys), bytes: &mut choice.iter().rev().skip(3) };
    maker.ipsec(&keys);
    let mut maker = Maker { state: maker.state, bytes: &mut choice.iter().rev() };
    maker.tun(true);
    maker.state
}

pub fn name(text: &str) -> LinkName {
    LinkName::new(text).unwrap()
}

pub fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn host_net(v6: bool, number: u8) -> IpNet {
    let address = if v6 { format!("fd00::{number:x}") } else { format!("10.1.0.{number}") };
    address.parse::<IpAddr>().unwrap().into()
}

fn block(v6: bool, number: u8) -> IpNet {
    if v6 { format!("fd02:0:0:{number:x}::/64") } else { format!("10.2.{number}.0/24") }.parse().unwrap()
}

fn everything(v6: bool) -> IpNet {
    if v6 { "::/0" } else { "0.0.0.0/0" }.parse().unwrap()
}

fn plus(address: IpAddr, number: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) + u32::from(number)).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) + u128::from(number)).into()),
    }
}
