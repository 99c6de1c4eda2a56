//! The all-pairs matrix: does every endpoint reach every other one by ping and HTTP in both families, and does the
//! server see the client's own address?

use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use super::ping;
use crate::echo::HTTP_PORT;
use crate::netns::{Endpoint, Family};

/// How long one question may take: far above any healthy answer, so a failure is a failure.
const PATIENCE: Duration = Duration::from_secs(2);
const PING_BYTES: usize = 84;

/// What one endpoint could do towards another in one family.
#[derive(Debug, Clone)]
pub struct Reach {
    /// Who asked.
    pub from: String,
    /// Who answered.
    pub to: String,
    /// Over which family.
    pub family: Family,
    /// Why a ping did not come back, if it did not.
    pub ping: Result<Duration, String>,
    /// The client address the HTTP server saw.
    pub http: Result<IpAddr, String>,
    /// The client's own address.
    pub own: IpAddr,
}

/// Every ordered pair of the endpoints given, both families.
#[derive(Debug, Clone, Default)]
pub struct Matrix {
    /// One entry an ordered pair and family.
    pub reaches: Vec<Reach>,
}

impl Reach {
    /// Ping and HTTP came back, and the server saw the client's own address.
    pub fn is_good(&self) -> bool {
        self.ping.is_ok() && self.http.as_ref() == Ok(&self.own)
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {} {}: ", self.from, self.to, self.family)?;
        match &self.ping {
            Ok(time) => write!(f, "ping {:.2} ms, ", time.as_secs_f64() * 1e3)?,
            Err(why) => write!(f, "ping failed ({why}), ")?,
        }
        match &self.http {
            Ok(seen) if *seen == self.own => write!(f, "HTTP saw {seen}"),
            Ok(seen) => write!(f, "HTTP saw {seen} instead of {}", self.own),
            Err(why) => write!(f, "HTTP failed ({why})"),
        }
    }
}

impl Matrix {
    /// The pairs where something is wrong.
    pub fn failures(&self) -> impl Iterator<Item = &Reach> {
        self.reaches.iter().filter(|r| !r.is_good())
    }

    /// Fails with every bad pair, one a line.
    pub fn check(&self) -> Result<()> {
        let bad: Vec<String> = self.failures().map(Reach::to_string).collect();
        anyhow::ensure!(!self.reaches.is_empty(), "the matrix is empty: no pair was asked");
        anyhow::ensure!(bad.is_empty(), "{} of {} pairs:\n{}", bad.len(), self.reaches.len(), bad.join("\n"));
        Ok(())
    }

    fn cell(&self, from: &str, to: &str) -> String {
        let of_pair = self.reaches.iter().filter(|r| r.from == from && r.to == to);
        let word = |r: &Reach| match (&r.ping, &r.http) {
            _ if r.is_good() => "ok",
            (Ok(_), Ok(_)) => "nat",
            (Ok(_), Err(_)) => "ping",
            (Err(_), Ok(_)) => "http",
            (Err(_), Err(_)) => "--",
        };
        of_pair.map(word).collect::<Vec<_>>().join("/")
    }
}

/// A table: rows ask, columns answer, a cell says v4/v6. `ok` is ping, HTTP and the client's own address seen; `nat`
/// another address was seen; `ping` or `http` only that worked; `--` neither.
impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<&str> = Vec::new();
        for name in self.reaches.iter().flat_map(|r| [r.from.as_str(), r.to.as_str()]) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.sort_unstable();
        write!(f, "{:>8}", "from\\to")?;
        for to in &names {
            write!(f, "{to:>10}")?;
        }
        for from in &names {
            write!(f, "\n{from:>8}")?;
            for to in &names {
                write!(f, "{:>10}", if from == to { ".".to_owned() } else { self.cell(from, to) })?;
            }
        }
        Ok(())
    }
}

/// Asks every ordered pair, many at the same time, so a network that is down does not take long to judge.
pub fn matrix(endpoints: &[Endpoint]) -> Result<Matrix> {
    let rows: Vec<Result<Vec<Reach>>> = in_parallel(endpoints, |from| row(from, endpoints));
    Ok(Matrix { reaches: rows.into_iter().collect::<Result<Vec<_>>>()?.concat() })
}

fn row(from: &Endpoint, endpoints: &[Endpoint]) -> Result<Vec<Reach>> {
    let others = endpoints.iter().filter(|to| to.name != from.name);
    let questions: Vec<_> = others.flat_map(|to| Family::BOTH.map(|family| (to, family))).collect();
    // Threads begin in the namespace of the one that starts them.
    from.netns.run(|| in_parallel(&questions, |(to, family)| reach(from, to, *family)))
}

/// `work` on each input, a dozen threads at a time; outputs in the order of the inputs.
fn in_parallel<I: Sync, O: Send>(inputs: &[I], work: impl Fn(&I) -> O + Sync) -> Vec<O> {
    let work = &work;
    let some = |inputs: &[I]| -> Vec<O> {
        std::thread::scope(|scope| {
            let running: Vec<_> = inputs.iter().map(|input| scope.spawn(move || work(input))).collect();
            running.into_iter().map(|r| r.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        })
    };
    inputs.chunks(12).flat_map(some).collect()
}

fn reach(from: &Endpoint, to: &Endpoint, family: Family) -> Reach {
    let address = to.address(family);
    Reach {
        from: from.name.clone(),
        to: to.name.clone(),
        family,
        ping: ping::ask(address, PING_BYTES, PATIENCE).map_err(|e| e.to_string()),
        http: seen_by(address).map_err(|e| format!("{e:#}")),
        own: from.address(family),
    }
}

/// The client address that the echo server at `address` says it saw.
fn seen_by(address: IpAddr) -> Result<IpAddr> {
    let body = get(SocketAddr::new(address, HTTP_PORT), "/")?.1;
    let (_, seen) =
        body.trim().split_once(" sees ").with_context(|| format!("an answer of the lab's echo server: {body}"))?;
    seen.parse().with_context(|| format!("an address in: {body}"))
}

/// One HTTP GET from inside `from`'s namespace: status code and body.
pub fn http_get(from: &Endpoint, to: SocketAddr, path: &str) -> Result<(u16, String)> {
    from.netns.run(|| get(to, path))?
}

/// One HTTP GET from the calling thread's namespace.
pub(crate) fn get(to: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connecting to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("reading the answer of {to}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("an HTTP answer from {to}: {answer}"))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.with_context(|| format!("an HTTP status in: {head}"))?, body.to_owned()))
}
