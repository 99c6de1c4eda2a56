//! Changes from one fabric into another under load, with the nodes hearing of it at different times.

use std::time::Duration;

use anyhow::{Context, Result};
use tartan_lab::Lab;

use crate::restart::{load, wait_until_steady};
use crate::{PATIENCE, Series, Subject, lab, losses, unknown};

/// Three nodes with a pod each.
pub(crate) struct Switch {
    lab: Lab,
}

impl Switch {
    pub(crate) fn up(fabric: &str) -> Result<Self> {
        Ok(Self { lab: lab("switch", 3, 1, fabric)? })
    }
}

impl Subject for Switch {
    /// `FABRIC SECONDS PROBES`: into that fabric, each node so many seconds after the one before → probes in all, lost, resets.
    fn measure(&mut self, question: &[&str]) -> Result<Series> {
        let &[fabric, apart, probes] = question else { return Err(unknown(question)) };
        let load = load(&self.lab)?;
        let change = |lab: &mut Lab| {
            lab.set_fabric_apart(fabric, Duration::from_secs(apart.parse()?))?;
            wait_until_steady(lab, fabric)
        };
        change(&mut self.lab).with_context(|| self.lab.troubleshooting())?;
        load.wait_for_answers(probes.parse()?, PATIENCE)?;
        Ok(losses(&question.join(" "), &load.stop()?))
    }
}
