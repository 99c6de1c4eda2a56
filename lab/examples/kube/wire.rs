//! Many requests to the API server at once, over plain HTTP through `kubectl proxy`: kubectl takes its time over each.
//!
//! Invariant: an answer that is no success is an error, with what the API server said.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tartan_lab::Netns;
use tartan_lab::probe::wait_for;

use crate::control::Control;

const PROXY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8001);
/// Connections side by side.
const WIRES: usize = 16;
const PATIENCE: Duration = Duration::from_secs(30);

/// A running proxy in the control plane's network.
pub(crate) struct Proxy {
    netns: Netns,
    child: Child,
}

pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) body: Value,
}

struct Wire(BufReader<TcpStream>);

// === impl Proxy ===

impl Proxy {
    pub(crate) fn start(control: &Control, netns: &Netns) -> Result<Self> {
        let mut command = Command::new(control.kubectl_program());
        command.arg("--kubeconfig").arg(control.admin()).args(["proxy", &format!("--port={}", PROXY.port())]);
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = netns.run(|| command.spawn())?.context("starting `kubectl proxy`")?;
        let proxy = Self { netns: netns.clone(), child };
        wait_for(PATIENCE, "kubectl proxy", || netns.run(|| TcpStream::connect(PROXY).is_ok()).unwrap_or(false))?;
        Ok(proxy)
    }

    /// Sends what belongs to each number below `count`, one after the other; the numbers side by side, in their order.
    pub(crate) fn send(&self, count: usize, requests: impl Fn(usize) -> Vec<Request> + Sync) -> Result<()> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let mut wire = Wire::open()?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                requests(number).iter().try_for_each(|request| wire.send(request))?;
            }
        };
        self.netns.run(|| {
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..WIRES).map(|_| scope.spawn(work)).collect();
                let mut ended = workers.into_iter().map(|worker| worker.join());
                ended.try_for_each(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            })
        })?
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Wire ===

impl Wire {
    fn open() -> Result<Self> {
        let stream = TcpStream::connect(PROXY).context("connecting to kubectl proxy")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    fn send(&mut self, request: &Request) -> Result<()> {
        let Request { method, path, body } = request;
        let body = body.to_string();
        let kind = if *method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {PROXY}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all((head + &body).as_bytes())?;
        let (code, said) = answer(&mut self.0).with_context(|| format!("the answer to {method} {path}"))?;
        if !(200..300).contains(&code) {
            bail!("{method} {path}: {code}: {}", String::from_utf8_lossy(&said));
        }
        Ok(())
    }
}

/// Status and body of an answer on a connection that stays open.
fn answer(from: &mut impl BufRead) -> Result<(u16, Vec<u8>)> {
    let status = line(from)?;
    let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.with_context(|| format!("`{status}` is no status line"))?;
    let (mut length, mut chunked) = (0, false);
    loop {
        let header = line(from)?.to_ascii_lowercase();
        match header.split_once(':').map(|(name, value)| (name, value.trim())) {
            Some(("content-length", value)) => length = value.parse()?,
            Some(("transfer-encoding", value)) => chunked = value == "chunked",
            Some(_) => {}
            None => break,
        }
    }
    let mut body = Vec::new();
    if !chunked {
        from.take(length).read_to_end(&mut body)?;
        return Ok((code, body));
    }
    loop {
        let length = u64::from_str_radix(&line(from)?, 16).context("the length of a chunk")?;
        from.take(length).read_to_end(&mut body)?;
        line(from)?;
        if length == 0 {
            return Ok((code, body));
        }
    }
}

fn line(from: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        bail!("it ended too early");
    }
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::answer;

    #[test]
    fn answers_follow_each_other_on_one_connection() {
        let mut said = &b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 409 Conflict\r\nTransfer-Encoding: chunked\r\n\r\n\
            3\r\nabc\r\n1\r\nd\r\n0\r\n\r\nHTTP/1.1 200"[..];
        assert_eq!(answer(&mut said).unwrap(), (201, b"{}".to_vec()));
        assert_eq!(answer(&mut said).unwrap(), (409, b"abcd".to_vec()));
        assert!(answer(&mut said).is_err(), "half an answer");
    }
}
