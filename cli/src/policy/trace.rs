//! `tartan policy trace`.

use std::fmt::Write;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tartan_api::explain::{Change, End, Judged, Line, Trace, Verdict};
use tartan_policy::ends;
use tartan_policy::ir::protocol;
use tartan_policy::trace::{self, Asking};

use super::Answer;
use super::source::Known;
use crate::output::{self, Format};

/// Which connection.
#[derive(Clone, Debug, Args)]
pub(crate) struct Asked {
    /// NAMESPACE/POD, an address, a node's name, or `world`
    #[arg(long)]
    from: String,
    /// NAMESPACE/POD, an address, a node's name, or `world`; of a Service name a pod behind it
    #[arg(long)]
    to: String,
    /// Destination port and protocol, e.g. 80/tcp; without protocol it is TCP
    #[arg(long, value_name = "PORT[/PROTOCOL]", required_unless_present = "icmp", conflicts_with = "icmp")]
    port: Option<String>,
    /// ICMP type and code; without them an echo request
    #[arg(long, value_name = "TYPE[/CODE]", num_args = 0..=1, default_missing_value = "echo")]
    icmp: Option<String>,
    /// Source port
    #[arg(long, default_value_t = 40_000, conflicts_with = "icmp")]
    from_port: u16,
}

pub(super) fn answer(asked: &Asked, known: &Known, format: Format) -> Result<Answer> {
    let (world, asking) = (&known.world, asked.asking()?);
    let program = trace::program(&world.policies);
    let find = |flag: &str, text: &str| {
        ends::find(world, &program, text)
            .map_err(|it| anyhow::anyhow!("{it}"))
            .with_context(|| format!("{flag} {text}"))
    };
    let (from, to) = (find("--from", &asked.from)?, find("--to", &asked.to)?);
    let mut traces = trace::trace(world, &program, &from, &to, asking)?;
    for judged in traces.iter_mut().flat_map(|trace| [&mut trace.egress, &mut trace.ingress]) {
        judged.rule.iter_mut().chain(&mut judged.also).for_each(|line| known.locate(line));
        for change in &mut judged.would_allow {
            change.place = known.place(&change.object, &change.field);
        }
    }
    Ok(Answer { text: output::written(format, &traces, |traces| text(traces))?, code: 0 })
}

// === impl Asked ===

impl Asked {
    fn asking(&self) -> Result<Asking> {
        if let Some(icmp) = &self.icmp {
            return Ok(Asking::Icmp(message(icmp)?));
        }
        let port = self.port.as_deref().unwrap_or_default();
        let (number, name) = port.split_once('/').unwrap_or((port, "tcp"));
        let protocol = match name.to_ascii_lowercase().as_str() {
            "tcp" => protocol::TCP,
            "udp" => protocol::UDP,
            "sctp" => protocol::SCTP,
            other => bail!("--port {port}: '{other}' is no protocol that has ports; write tcp, udp or sctp"),
        };
        let destination: u16 = number.parse().ok().filter(|number| *number > 0).with_context(|| {
            format!("--port {port}: '{number}' is no port; write a number from 1 to 65535, and the protocol: 80/tcp")
        })?;
        Ok(Asking::Ports { protocol, source: self.from_port, destination })
    }
}

/// None: an echo request.
fn message(text: &str) -> Result<Option<(u8, u8)>> {
    if text == "echo" {
        return Ok(None);
    }
    let (kind, code) = text.split_once('/').unwrap_or((text, "0"));
    let (kind, code) = (kind.parse(), code.parse());
    ensure!(kind.is_ok() && code.is_ok(), "--icmp {text}: write type and code as numbers from 0 to 255, e.g. 3/4");
    Ok(Some((kind?, code?)))
}

/// As a person reads it: families of which the same is to be said together.
fn text(traces: &[Trace]) -> String {
    let mut text = String::new();
    let is_same = |one: &Trace, other: &Trace| one.egress == other.egress && one.ingress == other.ingress;
    for (at, alike) in traces.chunk_by(is_same).enumerate() {
        let _infallible = write_one(&mut text, at, alike);
    }
    text
}

fn write_one(text: &mut String, at: usize, alike: &[Trace]) -> std::fmt::Result {
    let Some(first) = alike.first() else { return Ok(()) };
    let end = |of: fn(&Trace) -> &End| {
        let addresses: Vec<&str> = alike.iter().map(|trace| &*of(trace).address).collect();
        format!("{} ({})", of(first).name, addresses.join(", "))
    };
    let mut packets: Vec<&str> = alike.iter().map(|trace| &*trace.packet).collect();
    packets.dedup();
    let verdict = if first.allowed { "allowed" } else { "denied" };
    let blank = if at == 0 { "" } else { "\n" };
    writeln!(text, "{blank}{} to {}, {}: {verdict}", end(|it| &it.from), end(|it| &it.to), packets.join(", "))?;
    for note in first.from.notes.iter().chain(&first.to.notes) {
        writeln!(text, "  Note: {note}")?;
    }
    judged(text, &format!("Egress of {}", first.from.name), &first.egress)?;
    judged(text, &format!("Ingress of {}", first.to.name), &first.ingress)
}

fn judged(text: &mut String, head: &str, judged: &Judged) -> std::fmt::Result {
    writeln!(text, "\n{head}: {}", word(judged.verdict))?;
    if !judged.why.is_empty() {
        writeln!(text, "  {}", judged.why)?;
    }
    if let Some(rule) = &judged.rule {
        writeln!(text, "  {}", line(rule))?;
        block(text, "    ", &rule.yaml)?;
    }
    for (at, also) in judged.also.iter().enumerate() {
        writeln!(text, "{}{}", if at == 0 { "  Also: " } else { "        " }, line(also))?;
    }
    let several = judged.would_allow.len() > 1;
    for (at, change) in judged.would_allow.iter().enumerate() {
        let head = match (at, several) {
            (0, false) => "  What would allow it:\n",
            (0, true) => "  Each of these would allow it:\n",
            _ => "",
        };
        let Change { object, field, place, message, add } = change;
        writeln!(text, "{head}  - {object} {field}{}: {message}", parenthesis(&[place]))?;
        block(text, "      ", &serde_json::Value::Array(vec![add.clone()]))?;
    }
    Ok(())
}

fn line(line: &Line) -> String {
    let Line { object, field, place, tier, says, .. } = line;
    format!("{object} {field}{}: {says}", parenthesis(&[place, &format!("tier {tier}")]))
}

fn parenthesis(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}

/// Lines that are shown of what a policy says.
const SHOWN: usize = 16;

fn block(text: &mut String, indent: &str, value: &serde_json::Value) -> std::fmt::Result {
    let is_empty =
        value.is_null() || value.as_array().is_some_and(|items| items.iter().all(serde_json::Value::is_null));
    if is_empty {
        return Ok(());
    }
    let yaml = serde_yaml_ng::to_string(value).unwrap_or_default();
    for line in yaml.lines().take(SHOWN) {
        writeln!(text, "{indent}{line}")?;
    }
    if yaml.lines().count() > SHOWN { writeln!(text, "{indent}…") } else { Ok(()) }
}

pub(super) fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::NotJudged => "not judged",
        Verdict::Allowed => "allowed",
        Verdict::Audited => "allowed, on trial",
        Verdict::Denied => "denied",
        Verdict::Rejected => "rejected",
    }
}
