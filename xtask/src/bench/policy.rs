//! Policy: how soon it is in force, whom it cuts, and what it costs. Whether it is right is [`verdicts`](super::verdicts)' to count.
//!
//! Parts of it, one file each. A part that fails leaves its own figures missing, and the next one is measured.

mod cost;
mod cut;
mod soon;

use super::figure::Report;
use crate::command::Result;

pub(super) const FIGURES: &[&str] = &[
    "policy.enforce_100_p99",
    "policy.label_change_p99",
    "policy.new_pod_p99",
    "policy.first_connect_p99",
    "policy.wrongly_cut",
    "policy.10000_rr.vs_0",
    "policy.10000_crr.vs_0",
    "policy.10000_tcp.vs_0",
    "policy.10000_pps.vs_0",
    "policy.linear_10000_rr.vs_0",
    "policy.linear_10000_crr.vs_0",
    "policy.bytes_per_pod",
    "policy.noise",
];

/// Figures of the list above, and what measures them.
struct Part {
    figures: std::ops::Range<usize>,
    run: fn(&mut Report) -> Result<()>,
}

const PARTS: [Part; 3] = [
    Part { figures: 0..3, run: soon::run },
    Part { figures: 3..5, run: cut::run },
    Part { figures: 5..13, run: cost::run },
];

pub(super) fn run(report: &mut Report) -> Result<()> {
    for part in PARTS {
        if let Err(error) = (part.run)(report) {
            report.give_up(&FIGURES[part.figures], &error.to_string());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_of_one_part() {
        let of_parts: Vec<usize> = PARTS.into_iter().flat_map(|part| part.figures).collect();
        assert_eq!(of_parts, (0..FIGURES.len()).collect::<Vec<_>>());
    }
}
