//! The CustomResourceDefinitions of `deploy/`, made of the types of this crate: fields, texts and limits stand there. And
//! the one file that installs them and the agent.
//!
//! `cargo xtask gen` writes them; the test fails while a file is not what the types say.

use std::fs;
use std::path::{Path, PathBuf};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::kinds::{self, Conditions, IPPoolSpec, IPReservationSpec};
use crate::policy::{self, ClusterNetworkPolicySpec};
use crate::tartan::{self, CONFIG_NAME, IPBlockSpec, NetworkConfigSpec, NodeNetworkSpec};

/// Asks for the files to be written.
const WRITE: &str = "TARTAN_GEN";
const HEADER: &str = "# Made by `cargo xtask gen`: definitions of the types in the crate api, the rest of deploy/agent.yaml and operator.yaml.\n";

/// What the operator says of an object.
const ACCEPTED: (&str, &str) = ("Accepted", ".status.conditions[?(@.type==\"Accepted\")].status");

/// An API server asks where a kind of Kubernetes' own groups was agreed on.
const APPROVED: &str = "https://github.com/kubernetes-sigs/network-policy-api/pull/300";

/// What would be a claim on more than a block, or one that others do not meet.
const BLOCK_RULES: [(&str, &str); 2] = [
    (
        "self.metadata.name == self.spec.cidr.replace('.', '-').replace(':', '-').replace('/', '-')",
        "a claim is named after its range, so that two claims on it meet",
    ),
    (
        "cidr(self.spec.cidr).prefixLength() >= (self.spec.cidr.contains(':') ? 116 : 20)",
        "no block is larger than a /20, in IPv6 a /116",
    ),
];

/// What a definition says besides its fields.
struct Kind {
    api_version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    about: &'static str,
    spec: Value,
    status: Option<Value>,
    /// Heading and JSON path of what `kubectl get` shows.
    columns: &'static [(&'static str, &'static str)],
    /// CEL rules on the whole object, and what is wrong where one does not hold.
    rules: Vec<(String, String)>,
}

#[test]
fn the_definitions_are_current() {
    let ours = definitions(&[network_config(), node_network(), ip_block()]);
    let [agent, operator] = ["agent.yaml", "operator.yaml"].map(|file| fs::read_to_string(deploy(file)).unwrap());
    check("tartan.yaml", &format!("{ours}---\n{agent}---\n{operator}"));
    check("crds.yaml", &ours);
    check("pool-crds.yaml", &definitions(&[ip_pool(), ip_reservation()]));
    check("policy-crds.yaml", &definitions(&[cluster_network_policy()]));
}

fn network_config() -> Kind {
    Kind {
        api_version: tartan::API_VERSION,
        kind: "NetworkConfig",
        plural: "networkconfigs",
        short: &["netconf"],
        about: "The configuration of the cluster's network.",
        spec: schema::<NetworkConfigSpec>(),
        status: Some(schema::<Conditions>()),
        columns: &[("Fabric", ".spec.fabric"), ACCEPTED, ("Age", ".metadata.creationTimestamp")],
        rules: vec![(
            format!("self.metadata.name == '{CONFIG_NAME}'"),
            format!("a cluster has one network: name it {CONFIG_NAME}"),
        )],
    }
}

fn node_network() -> Kind {
    Kind {
        api_version: tartan::API_VERSION,
        kind: "NodeNetwork",
        plural: "nodenetworks",
        short: &["nodenet"],
        about: "What a node tells its peers and the cluster about itself. Written by its agent.",
        spec: schema::<NodeNetworkSpec>(),
        status: Some(schema::<Conditions>()),
        columns: &[
            ("Addresses", ".spec.addresses"),
            ("Pods", ".spec.blocks"),
            ("MTU", ".spec.mtu"),
            ("Version", ".spec.version"),
            ("Problems", ".status.conditions[*].reason"),
        ],
        rules: Vec::new(),
    }
}

fn ip_block() -> Kind {
    Kind {
        api_version: tartan::API_VERSION,
        kind: "IPBlock",
        plural: "ipblocks",
        short: &[],
        about: "The claim of a node on a range of a pool. Written by agents.",
        spec: schema::<IPBlockSpec>(),
        status: None,
        columns: &[("CIDR", ".spec.cidr"), ("Pool", ".spec.pool"), ("Node", ".spec.node")],
        rules: BLOCK_RULES.map(|(rule, message)| (rule.to_owned(), message.to_owned())).to_vec(),
    }
}

fn ip_pool() -> Kind {
    Kind {
        api_version: kinds::CALICO_API_VERSION,
        kind: "IPPool",
        plural: "ippools",
        short: &[],
        about: "Addresses that pods get. For clusters without Calico's own definition.",
        spec: with_others_keys(schema::<IPPoolSpec>()),
        status: Some(schema::<Conditions>()),
        columns: &[("CIDR", ".spec.cidr"), ("Nodes", ".spec.nodeSelector"), ("Disabled", ".spec.disabled"), ACCEPTED],
        rules: Vec::new(),
    }
}

fn ip_reservation() -> Kind {
    Kind {
        api_version: kinds::CALICO_API_VERSION,
        kind: "IPReservation",
        plural: "ipreservations",
        short: &[],
        about: "Addresses that no pod gets. For clusters without Calico's own definition.",
        spec: with_others_keys(schema::<IPReservationSpec>()),
        status: Some(schema::<Conditions>()),
        columns: &[("CIDRs", ".spec.reservedCIDRs"), ACCEPTED],
        rules: Vec::new(),
    }
}

fn cluster_network_policy() -> Kind {
    Kind {
        api_version: policy::CLUSTER_API_VERSION,
        kind: "ClusterNetworkPolicy",
        plural: "clusternetworkpolicies",
        short: &["cnp"],
        about: "What pods may talk to, said for the whole cluster. For clusters without the API's own definition.",
        spec: schema::<ClusterNetworkPolicySpec>(),
        status: Some(schema::<Conditions>()),
        columns: &[("Tier", ".spec.tier"), ("Priority", ".spec.priority"), ("Age", ".metadata.creationTimestamp")],
        rules: Vec::new(),
    }
}

fn definitions(kinds: &[Kind]) -> String {
    let documents = kinds.iter().map(|kind| serde_yaml_ng::to_string(&kind.definition()).unwrap());
    // kubectl reads YAML 1.1, where a bare `off` is a boolean, and no value of an enum of texts.
    documents.collect::<Vec<_>>().join("---\n").replace("- off\n", "- \"off\"\n")
}

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

fn check(file: &str, content: &str) {
    let text = HEADER.to_owned() + content;
    if std::env::var_os(WRITE).is_some() {
        fs::write(deploy(file), &text).unwrap();
    }
    let there = fs::read_to_string(deploy(file)).unwrap_or_default();
    assert!(there == text, "deploy/{file} is not what it is made of: run `cargo xtask gen`");
}

fn schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let mut schema: Value = Schema::into(settings.into_generator().into_root_schema_for::<T>());
    structural(&mut schema);
    schema
}

/// Calico's objects hold keys that we do not act on; they stay.
fn with_others_keys(mut schema: Value) -> Value {
    schema["x-kubernetes-preserve-unknown-fields"] = true.into();
    schema
}

/// What Kubernetes takes of a schema, and does not warn of.
fn structural(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            for unwanted in ["$schema", "title", "nullable", "default", "additionalProperties"] {
                // Values of any name are of a kind that is said.
                if unwanted != "additionalProperties" || !matches!(map.get(unwanted), Some(Value::Object(_))) {
                    map.remove(unwanted);
                }
            }
            let format = map.get("format").and_then(Value::as_str);
            if format.is_some_and(|format| format.starts_with("uint")) {
                map.insert("format".into(), "int64".into());
            }
            // An enumeration of an optional text counts null, which no object of an API server holds.
            if let Some(Value::Array(words)) = map.get_mut("enum") {
                words.retain(|word| !word.is_null());
            }
            for (key, value) in map {
                match value {
                    // A property may have any name.
                    Value::Object(named) if key == "properties" => named.values_mut().for_each(structural),
                    value => structural(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(structural),
        _ => {}
    }
}

impl Kind {
    fn definition(&self) -> Value {
        let (group, version) = self.api_version.split_once('/').expect("kinds of ours are in a group");
        let singular = self.kind.to_lowercase();
        let column = |(name, path): &(&str, &str)| {
            let kind = match *path {
                ".metadata.creationTimestamp" => "date",
                ".spec.mtu" | ".spec.priority" => "integer",
                ".spec.disabled" => "boolean",
                _ => "string",
            };
            json!({"name": name, "type": kind, "jsonPath": path})
        };
        let mut metadata =
            json!({"name": format!("{}.{group}", self.plural), "labels": {"app.kubernetes.io/part-of": "tartan"}});
        if group.ends_with(".k8s.io") {
            metadata["annotations"] = json!({"api-approved.kubernetes.io": APPROVED});
        }
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": metadata,
            "spec": {
                "group": group,
                "scope": "Cluster",
                "names": {"kind": self.kind, "plural": self.plural, "singular": singular, "shortNames": self.short,
                          "listKind": format!("{}List", self.kind)},
                "versions": [{
                    "name": version, "served": true, "storage": true,
                    "additionalPrinterColumns": self.columns.iter().map(column).collect::<Vec<_>>(),
                    "schema": {"openAPIV3Schema": self.schema()},
                }],
            },
        })
    }

    fn schema(&self) -> Value {
        let mut properties = Map::from_iter([("spec".to_owned(), self.spec.clone())]);
        if let Some(status) = &self.status {
            properties.insert("status".into(), status.clone());
        }
        let mut schema = json!({"type": "object", "description": self.about, "properties": properties});
        if !self.rules.is_empty() {
            let rule = |(rule, message): &(String, String)| json!({"rule": rule, "message": message});
            schema["x-kubernetes-validations"] = self.rules.iter().map(rule).collect();
        }
        schema
    }
}
