//! Packets under way: the kernel judges a packet in one go on one processor, and lets no thread run there meanwhile. So
//! whoever has run on every processor has seen all packets through that were under way when it began.
//!
//! Of packets that a program of this node sends itself this holds only where the kernel does not preempt itself; policy
//! does not judge them.

use std::ops::RangeInclusive;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

const ONLINE: &str = "/sys/devices/system/cpu/online";

/// Waits for them: a tenth of a millisecond if the machine has time, and as long as a processor is taken away from a
/// virtual one.
pub(crate) fn wait_for_packets() {
    if run_everywhere().is_none() {
        wait_for_readers();
    }
}

/// None: some processor is not for us, because of a cpuset for instance.
fn run_everywhere() -> Option<()> {
    let here = Pid::from_raw(0);
    let before = sched_getaffinity(here).ok()?;
    let online = std::fs::read_to_string(ONLINE).ok()?;
    let been = processors(&online)?.into_iter().flatten().try_for_each(|processor| {
        let mut only = CpuSet::new();
        only.set(processor)?;
        sched_setaffinity(here, &only)
    });
    sched_setaffinity(here, &before).ok()?;
    been.ok()
}

/// As the kernel lists them: `0-3,8`.
fn processors(list: &str) -> Option<Vec<RangeInclusive<usize>>> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').map(range).collect()
}

/// The same by the kernel's own means, which take some ten milliseconds; where there are none either (`nohz_full`), a packet
/// would have to be under way for as long as a transaction takes.
#[expect(unsafe_code, reason = "nix has no membarrier")]
fn wait_for_readers() {
    const MEMBARRIER_CMD_GLOBAL: nix::libc::c_int = 1;
    // SAFETY: the call takes numbers only.
    let _refused = unsafe { nix::libc::syscall(nix::libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_as_the_kernel_lists_them() {
        let check = |list: &str, wanted: Option<&[usize]>| {
            let found: Option<Vec<usize>> = processors(list).map(|ranges| ranges.into_iter().flatten().collect());
            assert_eq!(found.as_deref(), wanted, "{list}");
        };
        check("0\n", Some(&[0]));
        check("0-3,8\n", Some(&[0, 1, 2, 3, 8]));
        check("\n", None);
        check("0-x\n", None);
    }

    #[test]
    fn it_comes_back_to_where_it_may_run() {
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        wait_for_packets();
        wait_for_readers();
        assert_eq!(sched_getaffinity(Pid::from_raw(0)), Ok(before));
    }
}
