//! The real binary, run as a runtime runs it; and an agent that says what the test tells it to.

use std::io::{Read, Write};
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What the plugin said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

/// A directory of this test's own, gone with it.
pub(crate) struct Dir(pub(crate) PathBuf);

/// Runs the plugin with this environment and nothing else.
pub(crate) fn call(environment: &[(&str, &str)], stdin: &str) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tartan-cni"));
    command.env_clear().envs(environment.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    // A plugin that refuses its environment need not read its input.
    let _refused = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said {
        success: output.status.success(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
        took: start.elapsed(),
    }
}

impl Said {
    /// The result or the error.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

impl Dir {
    pub(crate) fn new() -> Dir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tartan-cni-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Dir(dir)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("tartan.sock")
    }

    /// Names of the DELs that wait for the agent.
    pub(crate) fn pending(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.0.join("pending-del")) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _best_effort = std::fs::remove_dir_all(&self.0);
    }
}

/// Binds the socket now, and takes `calls` calls one after the other on a thread of its own.
pub(crate) fn agent(
    socket: &Path,
    calls: usize,
    mut answer: impl FnMut(&mut UnixStream, usize) + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for number in 0..calls {
            answer(&mut listener.accept().unwrap().0, number);
        }
    })
}

/// Reads a request, and where its descriptor, if any, leads.
pub(crate) fn request(stream: &UnixStream) -> (Value, Option<RawFd>) {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

    let mut header = [0; 4];
    let mut control = nix::cmsg_space!(RawFd);
    let fd = {
        let mut parts = [std::io::IoSliceMut::new(&mut header)];
        let message =
            recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_WAITALL).unwrap();
        assert_eq!(message.bytes, 4);
        message.cmsgs().unwrap().find_map(|part| match part {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        })
    };
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    let mut stream = stream;
    stream.read_exact(&mut body).unwrap();
    (serde_json::from_slice(&body).unwrap(), fd)
}

/// Sends a reply.
pub(crate) fn reply(stream: &mut UnixStream, reply: &Value) {
    let body = reply.to_string();
    let header = u32::try_from(body.len()).unwrap().to_be_bytes();
    stream.write_all(&[&header[..], body.as_bytes()].concat()).unwrap();
}
