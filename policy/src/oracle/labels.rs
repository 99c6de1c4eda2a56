//! meta/v1 LabelSelector, and who is selected.

use std::collections::BTreeMap;

use tartan_api::kinds::{Namespace, Pod};
use tartan_api::policy::LabelSelector;

use super::{Cluster, End, Match, Who};

/// "The result of matchLabels and matchExpressions are ANDed. An empty label selector matches all objects."
/// (k8s.io/apimachinery/pkg/apis/meta/v1/types.go)
pub(super) fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match requirement.operator.as_str() {
                "In" => value.is_some_and(|value| requirement.values.contains(value)),
                // Objects without the label match, too.
                "NotIn" => value.is_none_or(|value| !requirement.values.contains(value)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                other => panic!("{other} is no operator: objects of the oracle are well-formed"),
            }
        })
}

/// "The Kubernetes control plane sets an immutable label kubernetes.io/metadata.name on all namespaces, the value of the
/// label is the namespace name." [concepts]
fn namespace_labels(namespace: &Namespace) -> BTreeMap<String, String> {
    let mut labels = namespace.metadata.labels.clone();
    labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.metadata.name.clone());
    labels
}

impl Cluster {
    /// Whether a pod of which everything is known is selected by the labels of its namespace and by its own.
    pub(super) fn pod_is(&self, pod: &Pod, namespaces: &LabelSelector, pods: &LabelSelector) -> bool {
        let namespace = self.namespace(pod).expect("a pod without one counts as unknown");
        selects(namespaces, &namespace_labels(namespace)) && selects(pods, &pod.metadata.labels)
    }

    /// Whether an end is a pod that is selected. An unknown pod may have any labels (ours).
    pub(super) fn end_is_pod(&self, end: End<'_>, namespaces: &LabelSelector, pods: &LabelSelector) -> Match {
        match end.who {
            Who::Pod(pod) => self.pod_is(pod, namespaces, pods).into(),
            Who::UnknownPod | Who::Disputed => Match::Perhaps,
            Who::Node(_) | Who::World => Match::No,
        }
    }
}

/// Whether an end is an address of a node that is selected.
pub(super) fn end_is_node(end: End<'_>, selector: &LabelSelector) -> Match {
    match end.who {
        Who::Node(node) => selects(selector, &node.metadata.labels).into(),
        Who::Disputed => Match::Perhaps,
        Who::Pod(_) | Who::UnknownPod | Who::World => Match::No,
    }
}
