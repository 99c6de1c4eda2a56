//! The agent: wires the doors to the loop, in the order in which they must start.
//!
//! ```text
//! store ──watch──►┐                      ┌──► kernel thread (mirror, diff, apply)
//! socket ──ask───►│ loop: World → Plan ──┼──► publisher (advert, claims → store)
//! kernel ─report─►┘                      └──► waiting CNI callers
//! ```
//!
//! Invariant: nothing but the loop holds World; nothing in the loop waits for I/O. When the agent dies at any line, the
//! kernel keeps what it has, the journal what was promised, and the next start goes on from both.

pub mod attach;
pub mod edit;
pub mod found;
pub mod http;
pub mod journal;
pub mod metrics;
pub mod plan;
pub mod publish;
pub mod run;
pub mod socket;
pub mod status;
pub mod uninstall;
pub mod waiting;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use futures_core::Stream;
use nix::fcntl::{Flock, FlockArg};
use tartan_api::boot::Boot;
use tartan_kernel::Kernel;
use tartan_kernel::linux::Linux;
use tartan_model::{Kind, StoreEvent, World};
use tartan_store::{FileStore, Store};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::journal::{Journal, Replayed};
use crate::run::{Agent, Input};
use crate::uninstall::Report;

/// Inputs that may wait before those who send them do.
const INBOX: usize = 4096;

/// Runs the agent until SIGTERM or SIGINT. The kernel keeps what it has.
pub fn run(boot: &Boot) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(start(boot))
}

/// Takes back everything of ours; refuses while an agent runs.
pub fn take_back(boot: &Boot) -> Result<Report> {
    let _lock = lock(&boot.state_dir)?;
    let mut kernel = Linux::open().context("opening the kernel's netlink sockets (this needs root)")?;
    uninstall::uninstall(&mut kernel, &boot.state_dir)
}

async fn start(boot: &Boot) -> Result<()> {
    let _lock = lock(&boot.state_dir)?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the kernel's boot id")?;
    let (journal, replayed) = Journal::open(&boot.state_dir.join("journal"), boot_id.trim())?;
    replayed.warnings.iter().for_each(|warning| warn!("{warning}"));

    let (sender, inbox) = mpsc::channel(INBOX);
    let mut kernel = Linux::open().context("opening the kernel's netlink sockets (this needs root)")?;
    let mut world = World::new(Arc::from(boot.node.as_str()), kernel.features());
    remember(&mut world, replayed);
    let kernel = tartan_kernel::thread::spawn(Box::new(kernel), report(&boot.state_dir, sender.clone()))?;

    let store = open_store(&boot.store)?;
    tokio::spawn(listen(store.watch(&Kind::ALL), sender.clone()));
    let publisher = publish::spawn(store.clone());
    let (ready, _) = watch::channel(false);
    socket::serve(&boot.socket, &boot.state_dir, sender.clone(), store)?;
    if let Some(address) = boot.listen {
        http::serve(address, sender.clone()).await?;
    }
    tokio::spawn(stop_on_signal(sender));
    info!("agent of {} started, {} pods from the journal", boot.node, world.attachments.len());
    Agent::new(world, journal, kernel, publisher, ready).run(inbox).await
}

/// What the journal says of this node's pods.
fn remember(world: &mut World, replayed: Replayed) {
    replayed.attachments.into_iter().for_each(|attachment| world.attach(attachment));
    let now = Instant::now();
    for (address, since) in replayed.released {
        world.released.insert(address, now.checked_sub(since).unwrap_or(now));
    }
}

/// One agent a state directory: two would give out the same addresses.
fn lock(state_dir: &Path) -> Result<Flock<fs::File>> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .with_context(|| format!("making stateDir {}", state_dir.display()))?;
    let file = fs::File::create(state_dir.join("lock"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, errno)) => {
            bail!("stateDir {} is in use by another agent ({errno}); stop it first", state_dir.display())
        }
    }
}

fn open_store(url: &str) -> Result<Arc<dyn Store>> {
    match url.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(Arc::new(FileStore::new(path))),
        _ => bail!("store: '{url}' is no store; write file:/path/to/directory"),
    }
}

/// What the kernel thread calls with every report: it notes what sysctls were, then tells the loop.
fn report(state_dir: &Path, sender: mpsc::Sender<Input>) -> impl Fn(tartan_kernel::thread::Applied) + Send + use<> {
    let state_dir = state_dir.to_owned();
    move |applied| {
        if let Err(error) = found::note(&state_dir, &applied.found) {
            error!("{error:#}");
        }
        // The loop has ended: so will this thread.
        let _ended = sender.blocking_send(Input::Kernel(Box::new(applied)));
    }
}

async fn listen(mut events: Pin<Box<dyn Stream<Item = StoreEvent> + Send>>, sender: mpsc::Sender<Input>) {
    while let Some(event) = std::future::poll_fn(|context| events.as_mut().poll_next(context)).await {
        if sender.send(Input::Store(event)).await.is_err() {
            return;
        }
    }
}

async fn stop_on_signal(sender: mpsc::Sender<Input>) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return error!("cannot take signals; SIGKILL ends this agent");
    };
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    let _ended = sender.send(Input::Stop).await;
}
