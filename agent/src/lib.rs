//! The agent: wires the doors to the loop, in the order in which they must start.
//!
//! ```text
//! store ──watch──►┐                      ┌──► kernel thread (mirror, diff, apply)
//! socket ──ask───►│ loop: World → Plan ──┼──► publisher (advert, claims → store)
//! kernel ─report─►┤                      ├──► snapshot (World → disk; what it may still give out holds claims back)
//! disk ────told──►┤                      └──► waiting CNI callers
//! self-test ─tested►┘
//! ```
//!
//! Invariant: nothing but the loop holds World; nothing in the loop waits for I/O. When the agent dies at any line, the
//! kernel keeps what it has, the journal what was promised, and the next start goes on from both.

pub mod attach;
pub mod cni_files;
pub mod conditions;
mod counts;
pub mod denied;
pub mod edit;
mod engines;
pub mod former_network;
#[cfg(test)]
mod hanging;
mod http;
mod inherited;
pub mod journal;
pub mod leftover;
pub mod metrics;
pub mod operator;
pub mod placement;
pub mod plan;
mod policy;
pub mod publish;
mod ranges;
pub mod recorded;
pub mod refused;
pub mod run;
pub mod secret;
pub mod selftest;
pub mod snapshot;
pub mod socket;
pub mod status;
pub mod sysctls_before;
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
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tartan_api::boot::Boot;
use tartan_engine::client::Client;
use tartan_ipam::Fence;
use tartan_kernel::Kernel;
use tartan_kernel::keys::Keys;
use tartan_kernel::linux::Linux;
use tartan_kernel::thread::Applied;
use tartan_model::{Kind, StoreEvent, World};
use tartan_store::{FileStore, KubernetesStore, Store};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::engines::WithEngines;
use crate::journal::{Journal, Replayed};
use crate::run::{Agent, Input};
use crate::sysctls_before::Noting;
use crate::uninstall::Report;

/// Told of by its end, however that comes, a panic included: the agent cannot do without it.
struct Vital {
    what: &'static str,
    ended: mpsc::UnboundedSender<&'static str>,
}

/// Where this node's key pairs are, in the state directory.
const KEYS: &str = "keys";
/// Inputs that may wait before those who send them do.
const INBOX: usize = 4096;

/// Runs the agent until SIGTERM or SIGINT. The kernel keeps what it has. `holds`: it starts what holds engines' descriptors,
/// where one is wanted and there is none.
pub fn run(boot: &Boot, holds: bool) -> Result<()> {
    // The loop has this thread, and a plan in a large cluster takes it for milliseconds: what talks to others has its own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(start(boot, holds))
}

/// Takes back everything of ours; refuses while an agent runs.
pub fn take_back(boot: &Boot) -> Result<Report> {
    let _lock = lock(&boot.state_dir)?;
    // First, so that no pod is attached to what is about to go.
    cni_files::remove(boot)?;
    let kernel = open_kernel(&boot.state_dir)?;
    let mut kernel = with_engines(kernel, boot, false);
    let report = uninstall::uninstall(&mut kernel, &boot.state_dir)?;
    // What holds engines takes its own along when it ends.
    for socket in [&boot.socket, &engines::socket_beside(&boot.socket)] {
        socket::remove(socket)?;
    }
    Ok(report)
}

fn open_kernel(state_dir: &Path) -> Result<Linux> {
    let kernel = Linux::open().context("opening the kernel's netlink sockets (this needs root)")?;
    Ok(kernel.with_keys_in(&state_dir.join(KEYS)))
}

fn with_engines(kernel: Linux, boot: &Boot, starts: bool) -> WithEngines {
    let engine = Client::new(&engines::socket_beside(&boot.socket), starts);
    WithEngines::new(Box::new(kernel), engine, Keys::of(&boot.state_dir.join(KEYS)))
}

async fn start(boot: &Boot, holds: bool) -> Result<()> {
    let _lock = lock(&boot.state_dir)?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("reading the kernel's boot id")?;
    let kernel = open_kernel(&boot.state_dir)?;
    let kernel = with_engines(kernel, boot, holds);
    let store = open_store(&boot.store)?;
    let (inbox, agent) = assemble(&boot.node, &boot.state_dir, boot_id.trim(), Box::new(kernel), store.clone())?;
    tokio::spawn(secret::keep(inbox.clone(), tartan_kernel::secret::path(&boot.state_dir)));
    // Before anybody can ask for an address.
    let given = former_network::given().unwrap_or_default();
    inbox.send(Input::Given(given.clone())).await.context("the loop has ended")?;
    tokio::spawn(former_network::keep(inbox.clone(), given));
    socket::serve(&boot.socket, &boot.state_dir, inbox.clone(), store, denied::Reports::listen())?;
    if let Some(address) = boot.listen {
        let listener = TcpListener::bind(address).await.with_context(|| format!(
            "listen: cannot bind {address}; another program has it, or the node has no such address. Change `listen` in the boot file"
        ))?;
        let inbox = inbox.clone();
        tokio::spawn(http::serve(listener, move |asked| http::of_agent(inbox.clone(), asked)));
    }
    let _self_test = selftest::start(inbox.clone()).context("starting the thread of the path self-test")?;
    tokio::spawn(cni_files::keep(boot.clone(), inbox.clone()));
    tokio::spawn(stop_on_signal(inbox));
    agent.await
}

/// An agent on any kernel and any store: its inbox, and what to await while it runs. It ends when told to stop, or with
/// an error if a part that it cannot do without has ended.
pub fn assemble(
    node: &str,
    state_dir: &Path,
    boot_id: &str,
    mut kernel: Box<dyn Kernel>,
    store: Arc<dyn Store>,
) -> Result<(mpsc::Sender<Input>, impl Future<Output = Result<()>> + use<>)> {
    let (journal, replayed) = Journal::open(&state_dir.join("journal"), boot_id)?;
    replayed.warnings.iter().for_each(|warning| warn!("{warning}"));
    let (sender, inbox) = mpsc::channel(INBOX);
    let (alive, mut ended) = mpsc::unbounded_channel();

    let mut world = World::new(Arc::from(node), kernel.features());
    remember(&mut world, replayed);
    let snapshot = state_dir.join(snapshot::FILE);
    let fence = recall(&mut world, &snapshot);
    let found = secret::look(&tartan_kernel::secret::path(state_dir));
    world.secret = secret::at_first(&found, &Keys::of(&state_dir.join(KEYS)));
    info!("agent of {node} starts, {} pods from the journal", world.attachments.len());
    let vital = Vital::new("the kernel thread", &alive);
    let kernel = Box::new(Noting::new(kernel, state_dir));
    let kernel = tartan_kernel::thread::spawn(kernel, report(sender.clone(), vital))?;
    let events = store.watch(&Kind::ALL);
    tokio::spawn(Vital::new("the watch of the store", &alive).around(listen(events, to_inbox(sender.clone()))));
    let writes = Arc::<publish::Writes>::default();
    let (publisher, publishing) = publish::publisher(store, writes.clone());
    tokio::spawn(Vital::new("the publisher", &alive).around(publishing));

    let to_loop = sender.clone();
    let vital = Vital::new("the thread of the snapshot", &alive);
    let keeper = snapshot::keeper::spawn(&snapshot, fence, move |told| {
        let _alive = &vital;
        // The loop has ended: so will this thread.
        let _ended = to_loop.blocking_send(Input::Snapshot(told));
    })?;

    let agent = Agent::new(world, journal, kernel, (publisher, writes), keeper).run(inbox);
    Ok((sender, async move {
        tokio::select! {
            biased;
            result = agent => result,
            Some(what) = ended.recv() => bail!("{what} has ended, see above; start the agent again: what is in the kernel goes on"),
        }
    }))
}

/// What the journal says of this node's pods.
fn remember(world: &mut World, replayed: Replayed) {
    replayed.attachments.into_iter().for_each(|attachment| world.attach(attachment));
    let now = Instant::now();
    for (address, since) in replayed.released {
        world.released.insert(address, now.checked_sub(since).unwrap_or(now));
    }
}

/// What the snapshot says of the cluster; and what addresses it gives out.
fn recall(world: &mut World, snapshot: &Path) -> Fence {
    let now = Instant::now();
    match snapshot::load(snapshot, &world.local) {
        Ok(None) => Fence::of(Vec::new()),
        Ok(Some(objects)) => {
            info!("{}: {} objects are known from before", snapshot.display(), objects.len());
            world.recall(objects, now);
            Fence::of(tartan_ipam::plan(&mut tartan_ipam::Memo::default(), world, now).gives.clone())
        }
        Err(refused) => {
            warn!("{refused}");
            Fence::unknown()
        }
    }
}

/// One agent a state directory: two would give out the same addresses.
fn lock(state_dir: &Path) -> Result<Flock<fs::File>> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .with_context(|| format!("making stateDir {}", state_dir.display()))?;
    let file = fs::File::create(state_dir.join("lock"))
        .with_context(|| format!("making the lock file of stateDir {}", state_dir.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => {
            bail!("stateDir {} is in use by another agent; stop that one first", state_dir.display())
        }
        Err((_, errno)) => bail!("locking stateDir {}: {errno}", state_dir.display()),
    }
}

/// The store of that name, as the boot file has it.
///
/// # Errors
/// There is no such store, or no credentials for it.
pub fn open_store(url: &str) -> Result<Arc<dyn Store>> {
    match url.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(Arc::new(FileStore::new(path))),
        Some(("kubernetes", place)) => {
            Ok(Arc::new(KubernetesStore::open(place).context("store: no way to Kubernetes")?))
        }
        _ => bail!("store: '{url}' is no store; write kubernetes: or file:/path/to/directory"),
    }
}

/// What the kernel thread calls with every report.
fn report(sender: mpsc::Sender<Input>, vital: Vital) -> impl Fn(Applied) + Send + use<> {
    move |applied| {
        let _alive = &vital;
        // The loop has ended: so will this thread.
        let _ended = sender.blocking_send(Input::Kernel(Box::new(applied)));
    }
}

fn to_inbox(sender: mpsc::Sender<Input>) -> impl Fn(StoreEvent) -> Pin<Box<dyn Future<Output = bool> + Send>> {
    move |event| {
        let sender = sender.clone();
        Box::pin(async move { sender.send(Input::Store(Box::new(event))).await.is_ok() })
    }
}

/// Passes on what the store says until nobody takes it.
async fn listen<F: Future<Output = bool>>(
    mut events: Pin<Box<dyn Stream<Item = StoreEvent> + Send>>,
    pass_on: impl Fn(StoreEvent) -> F,
) {
    while let Some(event) = std::future::poll_fn(|context| events.as_mut().poll_next(context)).await {
        if let StoreEvent::Away(_, why) = &event {
            warn!("the store is away: {why}; what is known stays");
        }
        if !pass_on(event).await {
            return;
        }
    }
}

async fn stop_on_signal(sender: mpsc::Sender<Input>) {
    if let Err(error) = stopped().await {
        return error!("{error}");
    }
    let _ended = sender.send(Input::Stop).await;
}

/// SIGTERM or SIGINT came.
async fn stopped() -> Result<()> {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        bail!("cannot take signals; SIGKILL ends this program")
    };
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    Ok(())
}

// === impl Vital ===

impl Vital {
    fn new(what: &'static str, ended: &mpsc::UnboundedSender<&'static str>) -> Vital {
        Vital { what, ended: ended.clone() }
    }

    async fn around(self, task: impl Future<Output = ()>) {
        task.await;
    }
}

impl Drop for Vital {
    fn drop(&mut self) {
        // Nobody listens any more once the agent itself ends.
        let _ending = self.ended.send(self.what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_a_state_directory() {
        let dir = std::env::temp_dir().join(format!("tartan-lock-{}", std::process::id()));
        let first = lock(&dir).unwrap();
        let second = lock(&dir).unwrap_err().to_string();
        assert!(second.ends_with("is in use by another agent; stop that one first"), "{second}");
        drop(first);
        lock(&dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}
