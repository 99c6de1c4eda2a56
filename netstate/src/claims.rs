//! Every number and name that Tartan owns in the kernel, and none anywhere else.
//!
//! What carries one of these marks is ours to change and delete; what does not, we never touch. Changing a value here
//! orphans what an older build left behind, so a value once released stays.

use crate::nft::Groups;

/// `rtm_protocol` of every route and rule we install (free in iproute2's `rt_protos`).
pub const ROUTE_PROTOCOL: u8 = 84;
/// `IFA_PROTO` of every address we add (kernel 5.18 and later keep it).
pub const ADDRESS_PROTOCOL: u8 = 84;
/// `NDA_PROTOCOL` of every neighbour and FDB entry we add.
pub const NEIGH_PROTOCOL: u8 = 84;

/// First letters of the host end of a pod's link.
pub const POD_LINK_PREFIX: &str = "ttp";
/// First letters of a link that carries packets to other nodes.
pub const FABRIC_LINK_PREFIX: &str = "ttx";
/// First letters of those among them that encrypt what they carry.
pub const ENCRYPTED_LINK_PREFIX: &str = "ttxs";
/// First letters of Flannel's devices: one in whose place ours has to be, since the kernel has only one with that VNI and port,
/// goes.
pub const FLANNEL_LINK_PREFIX: &str = "flannel";
/// `IFLA_GROUP` of the host end of every pod link, and of a bridge on which pods of the network before are.
pub const POD_LINK_GROUP: u32 = 0x7474;
/// `IFLA_GROUP` of a link on its way out: one message deletes the whole group.
pub const DYING_LINK_GROUP: u32 = 0x7475;
/// The same of a pod's link: what it brought in its last moment is still a pod's.
pub const DYING_POD_LINK_GROUP: u32 = 0x7476;
/// All groups of links on their way out.
pub const DYING_LINK_GROUPS: [u32; 2] = [DYING_LINK_GROUP, DYING_POD_LINK_GROUP];
/// What filters and counts "our pods" matches on: both of these groups.
pub const POD_LINK_GROUPS: Groups =
    Groups { mask: !(POD_LINK_GROUP ^ DYING_POD_LINK_GROUP), value: POD_LINK_GROUP & DYING_POD_LINK_GROUP };

/// The sysctl by which a node forwards IPv4, and the one for IPv6.
pub const IPV4_FORWARDING: &str = "ipv4/ip_forward";
pub const IPV6_FORWARDING: &str = "ipv6/conf/all/forwarding";

/// Handle of the qdisc that limits a pod's link.
pub const QDISC_HANDLE: u32 = 0x7474_0000;

/// The gateway every IPv4 pod sees: link-local, never on the wire between nodes.
pub const POD_GATEWAY_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 1, 1);
/// The gateway every IPv6 pod sees.
pub const POD_GATEWAY_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Given to a fabric's device, which needs no address but must have one (the IPv4 dummy address, RFC 7600): the reverse
/// path filter, loose or strict, drops what enters a device without any if the way back is another device.
pub const DEVICE_ADDRESS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 0, 8);

/// The nft table (family `inet`) that holds all our rules.
pub const NFT_TABLE: &str = "tartan";
/// Priority of our chain before conntrack: nft's `raw`.
pub const NFT_RAW_PRIORITY: i32 = -300;
/// Priority of our destination translation: nft's `dstnat`.
pub const NFT_DSTNAT_PRIORITY: i32 = -100;
/// Priority of our source translation: nft's `srcnat`.
pub const NFT_SRCNAT_PRIORITY: i32 = 100;
/// Priority of the chains in which policy judges: nft's `filter`, after destinations and before sources are translated.
pub const NFT_POLICY_PRIORITY: i32 = 0;
/// The same for what ends on this node: after IPVS has taken what it passes on (`NF_IP_PRI_NAT_SRC - 1`), whose destination
/// is only known when it leaves again. Of two hooks with one priority the younger one comes first, so it is not that one.
pub const NFT_POLICY_INPUT_PRIORITY: i32 = NFT_SRCNAT_PRIORITY;
/// How the names of policy's chains, sets and maps begin, and nobody else's: see [`crate::Key::is_of_policy`].
pub const NFT_POLICY_PREFIX: &str = "policy_";
/// The map of pods of this node, by link and address, to their sets; its name ends with the family's digit.
pub const NFT_SUBJECTS_MAP: &str = "policy_subjects";
/// The map of addresses that policy tells apart one by one; its name ends with the family's digit.
pub const NFT_ADDRESSES_MAP: &str = "policy_addresses";
/// The map of identities of all others, by range; its name ends with the family's digit.
pub const NFT_RANGES_MAP: &str = "policy_ranges";
/// The map that holds the number of what is in force of policy, see [`crate::epoch`].
pub const NFT_EPOCH_MAP: &str = "policy_epoch";
/// How the names of policy's maps go on that are about what leaves pods,
pub const NFT_EGRESS: &str = "egress";
/// and about what enters them.
pub const NFT_INGRESS: &str = "ingress";
/// What stands between two identities, or two classes, while one goes over to the other, has this bit in its number; no
/// identity and no class has.
pub const NFT_BETWEEN: u32 = 1 << 31;
/// How the names of policy's maps end that hold classes of packets,
pub const NFT_CLASSES_SUFFIX: &str = "_classes";
/// words of one identity and class,
pub const NFT_WORDS_SUFFIX: &str = "_words";
/// and words of a class for all identities without one of their own.
pub const NFT_ANY_SUFFIX: &str = "_any";
/// How the names of maps begin that lead ports of this node to pods.
pub const NFT_HOSTPORTS_MAP: &str = "hostports";
/// The set that counts the packets that each word has decided.
pub const NFT_JUDGED_SET: &str = "policy_judged";
/// The set that holds the number of the generation that connections are judged under. A build to which stamps say something
/// else has it under another name, and takes the stamps of others for nobody's.
pub const NFT_GENERATION_SET: &str = "policy_generation_by_ends";
/// The bits of a connection's mark that say under which generation it was judged, and by whom; all others are not ours. Not
/// among those that kube-proxy, Tailscale or AWS use.
pub const CT_MARK_JUDGED: u32 = 0xff00_0000;
/// The one of them that says that it was judged by two pods of this node, one at each end. Without it, it was by one.
pub const CT_MARK_BOTH_ENDS: u32 = 0x0100_0000;
/// Those that say under which generation.
pub const CT_MARK_GENERATION: u32 = CT_MARK_JUDGED ^ CT_MARK_BOTH_ENDS;
/// The chain that lets nothing go to other nodes' pods in clear.
pub const NFT_STRICT_CHAIN: &str = "encrypted_only";
/// NFLOG group of packets that policy denies or reports.
pub const NFLOG_GROUP: u16 = 7474;
/// UDP port, on a node's fabric addresses, at which agents answer each other's path self-test.
pub const SELFTEST_PORT: u16 = 7474;
/// How many rules let pods' packets through somebody else's firewall: one from pods, one to pods.
pub const FORWARD_OPENING_RULES: usize = 2;
/// Comment on a rule that we had to put into somebody else's chain (`hostFirewall: open`).
pub const FOREIGN_RULE_COMMENT: &str = "tartan: forward pod traffic (remove with `tartan uninstall`)";

/// The main route table: pod and block routes live there, where every tool looks.
pub const MAIN_TABLE: u32 = 254;
/// Metric of routes to remote blocks and local pods: what the kernel itself uses for unset IPv6 metrics.
pub const ROUTE_METRIC: u32 = 1024;
/// Name of the interface whose routes a pod takes unless it says otherwise: runtimes of Kubernetes call no other so.
pub const FIRST_INTERFACE: &str = "eth0";
/// Metrics of routes inside a pod by its further interfaces, each with its own.
pub const FURTHER_METRICS: std::ops::Range<u32> = 65_536..131_072;
/// Route tables inside a pod, each for what is sent from the address of one further interface,
pub const FURTHER_TABLES: std::ops::Range<u32> = FURTHER_METRICS;
/// and priorities of the rules that lead there: before the main table's, 32766.
pub const FURTHER_PRIORITIES: std::ops::Range<u32> = 16_384..32_000;
/// Table of routes to other nodes' own addresses by what encrypts, before the main one,
pub const NODES_TABLE: u32 = 7474;
/// and priorities of the rules that lead there or past it; those that are used are the last.
pub const NODES_PRIORITIES: std::ops::Range<u32> = 7474..7484;
/// Metric of routes by a way that is blocked, behind those of the fallback: nothing takes them but probes bound to their link.
pub const STANDBY_METRIC: u32 = 2048;
/// Metrics of routes that nothing takes but what is bound to their link, to ask whether it leads to a peer: so many that two
/// links of one node are not given the same.
pub const PROBE_METRICS: std::ops::Range<u32> = 0x0100_0000..0x0200_0000;
/// Metric of the `unreachable` route that stops dead addresses of an owned block; after every real route.
pub const UNREACHABLE_METRIC: u32 = 4_294_967_294;

/// Default VXLAN identifier and port: Flannel's, so that mixed clusters can talk.
pub const VXLAN_VNI: u32 = 1;
/// See [`VXLAN_VNI`].
pub const VXLAN_PORT: u16 = 8472;
/// Default port of packets in UDP, by no device of the kernel's: Flannel's.
pub const UDP_PORT: u16 = 8285;

/// Request numbers (`reqid`) of IPsec associations: of those that are heard by,
pub const ESP_IN: u32 = 0x7474_0001;
/// of those that are sent by,
pub const ESP_OUT: u32 = 0x7474_0002;
/// and of the one that only says that a key pair is in use.
pub const ESP_ANCHOR: u32 = 0x7474_0003;
/// How the names of key pairs begin that no association may be made with again once the kernel has lost one.
pub const ESP_KEY_PREFIX: &str = "ipsec-";

/// How the name of a key pair goes on that has something of the cluster's secret, before that secret's number.
pub const PSK_SUFFIX: &str = "-psk";
/// Default first port of the wireguard fabric: the one that people open for WireGuard. It takes [`WIREGUARD_PORTS`] from there.
pub const WIREGUARD_PORT: u16 = 51820;
/// One for each family of underlay, and for keys of even and of odd number.
pub const WIREGUARD_PORTS: u16 = 4;
/// Seconds after which a peer is told that this node is there: less than firewalls and NATs keep a UDP flow.
pub const WIREGUARD_KEEPALIVE_SECS: u16 = 25;
/// The peer that allowed addresses pass through on their way out: kernels before 6.16 take one away by no other means.
pub const WIREGUARD_NOBODY: [u8; 32] = [0x74; 32];
