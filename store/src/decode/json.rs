//! Objects as an API server sends them: JSON, of a kind that is known from where it was asked for.
//!
//! Not through the YAML parser: a list of thousands of Nodes is tens of megabytes.

use serde::de::DeserializeOwned;
use tartan_model::{Condition, Kind, Object, ObjectId};

use super::fault::{self, Fault};
use super::{flannel, node, policy, pool, workload};

/// Reads one object. `origin` names where it is from in conditions.
pub(crate) fn from_json(id: &ObjectId, origin: &str, json: &str) -> Result<Object, Condition> {
    decode(id, json).map_err(|fault| Condition {
        about: id.to_string(),
        message: format!("{origin}: {}", fault.message),
        field: fault.field,
        reason: fault.reason,
        fix: fault.fix,
    })
}

fn decode(id: &ObjectId, json: &str) -> Result<Object, Fault> {
    match id.kind {
        Kind::Node => node::decode(&id.name, &typed(json)?).map(|read| Object::Node(read.into())),
        Kind::NodeNetwork => node::decode_network(&id.name, &typed(json)?).map(Object::NodeNetwork),
        Kind::IpPool => pool::decode(&typed(json)?).map(|read| Object::Pool(read.into())),
        Kind::IpReservation => pool::decode_reservation(&typed(json)?).map(|read| Object::Reservation(read.into())),
        Kind::IpBlock => pool::decode_block(&typed(json)?).map(|read| Object::Block(read.into())),
        Kind::Namespace => workload::decode_namespace(&typed(json)?).map(|read| Object::Namespace(read.into())),
        Kind::Pod => workload::decode_pod(&typed(json)?).map(|read| Object::Pod(read.into())),
        Kind::ConfigMap => flannel::decode(&id.name, &typed(json)?).map(|read| Object::Flannel(read.into())),
        // One small object: YAML reads JSON, and knows the keys that there are.
        Kind::NetworkConfig => super::decode(id, json),
        Kind::NetworkPolicy
        | Kind::ClusterNetworkPolicy
        | Kind::AdminNetworkPolicy
        | Kind::BaselineAdminNetworkPolicy => {
            policy::decode_json(id.kind, typed(json)?).map(|read| Object::Policy(read.into()))
        }
    }
}

pub(super) fn typed<T: DeserializeOwned>(json: &str) -> Result<T, Fault> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    serde_path_to_error::deserialize(&mut deserializer).map_err(fault::from_json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(kind: Kind) -> ObjectId {
        ObjectId { kind, name: "a".into() }
    }

    #[test]
    fn json_is_read_as_yaml_is() {
        for (kind, version, body) in [
            (Kind::Node, "v1", r#""spec":{"podCIDRs":["10.244.1.0/24"]},"status":{"images":[{"names":["x"]}]}"#),
            (Kind::NetworkConfig, "tartan.dev/v1alpha1", r#""spec":{"fabric":"host-gw","vxlan":{"vni":7}}"#),
            (
                Kind::NodeNetwork,
                "tartan.dev/v1alpha1",
                r#""spec":{"addresses":["192.0.2.1"],"mtu":1450,"heartbeat":9}"#,
            ),
            (Kind::IpPool, "projectcalico.org/v3", r#""spec":{"cidr":"10.1.0.0/16","ipipMode":"Always"}"#),
            (Kind::IpReservation, "projectcalico.org/v3", r#""spec":{"reservedCIDRs":["10.1.0.0/28"]}"#),
            (
                Kind::IpBlock,
                "tartan.dev/v1alpha1",
                r#""spec":{"cidr":"10.1.0.0/26","pool":"p","node":"n1","nodeUid":"u"}"#,
            ),
        ] {
            let name = if kind == Kind::NetworkConfig { "default" } else { "a" };
            let name = if kind == Kind::IpBlock { "10-1-0-0-26" } else { name };
            let json = format!(
                r#"{{"apiVersion":"{version}","kind":"{kind}","metadata":{{"name":"{name}","managedFields":[]}},{body}}}"#
            );
            let documents = super::super::documents("the twin", &json);
            let [Ok(yaml)] = documents.as_slice() else { panic!("{documents:?}") };
            assert_eq!(from_json(&yaml.id, "x", &json).as_ref(), Ok(&yaml.object), "{json}");
        }
    }

    #[test]
    fn a_policy_is_taken_whatever_others_wrote_beside_its_spec() {
        let policy = |annotation: &str| {
            let metadata = format!(r#"{{"name":"p","namespace":"ns","annotations":{{"note":"{annotation}"}}}}"#);
            let json = format!(r#"{{"metadata":{metadata},"spec":{{"podSelector":{{}}}},"status":{{}}}}"#);
            from_json(&ObjectId { kind: Kind::NetworkPolicy, name: "ns/p".into() }, "x", &json)
        };
        // Delete, a control of ISO 6429, and no character at all: the YAML parser takes none of them.
        for annotation in ["plain", "\u{7f}", "\u{80}", "\u{ffff}"] {
            let Ok(Object::Policy(policy)) = policy(annotation) else { panic!("{annotation:?}") };
            assert_eq!(&*policy.json, r#"{"spec":{"podSelector":{}}}"#);
        }
    }

    #[test]
    fn built_in_kinds_of_a_list_do_not_say_what_they_are() {
        let node = r#"{"metadata":{"name":"a","uid":"u"},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}"#;
        let Ok(Object::Node(node)) = from_json(&id(Kind::Node), "x", node) else { panic!("a Node") };
        assert_eq!((&*node.uid, node.internal_ips.len()), ("u", 1));
    }

    #[test]
    fn what_is_wrong_is_named_without_a_line() {
        let check = |json: &str, field: &str, message: &str| {
            let condition = from_json(&id(Kind::IpPool), "the API server", json).expect_err(json);
            assert_eq!((condition.field.as_str(), condition.message.as_str()), (field, message));
            assert_eq!(condition.about, "IPPool/a");
        };
        check(
            r#"{"metadata":{},"spec":{"cidr":7}}"#,
            "spec.cidr",
            "the API server: spec.cidr is the number 7, not a text",
        );
        check(r#"{"metadata":{},"spec":{}}"#, "spec.cidr", "the API server: spec.cidr is missing");
        check("{", "", "the API server: EOF while parsing an object");
    }
}
