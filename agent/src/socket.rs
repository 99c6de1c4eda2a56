//! The agent's Unix socket: reads requests, hands them to the loop, writes its answers.
//!
//! Invariants: the socket never exists with a mode wider than 0600; only root is answered; no caller, however slow or
//! wrong, holds up another. What a caller was promised and never heard is undone. The loop hears of DELs that were noted
//! while no agent ran before it hears of any caller: an ADD of the same name is a later one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tartan_api::cni::{CniError, CniRequest, Command, code};
use tartan_api::socket::{FrameError, Reply, Request, body_length, decode, encode};
use tartan_model::{Attachment, Config, FabricMode};
use tartan_store::Store;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::counts;
use crate::denied::{self, Names, Reports};
use crate::edit;
use crate::recorded;
use crate::run::Input;
use crate::status::{Outcome, Seen};
use crate::waiting::CniReply;

mod listen;
mod pending;

pub(crate) use listen::remove;

/// How long a caller may take to send its request, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Callers at a time; others wait in the socket's backlog.
const CALLERS: usize = 1024;

/// What an answer needs.
#[derive(Clone)]
struct Asking {
    inbox: mpsc::Sender<Input>,
    store: Arc<dyn Store>,
    reports: Reports,
}

/// Listens on `path`, hands on the DELs that were noted while no agent ran, and answers.
pub fn serve(
    path: &Path,
    state_dir: &Path,
    inbox: mpsc::Sender<Input>,
    store: Arc<dyn Store>,
    reports: Reports,
) -> anyhow::Result<()> {
    let listener = listen::at(path)?;
    let notes = pending::directory(state_dir);
    tokio::spawn(async move {
        // A plugin that saw no listener leaves its note before it looks again: what is not here now comes by socket.
        tokio::spawn(pending::hand_on(&notes, &inbox).await);
        accept(listener, Asking { inbox, store, reports }).await;
    });
    Ok(())
}

async fn accept(listener: UnixListener, asking: Asking) {
    let seats = Arc::new(Semaphore::new(CALLERS));
    loop {
        let seat = seats.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let asking = asking.clone();
                tokio::spawn(async move {
                    asking.connection(stream).await;
                    drop(seat);
                });
            }
            Err(error) => {
                // Out of descriptors: those in use come back.
                warn!("socket: accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Asking {
    async fn connection(self, mut stream: UnixStream) {
        match timeout(PATIENCE, request(&stream)).await {
            Err(_slow) => debug!("socket: a caller did not send its request"),
            Ok(Err(error)) => self.reply(&mut stream, Reply::Error(error)).await.unwrap_or_else(unheard),
            Ok(Ok((Request::Cni(request), netns))) => self.cni(stream, *request, netns).await,
            Ok(Ok((Request::Status, _))) => {
                let result = self.look().await.and_then(|seen| value(&seen.status));
                self.reply(&mut stream, reply(result)).await.unwrap_or_else(unheard);
            }
            Ok(Ok((Request::World, _))) => self.record(stream).await.unwrap_or_else(unheard),
            Ok(Ok((Request::Denied, _))) => self.denied(stream).await.unwrap_or_else(unheard),
            Ok(Ok((Request::Counts, _))) => {
                let result = self.counts().await;
                self.reply(&mut stream, reply(result)).await.unwrap_or_else(unheard);
            }
            Ok(Ok((Request::Apply { source, documents }, _))) => {
                let written = edit::apply(&*self.store, &source, &documents).await;
                self.reply(&mut stream, written_reply(written)).await.unwrap_or_else(unheard);
            }
            Ok(Ok((Request::Set { key, value }, _))) => {
                let result = self.set(&key, |_| value).await;
                self.reply(&mut stream, reply(result)).await.unwrap_or_else(unheard);
            }
            Ok(Ok((Request::Rotate, _))) => {
                let result = self.rotate().await;
                self.reply(&mut stream, reply(result)).await.unwrap_or_else(unheard);
            }
        }
    }

    async fn cni(self, mut stream: UnixStream, mut request: CniRequest, netns: Option<OwnedFd>) {
        if let Err(error) = identify(&mut request, netns.as_ref()) {
            return self.reply(&mut stream, Reply::Error(error)).await.unwrap_or_else(unheard);
        }
        let (command, since) = (request.command, Instant::now());
        let undo = (command == Command::Add).then(|| Attachment::id_of(&request.container, &request.ifname));
        let (back, mut answer) = CniReply::channel();
        if self.inbox.send(Input::Cni(Box::new(request), netns, back)).await.is_err() {
            return self.reply(&mut stream, Reply::Error(ending())).await.unwrap_or_else(unheard);
        }
        let answered = tokio::select! {
            answered = &mut answer => Some(answered.unwrap_or_else(|_| Err(ending()))),
            () = hung_up(&stream) => None,
        };
        let mut outcome = match &answered {
            Some(Ok(_)) => Outcome::Done,
            Some(Err(_)) => Outcome::Refused,
            None => Outcome::Unheard,
        };
        let unheard_success = match answered {
            Some(answered) => {
                let worked = answered.is_ok();
                let unheard = self.reply(&mut stream, reply(answered)).await.is_err();
                if unheard {
                    outcome = Outcome::Unheard;
                }
                unheard && worked
            }
            None => {
                answer.close();
                matches!(answer.try_recv(), Ok(Ok(_)))
            }
        };
        // The loop has ended where nobody takes these: the next agent finds the attachment in its journal.
        if let Some(undo) = undo.filter(|_| unheard_success) {
            let _ended = self.inbox.send(Input::LetGo(vec![undo], oneshot::channel().0)).await;
        }
        let _ended = self.inbox.send(Input::Heard(command, outcome, since.elapsed())).await;
    }

    async fn record(&self, mut stream: UnixStream) -> io::Result<()> {
        let world = match self.ask(Input::Record).await {
            Ok(world) => world,
            Err(error) => return self.reply(&mut stream, Reply::Error(error)).await,
        };
        let (parts, mut texts) = mpsc::channel(1);
        // A world of a hundred thousand pods takes a while to write.
        let writing =
            tokio::task::spawn_blocking(move || recorded::write(&world, |text| parts.blocking_send(text).is_ok()));
        while let Some(text) = texts.recv().await {
            self.reply(&mut stream, Reply::Result(text.into())).await?;
        }
        writing.await?
    }

    /// Tells what is denied until the caller hangs up.
    async fn denied(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut watch = self.reports.watch();
        loop {
            let next = tokio::select! {
                next = watch.next() => next,
                () = hung_up(&stream) => return Ok(()),
            };
            let (Some((report, lost)), Ok(names)) = (next, self.names().await) else {
                return self.reply(&mut stream, Reply::Error(ending())).await;
            };
            // Whose an address is takes a look at every pod.
            let denied = tokio::task::spawn_blocking(move || denied::named(&report, lost, &names)).await?;
            self.reply(&mut stream, self::reply(value(&denied))).await?;
        }
    }

    async fn counts(&self) -> Result<Value, CniError> {
        let names = self.names().await?;
        let unread = |error| CniError::new(code::IO, "the counts cannot be read", format!("{error}"));
        value(&counts::read(names).await.map_err(unread)?)
    }

    /// Gives a key the value that follows from the configuration as it is.
    async fn set(&self, key: &str, value: impl FnOnce(&Config) -> String) -> Result<Value, CniError> {
        let seen = self.look().await?;
        let config = (&*seen.config, seen.config_revision.as_ref());
        let value = value(&seen.config);
        edit::set(&*self.store, config, key, &value).await.map(|written| json!(written)).map_err(not_written)
    }

    /// Has all nodes make themselves new keys for what encrypts.
    async fn rotate(&self) -> Result<Value, CniError> {
        let by = self.look().await?.config.encrypts_by();
        let next = |rotation: u32| rotation.wrapping_add(1).to_string();
        match by {
            Some(FabricMode::Ipsec) => self.set("ipsec.rotation", |config| next(config.ipsec.rotation)).await,
            _ => self.set("wireguard.rotation", |config| next(config.wireguard.rotation)).await,
        }
    }

    async fn look(&self) -> Result<Seen, CniError> {
        self.ask(Input::Look).await
    }

    async fn names(&self) -> Result<Names, CniError> {
        self.ask(Input::Names).await
    }

    /// The loop's answer.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, CniError> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(question(reply)).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())
    }

    async fn reply(&self, stream: &mut UnixStream, reply: Reply) -> io::Result<()> {
        let frame = encode(&reply).or_else(|error| {
            let msg = format!("the answer is {error}");
            encode(&Reply::Error(CniError::new(code::IO, msg, "")))
        });
        let frame = frame.map_err(io::Error::other)?;
        timeout(PATIENCE, stream.write_all(&frame)).await?
    }
}

/// Reads one request, and the descriptor that came with its first bytes.
async fn request(stream: &UnixStream) -> Result<(Request, Option<OwnedFd>), CniError> {
    let caller = stream.peer_cred().map_err(|error| broken(&error))?;
    if caller.uid() != 0 {
        let msg = format!("user {} may not ask the agent", caller.uid());
        return Err(CniError::new(code::BAD_ENVIRONMENT, msg, "only root may"));
    }
    let mut header = [0; 4];
    let netns = fill(stream, &mut header).await.map_err(|error| broken(&error))?;
    let mut body = vec![0; body_length(header).map_err(|error| no_request(&error))?];
    fill(stream, &mut body).await.map_err(|error| broken(&error))?;
    let request = decode(&body).map_err(|error| no_request(&error))?;
    Ok((request, netns))
}

/// Which namespace it is, by the descriptor itself rather than by what the caller says.
fn identify(request: &mut CniRequest, netns: Option<&OwnedFd>) -> Result<(), CniError> {
    let missing = || {
        CniError::new(
            code::BAD_ENVIRONMENT,
            "the pod's network namespace did not come with the request",
            "are the caller and the agent of one release?",
        )
    };
    match (&mut request.netns, netns) {
        (Some(named), Some(fd)) => {
            let stat = nix::sys::stat::fstat(fd).map_err(|errno| broken(&errno.into()))?;
            (named.dev, named.ino) = (stat.st_dev, stat.st_ino);
            Ok(())
        }
        (None, None) if !matches!(request.command, Command::Add | Command::Check) => Ok(()),
        _ => Err(missing()),
    }
}

/// Reads until `bytes` is full.
async fn fill(stream: &UnixStream, mut bytes: &mut [u8]) -> io::Result<Option<OwnedFd>> {
    let mut passed = None;
    while !bytes.is_empty() {
        stream.readable().await?;
        let receive = || Ok(tartan_kernel::passed::receive(stream.as_fd(), bytes)?);
        match stream.try_io(Interest::READABLE, receive) {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((length, fd)) => {
                passed = passed.or(fd);
                bytes = &mut bytes[length..];
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(passed)
}

/// Returns when the caller is gone. A caller that sends more than its request is treated the same.
async fn hung_up(stream: &UnixStream) {
    loop {
        let readable = stream.readable().await;
        match stream.try_read(&mut [0; 1]) {
            Err(error) if readable.is_ok() && error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

fn reply(result: Result<Value, CniError>) -> Reply {
    result.map_or_else(Reply::Error, Reply::Result)
}

fn written_reply(written: Result<Vec<String>, String>) -> Reply {
    reply(written.map(|written| json!(written)).map_err(not_written))
}

fn value<T: serde::Serialize>(value: &T) -> Result<Value, CniError> {
    serde_json::to_value(value).map_err(|error| CniError::new(code::IO, error.to_string(), ""))
}

fn not_written(why: String) -> CniError {
    CniError::new(code::BAD_NETCONF, why, "")
}

fn ending() -> CniError {
    CniError::new(code::TRY_LATER, "the agent is ending", "the same call works once it has started again")
}

fn broken(error: &io::Error) -> CniError {
    let why = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the request ends before its time".to_owned(),
        _ => format!("reading the request: {error}"),
    };
    CniError::new(code::IO, why, "is the caller one of Tartan's programs?")
}

fn no_request(error: &FrameError) -> CniError {
    CniError::new(code::DECODE, error.to_string(), "are the caller and the agent of one release?")
}

fn unheard(error: io::Error) {
    debug!("socket: a caller did not take its answer: {error}");
}

#[cfg(test)]
mod tests;
