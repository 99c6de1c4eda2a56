//! MTU: one rule for devices, one for pods.

use tartan_model::Family;

use crate::{Instance, fabric_of};

/// The smallest MTU we ever set: what IPv6 needs (RFC 8200 §5).
pub(crate) const MIN_MTU: u32 = 1280;

/// MTU of an instance's device, or of what can be sent through it: the underlay's less the overhead.
pub(crate) fn device_mtu(underlay_mtu: u32, at: &Instance) -> u32 {
    let overhead = fabric_of(at.mode()).overhead(at.underlay().unwrap_or(Family::V4));
    underlay_mtu.saturating_sub(overhead).max(MIN_MTU)
}

/// MTU of pods: what fits through every instance that is in use anywhere, so that it is lowered before the first
/// packet takes the narrower way and raised after the last one did.
pub(crate) fn pod_mtu<'a>(underlay_mtu: u32, in_use: impl IntoIterator<Item = &'a Instance>) -> u32 {
    in_use.into_iter().map(|at| device_mtu(underlay_mtu, at)).min().unwrap_or(underlay_mtu).max(MIN_MTU)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overheads_are_those_of_the_headers() {
        let vxlan = |underlay| Instance::Vxlan { underlay, vni: 1, port: 8472 };
        for (underlay_mtu, in_use, want) in [
            (1500, vec![], 1500),
            (1500, vec![Instance::HostGw], 1500),
            (1500, vec![vxlan(Family::V4)], 1450),
            (1500, vec![vxlan(Family::V6)], 1430),
            (9000, vec![Instance::HostGw, vxlan(Family::V6)], 8930),
            (1300, vec![vxlan(Family::V4)], 1280),
        ] {
            assert_eq!(pod_mtu(underlay_mtu, &in_use), want, "{underlay_mtu} {in_use:?}");
        }
    }
}
