//! The drawing of what was built, read from the lab and the agents.

use anyhow::Result;
use tartan_lab::{Lab, Node};

use crate::client;
use crate::output::say;

/// Draws nodes, pods and the network between them.
pub(super) fn draw(lab: &Lab) -> Result<()> {
    let boxes: Vec<Vec<String>> = lab.nodes().iter().map(|node| node_box(lab, node)).collect::<Result<_>>()?;
    let height = boxes.iter().map(Vec::len).max().unwrap_or(0);
    let width = boxes.iter().flatten().map(|line| line.chars().count()).max().unwrap_or(0);
    let row = |line: usize| {
        let cell = |node: &Vec<String>| format!("│ {:<width$} │", node.get(line).map_or("", String::as_str));
        boxes.iter().map(cell).collect::<Vec<_>>().join("  ")
    };
    let edge = |left, right, middle: char| {
        let half = "─".repeat(width / 2);
        let rest = "─".repeat(width + 1 - width / 2);
        vec![format!("{left}{half}{middle}{rest}{right}"); boxes.len()].join("  ")
    };
    say(format_args!("{}", edge('┌', '┐', '─')))?;
    for line in 0..height {
        say(format_args!("{}", row(line)))?;
    }
    say(format_args!("{}", edge('└', '┘', '┬')))?;
    let total = (width + 4) * boxes.len() + 2 * (boxes.len() - 1);
    let underlay = " underlay: one L2 segment, MTU 1500, 172.30.0.0/24 and fd30::/64 ";
    say(format_args!("{}", pad(underlay, total, '═')))?;
    say(format_args!(
        "One kernel, no NIC: nodes and pods are network namespaces of this machine. Agents, CNI calls, links, routes \n\
         and packets are real; timings say what Tartan adds, not what a wire costs."
    ))
}

fn node_box(lab: &Lab, node: &Node) -> Result<Vec<String>> {
    let status = client::status(&node.socket())?;
    let mut lines = vec![format!("node {}", node.name())];
    lines.extend(status.addresses.iter().map(|address| format!("  {} {}", address.link, address.address)));
    lines.extend(status.receives.iter().map(|instance| format!("  {instance}")));
    lines.push(format!("  pods: MTU {}", status.pod_mtu));
    for pod in lab.pods().iter().filter(|pod| pod.node() == node.name()) {
        let endpoint = pod.endpoint();
        lines.push(format!("  {} {} {}", pod.name(), endpoint.v4, endpoint.v6));
    }
    Ok(lines)
}

fn pad(text: &str, width: usize, with: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let side = |count: usize| with.to_string().repeat(count);
    format!("{}{text}{}", side(missing / 2), side(missing - missing / 2))
}
