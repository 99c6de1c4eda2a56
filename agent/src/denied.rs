//! What policy denies, for those who watch: reports of the kernel, each named when it is told.
//!
//! Invariant: nobody who watches holds up the reader or the loop; who does not keep up is told how many went by.

use std::sync::Arc;

use imbl::OrdMap;
use tartan_api::explain::Denied;
use tartan_kernel::nflog::{Listener, Report, Told};
use tartan_model::World;
use tartan_netstate::claims::NFLOG_GROUP;
use tartan_policy::ir::RuleRef;
use tartan_policy::verdicts::Word;
use tartan_policy::walk::Packet;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{self, Receiver, Sender};
use tracing::warn;

/// Reports that may wait for one who watches.
const WAITING: usize = 1024;

/// The reports, for any number of watchers.
#[derive(Clone)]
pub struct Reports {
    told: Sender<Told>,
    /// None where nothing is heard; the reason is in the log.
    _listener: Option<Arc<Listener>>,
}

/// What reports and counts are named by: a World, and the rules that words number.
pub type Names = (World, OrdMap<u32, Arc<RuleRef>>);

// === impl Reports ===

impl Reports {
    /// Listens to the kernel.
    pub fn listen() -> Reports {
        let (told, _) = broadcast::channel(WAITING);
        let tell = told.clone();
        // Without a watcher nobody is told, which is no error.
        let listener = Listener::start(NFLOG_GROUP, move |it| drop(tell.send(it)));
        let listener = listener.inspect_err(|error| warn!("`tartan flows` will show nothing: {error}")).ok();
        Reports { told, _listener: listener.map(Arc::new) }
    }

    /// Hears only what is sent into it.
    #[cfg(test)]
    pub(crate) fn of(told: Sender<Told>) -> Reports {
        Reports { told, _listener: None }
    }

    /// A watcher from now on.
    pub(crate) fn watch(&self) -> Watch {
        Watch { told: self.told.subscribe(), lost: 0 }
    }
}

/// One who watches.
pub(crate) struct Watch {
    told: Receiver<Told>,
    lost: u64,
}

impl Watch {
    /// The next packet, with how many went by unseen before it; none when there will be no more.
    pub(crate) async fn next(&mut self) -> Option<(Report, u64)> {
        loop {
            match self.told.recv().await {
                Ok(Told::Packet(report)) => return Some((report, std::mem::take(&mut self.lost))),
                Ok(Told::Lost) => self.lost += 1,
                Err(RecvError::Lagged(count)) => self.lost += count,
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

/// As a user reads it.
pub(crate) fn named(report: &Report, lost: u64, (world, rules): &Names) -> Denied {
    let packet =
        Packet { protocol: report.protocol, source_port: report.source_port, destination: report.destination_port };
    let ends = (report.source, report.destination);
    Denied { lost, ..tartan_policy::denied::denied(world, rules, Word(report.mark), ends, &packet) }
}
