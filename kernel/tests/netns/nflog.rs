//! What rules report by NFLOG, as far as tests ask.

use std::sync::mpsc;
use std::time::Duration;

use tartan_kernel::nflog::{Listener, Told};
use tartan_netstate::claims::NFLOG_GROUP;

use super::Netns;

/// Listens to a group in a namespace from now on, until the listener is dropped.
pub fn listen(netns: &Netns, group: u16) -> (Listener, mpsc::Receiver<Told>) {
    let (told, reports) = mpsc::channel();
    let listener = netns.run(move || {
        Listener::start(group, move |it| {
            let _ended = told.send(it);
        })
        .unwrap()
    });
    (listener, reports)
}

/// Who listens to our group in one namespace: the marks of packets, in order.
pub struct Reports {
    told: mpsc::Receiver<Told>,
    _listener: Listener,
}

impl Reports {
    /// Listens from now on.
    pub fn of(netns: &Netns) -> Reports {
        let (listener, told) = listen(netns, NFLOG_GROUP);
        Reports { told, _listener: listener }
    }

    /// The mark of the next packet that is reported; none if there is none for a while.
    pub fn next(&self) -> Option<u32> {
        match self.told.recv_timeout(Duration::from_secs(2)).ok()? {
            Told::Packet(report) => {
                assert_ne!(report.mark, 0, "a packet without a mark");
                Some(report.mark)
            }
            Told::Lost => panic!("reports were lost"),
        }
    }
}
