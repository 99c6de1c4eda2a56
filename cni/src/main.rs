//! `tartan-cni`, the CNI plugin: environment and stdin in, one request to the agent, its answer on stdout.
//!
//! Invariants: it decides nothing and changes nothing in the kernel. Addresses that are another plugin's affair come from
//! there (`ipam.rs`). Results and errors go to stdout, for the runtime;
//! stderr stays empty. DEL succeeds while the agent is down, by a note that the agent finds when it starts.

mod agent;
mod before;
mod input;
mod ipam;
mod netns;
mod spool;

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;
use tartan_api::cni::{CniError, CniRequest, Command, Version, code, supported_versions};
use tartan_api::socket::{MAX_FRAME, Reply, Request};

use crate::agent::Failure;
use crate::input::{Asked, Refused};

/// How long the agent may take. It gives up on an ADD before that, and says why.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long STATUS waits for an agent that is not there or that knows nothing yet. A node whose STATUS fails is not ready,
/// and then none of its pods counts as ready; an upgrade is over sooner. A kubelet gives its runtime 30 s.
const BETWEEN_AGENTS: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let (said, exit) = match run() {
        Ok(Value::Null) => return ExitCode::SUCCESS,
        Ok(result) => (result, ExitCode::SUCCESS),
        Err(Refused { version, error }) => (error.shape(version), ExitCode::FAILURE),
    };
    match writeln!(std::io::stdout().lock(), "{said:#}") {
        Ok(()) => exit,
        // A runtime that does not read the result does not have one.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> Result<Value, Refused> {
    let var = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let command = input::command(&var)?;
    let mut stdin = Vec::new();
    // One byte more than fits, so that a longer text is seen to be one.
    let read = std::io::stdin().lock().take(MAX_FRAME as u64 + 1).read_to_end(&mut stdin);
    read.map_err(|error| Refused::from(CniError::new(code::IO, format!("reading stdin: {error}"), "")))?;
    match input::asked(command, &var, &stdin)? {
        Asked::Version(version) => Ok(supported_versions(&version)),
        Asked::Agent(request) => {
            let version = request.version;
            let answer = match ipam::Delegate::of(&request.netconf, &var, &stdin) {
                Ok(Some(delegate)) => ipam::around(&delegate, *request, call),
                Ok(None) => call(*request),
                // The pod goes all the same.
                Err(error) if request.command == Command::Del => call(*request).and(Err(error)),
                Err(error) => Err(error),
            };
            answer.map_err(|error| Refused { version, error })
        }
    }
}

fn call(request: CniRequest) -> Result<Value, CniError> {
    let netns = match &request.netns {
        Some(named) => Some(netns::open(&named.path)?),
        None => None,
    };
    let (file, request) = match netns {
        Some((file, netns)) => (Some(file), CniRequest { netns: Some(netns), ..request }),
        None => (None, request),
    };
    let command = request.command;
    let socket = request.netconf.socket.clone().unwrap_or_else(|| "/run/tartan/tartan.sock".into());
    let state_dir = request.netconf.state_dir.clone().unwrap_or_else(|| "/var/lib/tartan".into());
    let id = spool::Id { container: request.container.clone(), ifname: request.ifname.clone() };
    let undo = CniRequest { command: Command::Del, netns: None, given: None, ..request.clone() };
    let [request, undo] = [request, undo].map(|request| Request::Cni(Box::new(request)));
    let ask = |request, netns| agent::ask(Path::new(&socket), request, netns, Instant::now() + PATIENCE);
    let answer = match ask(&request, file.as_ref()) {
        answer if command == Command::Status => between_agents(answer, || ask(&request, None), BETWEEN_AGENTS),
        Err(failure) if command == Command::Del && failure.is_down() => {
            Ok(delete_later(Path::new(&state_dir), &id, || ask(&request, file.as_ref()))?)
        }
        // Perhaps only its answer was lost: the interface must not be in the way when the runtime tries again.
        Err(failure @ Failure::Lost(_)) if command == Command::Add => {
            delete_later(Path::new(&state_dir), &id, || ask(&undo, None))?;
            Err(failure)
        }
        answer => answer,
    };
    match answer {
        Ok(Reply::Result(result)) => {
            if command == Command::Del {
                before::let_go(&id.container).map_err(|error| not_let_go(&error))?;
            }
            Ok(result)
        }
        Ok(Reply::Error(error)) => Err(error),
        Err(failure) => Err(no_answer(command, &socket, &failure)),
    }
}

/// What STATUS comes to: the first answer other than that nobody serves pods, or the last one in that time.
#[allow(clippy::disallowed_methods, reason = "who is not there yet tells nobody when he is")]
fn between_agents(
    mut answer: Result<Reply, Failure>,
    mut ask: impl FnMut() -> Result<Reply, Failure>,
    time: Duration,
) -> Result<Reply, Failure> {
    let nobody = |answer: &Result<Reply, Failure>| match answer {
        Ok(Reply::Error(error)) => error.code == code::NOT_AVAILABLE,
        Err(failure) => failure.is_down(),
        Ok(_) => false,
    };
    let start = Instant::now();
    while nobody(&answer) && start.elapsed() < time {
        std::thread::sleep(AGAIN);
        answer = ask();
    }
    answer
}

/// DEL while there is no agent: a note for the next one.
fn delete_later(
    state_dir: &Path,
    id: &spool::Id,
    ask: impl FnOnce() -> Result<Reply, Failure>,
) -> Result<Reply, CniError> {
    let note = spool::leave(state_dir, id);
    // The agent listens first and reads the notes then: one that came up between sees the note or this request.
    match (ask(), note) {
        (Ok(reply), note) => {
            note.into_iter().for_each(spool::Note::take_back);
            Ok(reply)
        }
        (Err(_), Ok(_)) => Ok(Reply::Result(Value::Null)),
        (Err(_), Err(error)) => Err(not_noted(&state_dir.display().to_string(), &error)),
    }
}

fn no_answer(command: Command, socket: &str, failure: &Failure) -> CniError {
    let code = match failure {
        Failure::Garbage(_) => code::IO,
        _ if command == Command::Status => code::NOT_AVAILABLE,
        _ => code::TRY_LATER,
    };
    let fix = match failure {
        Failure::Garbage(_) => "are tartan-cni and the agent of one release?",
        Failure::Slow => "look at the agent's log, and at `tartan status` on this node",
        Failure::Down(_) | Failure::Lost(_) => "is `tartan agent` running on this node, with this `socket`?",
    };
    CniError::new(code, format!("the agent at {socket} {failure}"), fix)
}

fn not_let_go(error: &std::io::Error) -> CniError {
    let msg = format!("what Flannel gave the container cannot be taken back: {error}");
    CniError::new(code::TRY_LATER, msg, "look at /var/lib/cni/networks and /var/lib/cni/flannel on this node")
}

fn not_noted(state_dir: &str, error: &std::io::Error) -> CniError {
    let msg = format!("the agent is down, and DEL cannot be noted in {state_dir}/pending-del: {error}");
    CniError::new(code::TRY_LATER, msg, "start the agent, or make `stateDir` a directory that root can write")
}

impl From<CniError> for Refused {
    /// An error before the version is known.
    fn from(error: CniError) -> Refused {
        Refused { version: Version::NEWEST, error }
    }
}
