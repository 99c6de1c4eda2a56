//! The store that is a Kubernetes API server.
//!
//! ```text
//!     watch(kinds) ── one task a kind: list, then follow ──┐   (kinds that are not there: discovery.rs)
//!     put, delete ── look, check, write with its version ──┴── one HTTP/2 connection (client.rs)
//! ```
//!
//! Invariants: a list is complete or is begun again, so nothing is dropped by half of one; an outage removes nothing; a
//! write names the version it was decided on, so that of several that expect the same state one wins. What an object
//! holds besides what we know (labels, owners, keys of later versions) stays. A [`Revision`] is the hash of what we
//! read of an object, as in every store: what others change beside it is no change to us and makes no event.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tartan_model::{Kind, Object, ObjectId, Revision, StoreEvent};
use tokio::sync::mpsc;

pub use self::access::AccessError;
use self::client::Client;
use self::discovery::{Discovery, Pace};
use self::write::Writer;
use crate::{BoxFuture, BoxStream, Expect, Store, Word, WriteError};

mod access;
mod backoff;
mod client;
mod diagnosis;
mod discovery;
mod lease;
mod placement;
mod trouble;
mod watch;
mod write;

/// Events that may wait before the watches do: a list is as long as a cluster is large.
const WAITING: usize = 256;

/// A Kubernetes API server. Clones share a connection. Needs a tokio runtime with time and I/O.
#[derive(Clone)]
pub struct KubernetesStore {
    client: Arc<Client>,
    discovery: Arc<Discovery>,
    writer: Arc<Writer>,
}

impl KubernetesStore {
    /// How long the API server may be silent before the store says that it is away.
    pub const NOTICED: Duration = client::NOTICED;

    /// The API server at `place`: empty for the one of the pod we run in, `https://HOST:PORT` for another address of
    /// it (Services may not work yet), else the path of a kubeconfig. Connects when it is first asked something.
    ///
    /// # Errors
    /// There are no credentials there, or they cannot be read.
    pub fn open(place: &str) -> Result<KubernetesStore, AccessError> {
        KubernetesStore::paced(place, Pace::CALM)
    }

    fn paced(place: &str, pace: Pace) -> Result<KubernetesStore, AccessError> {
        let client = Arc::new(Client::new(place)?);
        let discovery = Arc::new(Discovery::new(client.clone(), pace));
        Ok(KubernetesStore { writer: Arc::new(Writer::new(client.clone())), discovery, client })
    }

    /// What the API server has at a path, as JSON, and what its clock says: for what is no object of ours.
    ///
    /// # Errors
    /// It cannot be reached, or does not give that.
    pub async fn look(&self, path: &str) -> Result<(serde_json::Value, Option<SystemTime>), WriteError> {
        let away = |why: &dyn std::fmt::Display| WriteError::Away(why.to_string());
        let (body, date) = self.client.look(path).await.map_err(|trouble| away(&trouble))?;
        Ok((serde_json::from_slice(&body).map_err(|error| away(&error))?, date))
    }

    /// Whether this process leads, of all that ask for the Lease of that name. `me` is different for each of them.
    pub fn lead(&self, namespace: &str, name: &str, me: &str) -> tokio::sync::watch::Receiver<bool> {
        let (leads, led) = tokio::sync::watch::channel(false);
        let [namespace, name, me] = [namespace, name, me].map(str::to_owned);
        tokio::spawn(lease::Candidate { client: self.client.clone(), namespace, name, me }.run(leads));
        led
    }
}

impl Store for KubernetesStore {
    fn watch(&self, kinds: &[Kind]) -> BoxStream<'static, StoreEvent> {
        let (out, events) = mpsc::channel(WAITING);
        for kind in kinds {
            tokio::spawn(watch::follow(self.client.clone(), self.discovery.clone(), *kind, out.clone()));
        }
        Box::pin(watch::Events(events))
    }

    fn put(&self, id: ObjectId, object: Object, expect: Expect) -> BoxFuture<'_, Result<Revision, WriteError>> {
        Box::pin(async move { self.writer.put(&id, &object, &expect).await })
    }

    fn delete(&self, id: ObjectId, expect: Expect) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(async move { self.writer.delete(&id, &expect).await })
    }

    fn tell(&self, about: ObjectId, word: Word) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(async move {
            match word {
                Word::Available(word) => placement::tell(&self.client, &about, &word).await,
                Word::Annotated(word) => placement::annotate(&self.client, &about, &word).await,
                Word::Diagnosis(conditions) => diagnosis::tell(&self.client, &about, &conditions).await,
                Word::Trouble { reason, since } => trouble::tell(&self.client, &about, &reason, &since).await,
            }
        })
    }
}

/// Names an object's source in conditions.
const ORIGIN: &str = "the API server";

/// Where the API server keeps all objects of a kind, of whatever namespace.
fn collection(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => "/api/v1/nodes",
        Kind::NetworkConfig => "/apis/tartan.dev/v1alpha1/networkconfigs",
        Kind::NodeNetwork => "/apis/tartan.dev/v1alpha1/nodenetworks",
        Kind::IpBlock => "/apis/tartan.dev/v1alpha1/ipblocks",
        Kind::IpPool => "/apis/projectcalico.org/v3/ippools",
        Kind::IpReservation => "/apis/projectcalico.org/v3/ipreservations",
        Kind::Namespace => "/api/v1/namespaces",
        Kind::Pod => "/api/v1/pods",
        Kind::ConfigMap => "/api/v1/configmaps",
        Kind::NetworkPolicy => "/apis/networking.k8s.io/v1/networkpolicies",
        Kind::ClusterNetworkPolicy => "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
        Kind::AdminNetworkPolicy => "/apis/policy.networking.k8s.io/v1alpha1/adminnetworkpolicies",
        Kind::BaselineAdminNetworkPolicy => "/apis/policy.networking.k8s.io/v1alpha1/baselineadminnetworkpolicies",
    }
}

/// What the API server is to leave out of a kind, as the beginning of a query: of ConfigMaps, all that are not Flannel's.
fn selector(kind: Kind) -> &'static str {
    match kind {
        Kind::ConfigMap => "fieldSelector=metadata.name%3Dkube-flannel-cfg&",
        _ => "",
    }
}

/// Where an object of that name is made, and its name there.
fn home(id: &ObjectId) -> (String, &str) {
    match (collection(id.kind).rsplit_once('/'), id.name.split_once('/')) {
        (Some((group, plural)), Some((namespace, name))) if id.kind.is_namespaced() => {
            (format!("{group}/namespaces/{namespace}/{plural}"), name)
        }
        _ => (collection(id.kind).to_owned(), &id.name),
    }
}

#[cfg(test)]
mod tests;
