//! What this node's kernel can do.

/// Found by trying, once, at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// IPv6 is compiled in and not switched off.
    pub ipv6: bool,
    /// VXLAN devices can be made.
    pub vxlan: bool,
    /// nf_tables with NAT can be used.
    pub nft: bool,
    /// There is WireGuard.
    pub wireguard: bool,
}
