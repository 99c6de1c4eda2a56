//! Kinds that are not where they are looked for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tartan_model::Kind;

use super::super::KubernetesStore;
use super::super::client::Client;
use super::super::discovery::{Discovery, Pace};
use super::scripted::{Answer, Scripted};
use super::{BRISK, check, list, said};
use crate::conformance::Watching;

#[tokio::test]
async fn a_kind_that_is_not_installed_is_empty_until_what_is_served_changes() {
    let absent = || [("", not_found()), ("/apis", Answer::with(200, r#"{"groups":[]}"#.into()))];
    let tagged = |code: u16, tag| ("/apis", Answer::Tagged(code, tag));
    let found = [("", Answer::with(200, list(10, "", &[("a", 1)]))), ("resourceVersion=10", Answer::Never)];
    let asked =
        [tagged(304, "\"a\""), ("/apis", Answer::with(500, "{}".into())), tagged(304, "\"a\""), tagged(200, "\"b\"")];
    check(
        "looked for again when something else is served",
        absent().into_iter().chain([tagged(200, "\"a\"")]).chain(absent()).chain(asked).chain(found).collect(),
        &["init", "synced", "init", "synced", "init", "put a 10.1.0.0/16", "synced"],
    )
    .await;
    let says = |text: &str| ("/apis", Answer::with(200, text.into()));
    let found = ("", Answer::with(200, list(10, "", &[])));
    check(
        "without tags by the text of the answer",
        absent().into_iter().chain([says("old")]).chain(absent()).chain([says("old"), says("new"), found]).collect(),
        &["init", "synced", "init", "synced", "init", "synced"],
    )
    .await;
}

fn not_found() -> Answer {
    Answer::with(404, "404 page not found".into())
}

/// Policies of a version that is not read any more would be taken for none.
#[tokio::test]
async fn a_404_is_no_word_for_a_kind_that_is_not_installed() {
    let groups = r#"{"groups":[{"name":"apps","versions":[{"groupVersion":"apps/v1"}]},
        {"name":"projectcalico.org","versions":[{"groupVersion":"projectcalico.org/v2"},{"groupVersion":"projectcalico.org/v4"}]}]}"#;
    let says = |path, text: &str| (path, Answer::with(200, text.into()));
    let has =
        |path, plural: &str| says(path, &format!(r#"{{"resources":[{{"name":"bgppeers"}},{{"name":"{plural}"}}]}}"#));
    let (v2, v4) = ("/apis/projectcalico.org/v2", "/apis/projectcalico.org/v4");
    let began = || [("", not_found()), says("/apis", groups), has(v2, "bgpfilters")];
    let found = || [("", Answer::with(200, list(10, "", &[])))];
    check(
        "another version has it",
        began().into_iter().chain([has(v4, "ippools")]).chain(found()).collect(),
        &["away IPPool: the API server serves ippools as projectcalico.org/v4, and not at", "init", "synced"],
    )
    .await;
    check(
        "no version has it, of one that is listed there is not even a word",
        began()
            .into_iter()
            .chain([(v4, not_found()), ("/apis", Answer::Tagged(200, "\"a\""))])
            .chain(found())
            .collect(),
        &["init", "synced", "init", "synced"],
    )
    .await;
    check(
        "nothing is there at all: no API server",
        [("", not_found()), ("/apis", not_found())].into_iter().chain(found()).collect(),
        &["away IPPool: the API server", "init", "synced"],
    )
    .await;
    let server = Scripted::start(vec![not_found()]).await;
    let mut watching = Watching::of(&KubernetesStore::paced(&server.url(), BRISK).unwrap(), &[Kind::Node]);
    let told = said(&watching.next().await);
    assert!(told.starts_with("away Node: there is no /api/v1/nodes, which every API server has"), "{told}");
}

/// One agent waits for two kinds: one of them asks at a time, however often both give up waiting.
#[tokio::test]
async fn for_many_absent_kinds_one_question_is_asked() {
    let as_before = (0..1000).map(|_| Answer::Tagged(304, "\"a\""));
    let server = Scripted::start([Answer::Tagged(200, "\"a\"")].into_iter().chain(as_before).collect()).await;
    let client = Arc::new(Client::new(&server.url()).unwrap());
    let pace = Pace { at_latest: (Duration::from_millis(300), Duration::from_millis(600)), ..BRISK };
    let discovery = Arc::new(Discovery::new(client, pace));
    let began = Instant::now();
    for _ in 0..2 {
        let discovery = discovery.clone();
        tokio::spawn(async move {
            loop {
                let mark = discovery.mark();
                discovery.changed_since(&mark).await;
            }
        });
    }
    while server.requests().len() < 40 {
        assert!(began.elapsed() < Duration::from_secs(60), "only {} questions", server.requests().len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let requests = server.requests();
    // Two at a time would be done in half that; both give up every 300 ms at most, which may cost a question each.
    let most = 3 + 2 * began.elapsed().as_millis() / 300 + began.elapsed().as_millis() / 20;
    assert!((requests.len() as u128) < most, "{} questions in {:?}", requests.len(), began.elapsed());
    assert!(requests.iter().skip(1).all(|asked| asked.path == "/apis" && asked.known == "\"a\""));
}
