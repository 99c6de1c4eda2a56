//! The agent's side: asks an engine, and starts one where there is none.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::program::own_program;
use crate::rights;
use crate::wire::{self, Answer, Ask, Device, Question, Step, VERSION};

/// An engine answers in milliseconds, or while it is started again in tens of them.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Client {
    socket: PathBuf,
    /// A holder is started where there is none.
    starts: bool,
    watching: Arc<AtomicBool>,
}

/// Why an engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It is there, and refuses or does not answer.
    #[error("the engine at {}: {error}", .socket.display())]
    Io { socket: PathBuf, error: io::Error },
    /// There is none, and none can be started.
    #[error("starting an engine: {0}")]
    NotStarted(io::Error),
}

impl Client {
    /// Of the engine that listens there, or will; `starts` says whether it is for the agent to start one.
    pub fn new(socket: &Path, starts: bool) -> Client {
        Client { socket: socket.to_owned(), starts, watching: Arc::default() }
    }

    /// All that the engine has; nothing where there is none.
    ///
    /// # Errors
    /// There is one, and it does not say.
    pub fn read(&self) -> Result<BTreeMap<String, Device>, EngineError> {
        let Some(stream) = self.connect()? else { return Ok(BTreeMap::new()) };
        match self.ask(stream, Ask::Read)? {
            Answer::Holds(devices) => Ok(devices),
            other => Err(self.error(io::Error::other(format!("it says {other:?}")))),
        }
    }

    /// Has it otherwise; starts an engine where there is none and `may_start`. `keys` are files with private keys, one for each
    /// [`Step::Identify`]. Which steps failed, and why.
    ///
    /// # Errors
    /// None of them can be counted as done.
    pub fn apply(
        &self,
        steps: Vec<Step>,
        keys: &[OwnedFd],
        may_start: bool,
    ) -> Result<BTreeMap<usize, String>, EngineError> {
        let mut stream = match self.connect()? {
            Some(stream) => stream,
            None if may_start => self.start(&steps)?,
            // What was there went with it.
            None if steps.iter().all(Step::only_takes) => return Ok(BTreeMap::new()),
            None => return Err(self.error(io::ErrorKind::NotConnected.into())),
        };
        let question = Question { version: VERSION, ask: Ask::Apply(steps) };
        let said = wire::write(&mut stream, &question)
            .and_then(|()| Ok(keys.iter().try_for_each(|key| rights::send(&stream, &[0], Some(key)))?));
        said.map_err(|error| self.error(error))?;
        match self.answer(stream)? {
            Answer::Applied(failures) => Ok(failures),
            other => Err(self.error(io::Error::other(format!("it says {other:?}")))),
        }
    }

    /// Has this process's program go on in place of the engine's, if that is another one. Whether there is an engine.
    ///
    /// # Errors
    /// The one that runs goes on.
    pub fn succeed(&self) -> Result<bool, EngineError> {
        let Some(mut stream) = self.connect()? else { return Ok(false) };
        let (file, program) = own_program().map_err(|error| self.error(error))?;
        let question = Question { version: VERSION, ask: Ask::Succeed(program) };
        let said = wire::write(&mut stream, &question).and_then(|()| Ok(rights::send(&stream, &[0], Some(&file))?));
        said.map_err(|error| self.error(error))?;
        match self.answer(stream)? {
            Answer::Done => Ok(true),
            other => Err(self.error(io::Error::other(format!("it says {other:?}")))),
        }
    }

    /// Calls `gone` when the engine that is there ends. No more than one watch at a time.
    pub fn watch(&self, gone: impl FnOnce() + Send + 'static) {
        if self.watching.swap(true, Ordering::AcqRel) {
            return;
        }
        let (socket, watching) = (self.socket.clone(), self.watching.clone());
        let watch = move || {
            let said = UnixStream::connect(socket).and_then(|mut stream| {
                wire::write(&mut stream, &Question { version: VERSION, ask: Ask::Watch })?;
                stream.read_exact(&mut [0])
            });
            watching.store(false, Ordering::Release);
            // It says nothing: this is its end, or nobody was there.
            if said.is_err() {
                gone();
            }
        };
        if thread::Builder::new().name("engine-watch".into()).spawn(watch).is_err() {
            self.watching.store(false, Ordering::Release);
        }
    }

    /// To an engine that stands still nothing is sent for ever: where nobody accepts, and nobody reads, that ends as well.
    fn connect(&self) -> Result<Option<UnixStream>, EngineError> {
        let dial = || -> nix::Result<UnixStream> {
            let stream = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            setsockopt(&stream, SendTimeout, &TimeVal::seconds(PATIENCE.as_secs().cast_signed()))?;
            connect(stream.as_raw_fd(), &UnixAddr::new(&self.socket)?)?;
            Ok(stream.into())
        };
        match dial() {
            Ok(stream) => Ok(Some(stream)),
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(None),
            Err(errno) => Err(self.error(errno.into())),
        }
    }

    /// Not where there is nothing to carry: it would end at once, again and again.
    fn start(&self, steps: &[Step]) -> Result<UnixStream, EngineError> {
        for step in steps {
            if let Step::Open { link, .. } | Step::Hold { link, .. } | Step::Identify { link, .. } = step
                && nix::net::if_::if_nametoindex(link.as_str()).is_err()
            {
                return Err(EngineError::NotStarted(io::Error::other(format!("there is no device {link}"))));
            }
        }
        if !self.starts {
            let missing = format!(
                "nobody holds {}: see that the DaemonSet tartan-holder (`tartan hold --stay`) has its pod on this node",
                self.socket.display()
            );
            return Err(EngineError::NotStarted(io::Error::other(missing)));
        }
        let mut command = Command::new("/proc/self/exe");
        let started =
            command.arg("hold").arg("--socket").arg(&self.socket).status().map_err(EngineError::NotStarted)?;
        if !started.success() {
            return Err(EngineError::NotStarted(io::Error::other(started.to_string())));
        }
        self.connect()?.ok_or_else(|| EngineError::NotStarted(io::Error::other("nobody answers")))
    }

    fn ask(&self, mut stream: UnixStream, ask: Ask) -> Result<Answer, EngineError> {
        wire::write(&mut stream, &Question { version: VERSION, ask }).map_err(|error| self.error(error))?;
        self.answer(stream)
    }

    fn answer(&self, mut stream: UnixStream) -> Result<Answer, EngineError> {
        let answer = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| wire::read(&mut stream));
        answer.map_err(|error| self.error(error))
    }

    fn error(&self, error: io::Error) -> EngineError {
        EngineError::Io { socket: self.socket.clone(), error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Socket;

    #[test]
    fn none_is_started_that_would_have_nothing_to_carry() {
        let client = Client::new(Path::new("/nonexistent/engine.sock"), true);
        let link = || "ttxnone".to_owned();
        let open = Step::Open { link: link(), socket: Socket { source: "127.0.0.1".parse().unwrap(), port: 8285 } };
        let check = |steps: Vec<Step>, may_start: bool, wanted: Result<(), &str>| {
            let said = client.apply(steps, &[], may_start).map(drop).map_err(|error| error.to_string());
            match wanted {
                Ok(()) => assert_eq!(said, Ok(())),
                Err(part) => assert!(said.as_ref().is_err_and(|error| error.contains(part)), "{said:?}"),
            }
        };
        assert!(client.read().unwrap().is_empty());
        check(vec![open.clone()], true, Err("there is no device ttxnone"));
        check(vec![open], false, Err("engine.sock"));
        check(vec![Step::Close { link: link() }], false, Ok(()));
        assert!(!client.succeed().unwrap());
    }
}
