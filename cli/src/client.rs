//! Commands that ask the agent of this node, or of a lab's node, over its socket.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde::de::DeserializeOwned;
use tartan_api::cni::CniError;
use tartan_api::explain::{Count, Denied};
use tartan_api::socket::{self, Reply, Request};
use tartan_api::status::Status;
use tartan_lab::Facts;

use crate::output::{self, Format};
use crate::status;

/// Where the agent of a node listens, unless its boot file says otherwise.
pub(crate) const SOCKET: &str = "/run/tartan/tartan.sock";
/// An agent answers from memory, and waits only for its store; one that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which agent.
#[derive(Clone, Debug, Args)]
pub(crate) struct At {
    /// Socket of the agent; by default this node's, else that of a running lab's node
    #[arg(long, env = "TARTAN_SOCKET")]
    socket: Option<PathBuf>,
    /// Node of a running lab
    #[arg(long, default_value = "n1")]
    node: String,
}

/// `tartan status`
pub(crate) fn status_command(at: &At, format: Format) -> Result<ExitCode> {
    output::print(format, &self::status(&at.socket()?)?, status::text)?;
    Ok(ExitCode::SUCCESS)
}

/// `tartan apply`
pub(crate) fn apply(at: &At, file: &Path, format: Format) -> Result<ExitCode> {
    let from_stdin = file == Path::new("-");
    let documents = if from_stdin {
        std::io::read_to_string(std::io::stdin()).context("reading standard input")?
    } else {
        std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?
    };
    let source = if from_stdin { "standard input".into() } else { file.display().to_string() };
    written(&at.socket()?, &Request::Apply { source, documents }, format)
}

/// `tartan set`
pub(crate) fn set(at: &At, key: &str, value: &str, format: Format) -> Result<ExitCode> {
    written(&at.socket()?, &Request::Set { key: key.into(), value: value.into() }, format)
}

/// `tartan rotate`
pub(crate) fn rotate(at: &At, format: Format) -> Result<ExitCode> {
    written(&at.socket()?, &Request::Rotate, format)
}

/// The status of the agent behind a socket.
pub(crate) fn status(socket: &Path) -> Result<Status> {
    ask(socket, &Request::Status, PATIENCE)
}

fn written(socket: &Path, request: &Request, format: Format) -> Result<ExitCode> {
    let objects: Vec<String> = ask(socket, request, tartan_agent::edit::PATIENCE + PATIENCE)?;
    output::print(format, &objects, |objects| {
        objects.iter().map(|object| format!("{object} written")).collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What the agent behind a socket knows of the cluster, as it is recorded.
pub(crate) fn record(socket: &Path) -> Result<String> {
    let mut stream = asked(socket, &Request::World, PATIENCE)?;
    let mut record = String::new();
    while let Some(value) = answer(&mut stream, socket)? {
        record.push_str(value.as_str().context(OTHER_VERSION)?);
    }
    Ok(record)
}

/// How often each rule has decided on the node of the agent behind a socket.
pub(crate) fn counts(socket: &Path) -> Result<Vec<Count>> {
    ask(socket, &Request::Counts, PATIENCE)
}

/// Tells of each packet that policy denies on the node of the agent behind a socket, until the agent ends.
pub(crate) fn denied(socket: &Path, mut tell: impl FnMut(&Denied) -> Result<()>) -> Result<()> {
    let mut stream = asked(socket, &Request::Denied, PATIENCE)?;
    stream.set_read_timeout(None)?;
    while let Some(value) = answer(&mut stream, socket)? {
        tell(&serde_json::from_value(value).context(OTHER_VERSION)?)?;
    }
    Ok(())
}

const OTHER_VERSION: &str = "the agent answered something else than asked; is it of another version?";

fn ask<T: DeserializeOwned>(path: &Path, request: &Request, patience: Duration) -> Result<T> {
    let mut stream = asked(path, request, patience)?;
    let value = answer(&mut stream, path)?.with_context(|| went_away(path))?;
    serde_json::from_value(value).context(OTHER_VERSION)
}

/// A connection to the agent on which this was asked.
fn asked(path: &Path, request: &Request, patience: Duration) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(path).with_context(|| {
        format!("no agent answers at {}: is it running, and are you root? (--socket names another)", path.display())
    })?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(&socket::encode(request)?)?;
    Ok(stream)
}

/// The agent's next answer; none once it has closed the connection.
fn answer(stream: &mut UnixStream, path: &Path) -> Result<Option<serde_json::Value>> {
    let patience = stream.read_timeout()?.unwrap_or_default();
    let silent = |error: io::Error| match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            let (path, patience) = (path.display(), patience.as_secs());
            anyhow!("the agent at {path} gave no answer within {patience} s; its log says what holds it up")
        }
        _ => anyhow!("{}: {error}", went_away(path)),
    };
    let mut header = [0; 4];
    match stream.read_exact(&mut header) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        header => header.map_err(silent)?,
    }
    let mut body = vec![0; socket::body_length(header)?];
    stream.read_exact(&mut body).map_err(silent)?;
    match socket::decode(&body)? {
        Reply::Result(value) => Ok(Some(value)),
        // The code is for container runtimes.
        Reply::Error(CniError { msg, details, .. }) if details.is_empty() => Err(anyhow!(msg)),
        Reply::Error(CniError { msg, details, .. }) => Err(anyhow!("{msg}: {details}")),
    }
}

fn went_away(path: &Path) -> String {
    format!("the agent at {} went away before it answered", path.display())
}

impl At {
    pub(crate) fn socket(&self) -> Result<PathBuf> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        if Path::new(SOCKET).exists() {
            return Ok(SOCKET.into());
        }
        let lab = Facts::find(None).with_context(|| {
            format!("there is no agent on this node ({SOCKET}), and no lab's; name a socket with --socket")
        })?;
        let socket = lab.member(&self.node)?.socket.clone();
        socket.with_context(|| format!("{} is a pod; name a node with --node", self.node))
    }
}
