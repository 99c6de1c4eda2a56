//! Packets under way: the kernel judges a packet in one go on one processor, and lets no thread run there meanwhile. So
//! whoever has run on every processor has seen all packets through that were under way when it began.
//!
//! A kernel that preempts itself may take a processor away even so, from what a program of this node sends, and with `PREEMPT_RT`
//! from any packet. Then, and where a processor is not to be had, the kernel's own means has to do, which waits for all who read
//! what a transaction replaces.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const ONLINE: &str = "/sys/devices/system/cpu/online";
const VERSION: &str = "/proc/sys/kernel/version";
const PREEMPTION: &str = "/sys/kernel/debug/sched/preempt";

/// A processor may be somebody's who gives it to nobody (`SCHED_FIFO`).
const PATIENCE: Duration = Duration::from_millis(20);

/// Waits for them: a tenth of a millisecond or two if the machine has time, and as long as a processor is taken away from a
/// virtual one.
pub(crate) fn wait_for_packets() {
    let version = std::fs::read_to_string(VERSION).unwrap_or_default();
    let preemption = std::fs::read_to_string(PREEMPTION).unwrap_or_default();
    if preempts_itself(&version, &preemption) || run_everywhere(PATIENCE).is_none() {
        wait_for_readers();
    }
}

/// As the kernel says of its build, and, if that leaves it open, of its setting.
fn preempts_itself(version: &str, preemption: &str) -> bool {
    match version.contains("PREEMPT_DYNAMIC") {
        true => ["(full)", "(lazy)"].iter().any(|setting| preemption.contains(setting)),
        false => version.contains("PREEMPT"),
    }
}

/// In a thread, which nobody waits for any longer than this; none: it has not been everywhere.
fn run_everywhere(patience: Duration) -> Option<()> {
    static UNDER_WAY: AtomicBool = AtomicBool::new(false);
    if UNDER_WAY.swap(true, Ordering::AcqRel) {
        return None;
    }
    let (done, told) = mpsc::channel();
    let run = move || {
        let been = visit_all();
        UNDER_WAY.store(false, Ordering::Release);
        // Who no longer listens has found another way.
        let _ = been.map(|()| done.send(()));
    };
    let thread = std::thread::Builder::new().name("everywhere".into()).spawn(run);
    if thread.is_err() {
        UNDER_WAY.store(false, Ordering::Release);
    }
    told.recv_timeout(patience).ok()
}

/// None: some processor is not for us, because of a cpuset for instance.
fn visit_all() -> Option<()> {
    let online = std::fs::read_to_string(ONLINE).ok()?;
    let visit = |processor| {
        let mut only = CpuSet::new();
        only.set(processor)?;
        sched_setaffinity(Pid::from_raw(0), &only)
    };
    processors(&online)?.into_iter().flatten().try_for_each(visit).ok()
}

/// As the kernel lists them: `0-3,8`.
fn processors(list: &str) -> Option<Vec<RangeInclusive<usize>>> {
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').map(range).collect()
}

/// Ten milliseconds, about; where there is no such means (`nohz_full`), a packet would have to be under way for as long as a
/// transaction takes.
#[expect(unsafe_code, reason = "nix has no membarrier")]
fn wait_for_readers() {
    const MEMBARRIER_CMD_GLOBAL: nix::libc::c_int = 1;
    // SAFETY: the call takes numbers only.
    let _refused = unsafe { nix::libc::syscall(nix::libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}

#[cfg(test)]
mod tests {
    use nix::sched::sched_getaffinity;

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
    fn kernels_that_preempt_themselves() {
        let check = |version: &str, preemption: &str, wanted: bool| {
            assert_eq!(preempts_itself(version, preemption), wanted, "{version} {preemption}");
        };
        check("#1 SMP Debian 6.1.0", "", false);
        check("#1 SMP PREEMPT_DYNAMIC Debian 6.1.0", "none (voluntary) full", false);
        check("#1 SMP PREEMPT_DYNAMIC Debian 6.1.0", "none voluntary (full)", true);
        check("#1 SMP PREEMPT_DYNAMIC Debian 6.17", "full (lazy)", true);
        check("#1 SMP PREEMPT_DYNAMIC Debian 6.1.0", "", false);
        check("#1 SMP PREEMPT Debian", "", true);
        check("#1 SMP PREEMPT_RT Debian", "", true);
    }

    #[test]
    fn it_goes_everywhere_and_the_caller_stays_where_it_may_run() {
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        assert_eq!(run_everywhere(Duration::from_secs(60)), Some(()));
        assert_eq!(run_everywhere(Duration::from_secs(60)), Some(()), "again");
        wait_for_packets();
        wait_for_readers();
        assert_eq!(sched_getaffinity(Pid::from_raw(0)), Ok(before));
    }
}
