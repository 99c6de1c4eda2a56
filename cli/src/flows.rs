//! `tartan flows --denied`: one line for each packet that policy denies on a node, as it happens.

use std::process::ExitCode;

use anyhow::Result;
use tartan_api::explain::{Denied, Verdict};

use crate::client::{self, At};
use crate::output::{self, Format};

/// Prints until the agent ends or somebody interrupts.
pub(crate) fn denied(at: &At, format: Format) -> Result<ExitCode> {
    client::denied(&at.socket()?, |denied| output::print(format, denied, text))?;
    Ok(ExitCode::SUCCESS)
}

fn text(it: &Denied) -> String {
    let lost = if it.lost == 0 { String::new() } else { format!("(at least {} went by unseen)\n", it.lost) };
    let verdict = match it.verdict {
        Verdict::Audited => "would be denied",
        Verdict::Rejected => "rejected",
        _ => "denied",
    };
    let by = match it.object.as_str() {
        "" => "by a line that is not there any more".to_owned(),
        object => format!("by {object} {}", it.field),
    };
    let (from, to) = (&it.from, &it.to);
    format!("{lost}{} ({}) to {} ({}), {}: {verdict} {by}", from.name, from.address, to.name, to.address, it.packet)
}

#[cfg(test)]
mod tests {
    use tartan_api::explain::End;

    use super::*;

    #[test]
    fn a_line_says_who_to_whom_and_by_what() {
        let end = |name: &str, address: &str| End { name: name.into(), address: address.into(), notes: Vec::new() };
        let it = Denied {
            from: end("dev/test", "10.244.2.7"),
            to: end("shop/web-0", "10.244.2.4"),
            packet: "22/tcp".into(),
            verdict: Verdict::Denied,
            object: "NetworkPolicy/shop/web".into(),
            field: "spec.podSelector".into(),
            lost: 0,
        };
        let line = "dev/test (10.244.2.7) to shop/web-0 (10.244.2.4), 22/tcp: ";
        assert_eq!(text(&it), format!("{line}denied by NetworkPolicy/shop/web spec.podSelector"));
        let tried = Denied { verdict: Verdict::Audited, object: String::new(), lost: 3, ..it };
        let want = format!("(at least 3 went by unseen)\n{line}would be denied by a line that is not there any more");
        assert_eq!(text(&tried), want);
    }
}
