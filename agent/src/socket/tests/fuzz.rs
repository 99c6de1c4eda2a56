//! The bytes of a connection: from the frame to what the agent would do. Laws: nothing panics; a request that is read
//! is written and read as the same; no decision leaves the ranges of the node or the names the kernel takes.

use std::sync::LazyLock;

use tartan_ipam::Memo;
use tartan_model::World;
use tartan_netstate::LinkName;

use super::*;
use crate::attach::tests::{attached, whole};
use crate::attach::{Decision, decide};

/// Has a pod `here`.
static WORLD: LazyLock<World> = LazyLock::new(|| {
    let mut world = whole(Instant::now());
    attached(&mut world, "here", &json!({}));
    world
});

/// A stored input is a connection's bytes, or, from `{` on, a body that gets its header here.
fn check(bytes: &[u8]) -> String {
    if bytes.starts_with(b"{") {
        return message(bytes);
    }
    let Some((header, body)) = bytes.split_first_chunk::<4>() else { return "no header".into() };
    let length = match body_length(*header) {
        Ok(length) => length,
        Err(error) => return error.to_string(),
    };
    body.get(..length).map_or_else(|| "the request ends before its time".into(), message)
}

fn message(bytes: &[u8]) -> String {
    match decode::<Request>(bytes) {
        Ok(request) => {
            let frame = encode(&request).unwrap();
            assert_eq!(decode::<Request>(&frame[4..]).as_ref(), Ok(&request), "it was written as another");
            done(request)
        }
        Err(error) => error.to_string(),
    }
}

/// What the request comes to.
fn done(request: Request) -> String {
    match request {
        Request::Cni(request) => decided(&request),
        Request::Status => "status".into(),
        Request::World => "world".into(),
        Request::Denied => "denied".into(),
        Request::Counts => "counts".into(),
        Request::Apply { source, documents } => written(edit::apply(&MemoryStore::default(), &source, &documents)),
        Request::Set { key, value } => {
            let seen = (&Config::default(), None);
            written(edit::set(&MemoryStore::default(), seen, &key, &value))
        }
        Request::Rotate => "rotate".into(),
    }
}

fn decided(request: &CniRequest) -> String {
    match decide(&WORLD, &mut Memo::default(), request, Instant::now()) {
        Ok(Decision::Attach(attachment)) => {
            assert!(LinkName::new(&attachment.ifname).is_some(), "{attachment:?}");
            let inside = |ip: &std::net::IpAddr| {
                ["10.244.1.0/26", "fd00:244:0:1::/122"]
                    .iter()
                    .any(|range| range.parse::<ipnet::IpNet>().unwrap().contains(ip))
            };
            assert!(attachment.addresses.iter().all(|(_, address)| inside(address)), "{attachment:?}");
            format!("attach, {} ports", attachment.ports.len())
        }
        Ok(Decision::Detach(ids)) => format!("detach {}", ids.len()),
        Ok(Decision::Check(_)) => "check".into(),
        Ok(Decision::Answer(_)) => "answer".into(),
        Err(error) => error.to_string(),
    }
}

fn written(writing: impl Future<Output = Result<Vec<String>, String>>) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(writing).map_or_else(|error| error, |written| format!("wrote {}", written.len()))
}

#[test]
fn stored_inputs_of_the_socket_keep_the_laws() {
    let outcomes = tartan_fuzz::replay("socket", check);
    let one = |part: &str| outcomes.iter().any(|(_, outcome)| outcome.contains(part));
    for part in [
        "attach, 2 ports",
        "detach",
        "check",
        "answer",
        "status",
        "world",
        "denied",
        "wrote 1",
        "not a message",
        "the most is",
    ] {
        assert!(one(part), "no stored input comes to {part:?}: {outcomes:#?}");
    }
}

#[test]
#[ignore = "runs for a while: the group `fuzz`"]
fn made_inputs_of_the_socket_keep_the_laws() {
    tartan_fuzz::run("socket", check);
}
