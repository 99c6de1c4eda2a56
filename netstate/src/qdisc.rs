//! How fast a link may send: a token bucket (tbf) in place of its queue.
//!
//! Invariant: numbers are those the kernel keeps, so that what is read back is what was wanted.

/// One tick of the kernel's packet scheduler is 64 ns.
const TICK_NANOS: u128 = 64;
/// How long a packet may wait in the queue.
const LONGEST_WAIT_MILLIS: u64 = 25;
/// The largest packet that a pod's link is given: the queue takes one more of them than may wait.
const LARGEST_PACKET: u64 = 65_536;
/// What goes at once where nobody says how much: as much as the rate has in that time.
const USUAL_BURST_MILLIS: u64 = 10;

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tbf {
    /// Bytes a second.
    pub rate: u64,
    /// How long the rate takes for a burst, in ticks.
    pub buffer: u32,
    /// Bytes that may wait; more are dropped.
    pub limit: u32,
}

impl Tbf {
    /// Of this rate in bits a second. A burst, in bits, is no less than two packets of that MTU, since a packet larger than
    /// the bucket would never pass.
    pub fn new(rate_bits: u64, burst_bits: u64, mtu: u32) -> Tbf {
        let rate = (rate_bits / 8).max(1);
        let usual = rate.saturating_mul(USUAL_BURST_MILLIS) / 1000;
        let burst = if burst_bits == 0 { usual } else { burst_bits / 8 }.max(2 * u64::from(mtu));
        let ticks = u128::from(burst) * 1_000_000_000 / u128::from(rate) / TICK_NANOS;
        let limit = (rate.saturating_mul(LONGEST_WAIT_MILLIS) / 1000).saturating_add(LARGEST_PACKET);
        Tbf {
            rate,
            buffer: u32::try_from(ticks).unwrap_or(u32::MAX).max(1),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_become_bytes_and_ticks() {
        // bits a second, bits at once, MTU; bytes a second, ticks, bytes that may wait
        for (rate, burst, mtu, wanted) in [
            (8_000_000, 80_000, 1500, (1_000_000, 156_250, 25_000 + 65_536)),
            // Not even two packets.
            (8_000_000, 8, 1500, (1_000_000, 46_875, 25_000 + 65_536)),
            // Nothing said: 10 ms of it.
            (8_000_000, 0, 1500, (1_000_000, 156_250, 25_000 + 65_536)),
            (1000, 0, 1500, (125, 375_000_000, 3 + 65_536)),
            // What containerd says where nobody does, 4 s of it; more than the kernel can hold; the largest of all.
            (1_000_000_000, u64::from(u32::MAX), 1500, (125_000_000, 67_108_863, 3_125_000 + 65_536)),
            (1000, u64::from(u32::MAX), 1500, (125, u32::MAX, 3 + 65_536)),
            (u64::MAX, u64::MAX, u32::MAX, (u64::MAX / 8, 15_625_000, u32::MAX)),
        ] {
            let Tbf { rate: bytes, buffer, limit } = Tbf::new(rate, burst, mtu);
            assert_eq!((bytes, buffer, limit), wanted, "{rate} {burst} {mtu}");
        }
    }
}
