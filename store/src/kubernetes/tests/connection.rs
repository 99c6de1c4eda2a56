//! The way to an API server: places that lead to one or do not, and connections that lead to no answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Method;
use tartan_model::Kind;

use super::super::KubernetesStore;
use super::super::access::Access;
use super::super::client::Client;
use super::scripted::{Answer, Scripted};
use super::{LIST, list, said};
use crate::conformance::Watching;

#[tokio::test]
async fn an_api_server_may_be_behind_a_path() {
    let server = Scripted::start(vec![Answer::with(200, list(10, "", &[]))]).await;
    let store = KubernetesStore::open(&format!("{}/clusters/c1/", server.url())).unwrap();
    assert_eq!(said(&Watching::of(&store, &[Kind::IpPool]).next().await), "init");
    assert_eq!(server.asked()[0], format!("/clusters/c1{LIST}"));
}

/// It holds up those that wait behind it once, and not one after the other: leases would run out meanwhile.
#[tokio::test]
async fn one_attempt_to_connect_answers_all_who_wait() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let (address, moment) = (listener.local_addr().unwrap(), Duration::from_millis(200));
    let mut waiting = Vec::new();
    while let Ok(another) = std::net::TcpStream::connect_timeout(&address, moment) {
        waiting.push(another);
    }
    let client = Arc::new(Client::new(&format!("http://{address}")).unwrap());
    let (began, mut asking) = (Instant::now(), tokio::task::JoinSet::new());
    for _ in 0..13 {
        let client = client.clone();
        asking.spawn(async move { client.request(Method::GET, "/", None).await });
    }
    for answer in asking.join_all().await {
        assert!(answer.unwrap_err().to_string().contains("no connection within 5 s"));
    }
    assert!(began.elapsed() < Duration::from_secs(9), "after {:?}", began.elapsed());
}

/// It answers pings, or somebody before it does.
#[tokio::test]
async fn a_connection_that_leads_to_no_answer_is_not_asked_again() {
    let check = async |first: Answer, why: &str| {
        let server = Scripted::start(vec![first, Answer::with(200, "{}".into())]).await;
        let client = Client::new(&server.url()).unwrap();
        let trouble = client.request(Method::GET, "/first", None).await.unwrap_err();
        assert!(trouble.to_string().contains(why), "{trouble}");
        client.request(Method::GET, "/second", None).await.unwrap();
        let connections: Vec<usize> = server.requests().iter().map(|asked| asked.connection).collect();
        assert_eq!(connections, [0, 1], "{why}");
    };
    let late = async {
        // The first asks alone, the others a second later: their connection is the one it left, and not the next.
        let answers = [Answer::Never, Answer::Never, Answer::with(200, "{}".into()), Answer::with(200, "{}".into())];
        let server = Scripted::start(answers.into()).await;
        let client = Client::new(&server.url()).unwrap();
        let second = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            client.request(Method::GET, "/second", None).await.unwrap_err();
        };
        let first = async {
            client.request(Method::GET, "/first", None).await.unwrap_err();
            client.request(Method::GET, "/third", None).await.unwrap();
        };
        tokio::join!(first, second);
        client.request(Method::GET, "/fourth", None).await.unwrap();
        let connections: Vec<usize> = server.requests().iter().map(|asked| asked.connection).collect();
        assert_eq!(connections, [0, 0, 1, 1], "late ones leave the connection that they asked by");
    };
    let one = check(Answer::Never, "no answer for 30 s");
    tokio::join!(one, check(Answer::Half, "half an answer for 30 s"), late);
}

#[test]
fn places_that_lead_nowhere_say_why() {
    let check = |place: &str, wanted: &str| {
        let error = Access::open(place).err().expect(place).to_string();
        assert!(error.contains(wanted), "{place:?}: {error}");
    };
    check("", "KUBERNETES_SERVICE_HOST is not set, so this is no pod");
    check("/no/such/file", "reading /no/such/file: ");
    check("ftp://x", "API server 'ftp://x'");
    check("https://192.0.2.1:6443", "reading /var/run/secrets/kubernetes.io/serviceaccount/ca.crt");
    check("http://", "API server 'http://'");
}

#[test]
fn kubeconfigs_that_lead_nowhere_say_why() {
    let file = std::env::temp_dir().join(format!("tartan-kubeconfig-{}", std::process::id()));
    let check = |text: &str, wanted: &str| {
        std::fs::write(&file, text).unwrap();
        let error = Access::open(file.to_str().unwrap()).err().expect(text).to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    };
    let config = |cluster: &str, user: &str| {
        format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {cluster}}}]\nusers: [{{name: u, user: {user}}}]\n"
        )
    };
    check("a: [", "kubeconfig ");
    check("current-context: x\ncontexts: []\nclusters: []\nusers: []\n", "it names 'x' and does not have it");
    check(&config("{server: 'https://h'}", "{}"), "no certificate authority to know it by");
    check(&config("{server: 'https://h', certificate-authority-data: '%'}", "{}"), "data that is not base64");
    check(&config("{server: 'https://h', certificate-authority: /nowhere}", "{}"), "reading /nowhere");
    let secret = config("{server: 'https://h'}", "{client-certificate-data: '', client-key-data: c2VjcmV0}");
    check(&secret, "the client key is not PEM");
    std::fs::remove_file(file).unwrap();
}
