//! A node whose pods are judged, as policy on the kernel would have it.

use std::net::IpAddr;
use std::sync::Arc;

use tartan_datapath::nftables::Nftables;
use tartan_datapath::nftables::policy::{Mode, Policy};
use tartan_kernel::Kernel;
use tartan_kernel::linux::Linux;
use tartan_model::{Kind, Labels, Namespace, Object as Stored, ObjectId, Pod, PolicyText, Revision, StoreEvent};
use tartan_netstate::{Change, Generation, State, diff};
use tartan_policy::verdicts::{self, Rows, Set, Tables};

use super::node::{Lab, given, lab};

/// Lets app=client reach port 80 of app=server.
pub const CLIENT_TO_80: &str = r#"{"podSelector":{"matchLabels":{"app":"server"}},
    "ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"client"}}}],"ports":[{"port":80},{"port":80,"protocol":"UDP"}]}]}"#;
pub const NOTHING_IN: &str = r#"{"podSelector":{"matchLabels":{"app":"server"}},"policyTypes":["Ingress"]}"#;
/// Selects no pod: everything passes, but packets are asked.
pub const OF_NOBODY: (&str, &str) = ("nobody", r#"{"podSelector":{"matchLabels":{"app":"nobody"}}}"#);
pub const NOTHING_OUT: &str = r#"{"podSelector":{"matchLabels":{"app":"client"}},"policyTypes":["Egress"]}"#;

/// A node whose pods are judged.
pub struct Judged {
    pub lab: Lab,
    pub tables: verdicts::Memo,
    pub tables_now: Tables,
    /// What becomes of each pod's rows for what comes in: no dialect makes some of them yet.
    pub remade: Option<fn(&mut Rows)>,
    pub nftables: Nftables,
    pub policy: Policy,
    pub applied: State,
    pub mode: Mode,
}

/// Two pods, 5 (app=client) and 6 (app=server), under these policies.
pub fn judged(policies: &[(&str, &str)]) -> Judged {
    let (tables, tables_now, nftables, policy, applied) = Default::default();
    let (lab, remade, mode) = (lab(), None, Mode::Enforce);
    let mut judged = Judged { lab, tables, tables_now, remade, nftables, policy, applied, mode };
    let labels: Labels = [("kubernetes.io/metadata.name", "default")].into_iter().collect();
    let namespace = Namespace { name: "default".into(), labels };
    judged.store(Kind::Namespace, "default", Stored::Namespace(namespace.into()));
    for number in [5, 6] {
        judged.pod(number, &[("app", if number == 5 { "client" } else { "server" })]);
    }
    judged.policies(policies);
    judged
}

impl Judged {
    pub fn store(&mut self, kind: Kind, name: &str, object: Stored) {
        let id = ObjectId { kind, name: name.into() };
        self.lab.world.store(StoreEvent::Put(id, object, Revision::from(1)), std::time::Instant::now());
    }

    pub fn store_nothing(&mut self, kind: Kind, name: &str) {
        self.lab.world.store(StoreEvent::Delete(ObjectId { kind, name: name.into() }), std::time::Instant::now());
    }

    pub fn pod(&mut self, number: u8, labels: &[(&str, &str)]) {
        let addresses = [format!("10.244.1.{number}"), format!("fd00:1::{number}")];
        let pod = Pod {
            uid: 0,
            node: "n1".into(),
            labels: labels.iter().copied().collect(),
            service_account: "default".into(),
            addresses: addresses.map(|address| address.parse::<IpAddr>().unwrap()).into(),
            ports: Box::default(),
            host_network: false,
            finished: false,
        };
        self.store(Kind::Pod, &format!("default/p{number}"), Stored::Pod(pod.into()));
    }

    /// These, and no others.
    pub fn policies(&mut self, policies: &[(&str, &str)]) -> Change {
        self.lab.world.policies.clear();
        for (name, spec) in policies {
            let spec: serde_json::Value = serde_json::from_str(spec).expect(spec);
            let kind = if name.starts_with('c') { Kind::ClusterNetworkPolicy } else { Kind::NetworkPolicy };
            let name = if kind == Kind::NetworkPolicy { format!("default/{name}") } else { (*name).to_owned() };
            let text = PolicyText { json: serde_json::json!({ "spec": spec }).to_string().into() };
            self.lab.world.policies.insert(ObjectId { kind, name: name.into() }, text.into());
        }
        self.apply()
    }

    /// Makes the node equal to the plan, in one transaction.
    pub fn apply(&mut self) -> Change {
        let mut tables = verdicts::plan(&mut self.tables, &self.lab.world).tables.clone();
        if let Some(remake) = self.remade {
            let other = |(number, set): (&u32, &Arc<Set>)| {
                let mut set = Set::clone(set);
                remake(&mut set.ingress);
                (*number, Arc::new(set))
            };
            tables.sets = tables.sets.iter().map(other).collect();
        }
        let policy = self.policy.plan(&self.lab.world, &tables, self.mode, &given().between_nodes);
        let mut wanted = self.nftables.plan(&self.lab.world, &given()).clone();
        wanted.merge(policy, &mut Vec::new());
        let change = diff(&self.applied, &wanted, |_| true);
        let ops = change.clone();
        assert_eq!(self.lab.node.change(move || Linux::open().unwrap().apply(&ops)), []);
        self.tables_now = tables;
        self.applied = wanted.clone();
        self.lab.world.programmed.mirror = wanted;
        change
    }

    pub fn generation(&self) -> Generation {
        self.applied.iter().find_map(|(key, _)| Generation::of(key)).unwrap()
    }
}
