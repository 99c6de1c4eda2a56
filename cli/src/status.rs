//! `tartan status`: this node, its peers, what is wrong and what to do about it.

use std::fmt::Write;

use tartan_api::status::Status;

use crate::output::table;

/// As a person reads it.
pub(crate) fn text(status: &Status) -> String {
    let mut text = String::new();
    let _infallible = write_all(&mut text, status);
    text
}

fn write_all(text: &mut String, status: &Status) -> std::fmt::Result {
    let state = match (&*status.waiting_for, status.ready) {
        ("", true) => "ready".to_owned(),
        ("", false) => "not all is programmed, see below".to_owned(),
        (waiting_for, _) => format!("waiting for {waiting_for}"),
    };
    writeln!(text, "Node      {} ({state}), tartan {}", status.node, status.version)?;
    writeln!(text, "Fabric    {}, {}", status.fabric, status.phase)?;
    writeln!(text, "Receives  {}", list(&status.receives))?;
    for address in &status.addresses {
        writeln!(text, "Address   {} on {} (MTU {}): {}", address.address, address.link, address.mtu, address.why)?;
    }
    writeln!(text, "Own       {}", list(&status.fabric_addresses))?;
    let blocks: Vec<String> =
        status.blocks.iter().map(|block| format!("{} ({} used)", block.cidr, block.used)).collect();
    writeln!(text, "Blocks    {}", list(&blocks))?;
    writeln!(text, "Pods      {}, MTU {}", status.pods.len(), status.pod_mtu)?;
    let kernel = &status.kernel;
    writeln!(
        text,
        "Kernel    {} objects, {} changes made, {} of them repairs, {} refused",
        kernel.objects,
        kernel.applied,
        kernel.repaired,
        kernel.failures.len()
    )?;
    if !status.peers.is_empty() {
        let rows: Vec<Vec<String>> = status.peers.iter().map(peer).collect();
        writeln!(text, "\n{}", table(&["PEER", "LIVE", "BY", "BLOCKS"], &rows))?;
    }
    if !status.pods.is_empty() {
        let row = |pod: &tartan_api::status::Pod| vec![pod.pod.clone(), list(&pod.addresses), pod.link.clone()];
        writeln!(text, "\n{}", table(&["POD", "ADDRESSES", "LINK"], &status.pods.iter().map(row).collect::<Vec<_>>()))?;
    }
    for failure in &kernel.failures {
        writeln!(text, "\nRefused   {} (for {})\n          {}", failure.object, failure.owner, failure.error)?;
    }
    for condition in &status.conditions {
        writeln!(text, "\n{}: {} {}", condition.reason, condition.about, condition.field)?;
        writeln!(text, "  {}\n  Fix: {}", condition.message, condition.fix)?;
    }
    Ok(())
}

fn peer(peer: &tartan_api::status::Peer) -> Vec<String> {
    let live = if peer.live { "yes" } else { "no" };
    let fabric = if peer.fabric.is_empty() { "-" } else { &peer.fabric };
    vec![peer.node.clone(), live.into(), fabric.into(), list(&peer.blocks)]
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tartan_api::tartan::Condition;

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        let condition = Condition { message: "it is broken".into(), fix: "mend it".into(), ..Condition::default() };
        let text = text(&Status { node: "n1".into(), ready: true, conditions: vec![condition], ..Status::default() });
        assert!(text.contains("Node      n1 (ready)"), "{text}");
        assert!(text.contains("it is broken\n  Fix: mend it"), "{text}");
    }
}
