//! Whether the API server has come to serve other kinds: asked for all watches at once, by a tag of what it served last;
//! and what it means that a kind is not where we look for it.
//!
//! Invariants: however many kinds are waited for, one request asks; while nothing changes its answer is empty (304). Who
//! takes the mark before it looks for its kind misses no change after that look. A kind is taken for one that is not
//! installed by the API server's own list of what it serves alone: a wrong address says 404 of everything, and objects of
//! a version that we do not read are there all the same.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use super::backoff::spread;
use super::client::{Client, Trouble, unreadable};

const PATH: &str = "/apis";
/// All kinds of all groups in one document (since 1.27); older ones answer with the groups alone.
const FORM: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";

/// How long is waited: at random between two times, so that the questions of a thousand agents are spread.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// Between two questions of one agent.
    pub(super) ask_again: (Duration, Duration),
    /// Whoever waits looks once in that time whatever is said: an old API server's tag does not tell every kind.
    pub(super) at_latest: (Duration, Duration),
}

impl Pace {
    pub(super) const CALM: Pace = Pace {
        ask_again: (Duration::from_secs(20), Duration::from_secs(40)),
        at_latest: (Duration::from_secs(300), Duration::from_secs(600)),
    };
}

/// What was served at some time; none: nobody has asked yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark(Option<String>);

/// All groups of kinds that are served, and in which versions.
#[derive(Deserialize)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    name: String,
    versions: Vec<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    group_version: String,
}

/// The kinds of one version of a group.
#[derive(Deserialize)]
struct Resources {
    resources: Vec<Resource>,
}

/// Named by the plural, as in paths.
#[derive(Deserialize)]
struct Resource {
    name: String,
}

/// What one API server is known to serve.
pub(super) struct Discovery {
    client: Arc<Client>,
    pace: Pace,
    mark: Mutex<Mark>,
    /// Held by who asks next; the others then see what came of it.
    turn: tokio::sync::Mutex<()>,
}

impl Discovery {
    pub(super) fn new(client: Arc<Client>, pace: Pace) -> Discovery {
        Discovery { client, pace, mark: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// To be taken before a look that may find nothing.
    pub(super) fn mark(&self) -> Mark {
        self.mark.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns when it is worth another look: what is served has changed since then, or a long time has passed.
    pub(super) async fn changed_since(&self, mark: &Mark) {
        let Pace { ask_again, at_latest } = self.pace;
        let changed = async {
            loop {
                let _turn = self.turn.lock().await;
                if self.mark() != *mark {
                    return;
                }
                if *mark != Mark::default() {
                    sleep(spread(ask_again.0, ask_again.1)).await;
                }
                if !self.ask().await {
                    sleep(spread(ask_again.0, ask_again.1)).await;
                }
            }
        };
        let _long_since = timeout(spread(at_latest.0, at_latest.1), changed).await;
    }

    /// That a collection which was answered with 404 is of a kind that is not installed, and so is known whole and empty.
    ///
    /// # Errors
    /// Its objects may well be there: every API server has the kind, or this one has it in another version; or it does
    /// not say.
    pub(super) async fn confirm_absent(&self, collection: &str) -> Result<(), Trouble> {
        let mut parts = collection.trim_start_matches('/').split('/');
        let (Some("apis"), Some(group), _version, Some(plural)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            let why = format!("there is no {collection}, which every API server has; is that one's address right?");
            return Err(Trouble::Away(why));
        };
        let served: Groups = self.read(PATH).await?;
        let versions = served.groups.into_iter().filter(|served| served.name == group).flat_map(|it| it.versions);
        for Version { group_version } in versions {
            let Resources { resources } = match self.read(&format!("{PATH}/{group_version}")).await {
                Err(Trouble::Status { code: StatusCode::NOT_FOUND, .. }) => continue,
                resources => resources?,
            };
            if resources.iter().any(|it| it.name == plural) {
                let why = format!(
                    "the API server serves {plural} as {group_version}, and not at {collection}, where this version of Tartan reads them; serve that version too"
                );
                return Err(Trouble::Away(why));
            }
        }
        Ok(())
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Trouble> {
        let document = self.client.request(Method::GET, path, None).await?;
        serde_json::from_slice(&document).map_err(|error| unreadable(path, &error))
    }

    /// Whether there was an answer.
    async fn ask(&self) -> bool {
        let Mark(known) = self.mark();
        let served = match self.client.tagged(PATH, FORM, known.as_deref()).await {
            Ok((Some(tag), _)) => tag,
            Ok((None, body)) => {
                let mut hasher = DefaultHasher::new();
                body.hash(&mut hasher);
                format!("{:x}", hasher.finish())
            }
            Err(Trouble::Status { code: StatusCode::NOT_MODIFIED, .. }) => return true,
            Err(_) => return false,
        };
        *self.mark.lock().unwrap_or_else(PoisonError::into_inner) = Mark(Some(served));
        true
    }
}
