//! The Helm chart in `deploy/chart/`, made of the manifest that `tartan install` prints: the same places vary.
//!
//! Invariant: rendered with its own values, in the namespace of the manifest, the chart is the manifest, object for object,
//! but for the Namespace, which Helm makes, the definitions of others' kinds beside it, and what makes agents anew for a boot
//! file that differs. `cargo xtask gen` writes it; the test fails while a file is not what it is made of.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_yaml_ng::Value;

use super::{CNI_BIN, CNI_CONF, Distribution, IMAGE, MANIFEST, NAMESPACE, STORE, USUAL};

/// Asks for the files to be written.
const WRITE: &str = "TARTAN_GEN";
const HEADER: &str = "# Made by `cargo xtask gen`.\n";
const POOLS: &str = include_str!("../../../deploy/pool-crds.yaml");
const POLICIES: &str = include_str!("../../../deploy/policy-crds.yaml");

const VALUES: &str = r#"# The image of agent and operator; name it in your registry.
image: tartan.dev/tartan:VERSION
# Secrets to pull it with: [{name: x}]
imagePullSecrets: []
# https://HOST:PORT of the API server, where Services do not work before the network does (no kube-proxy yet).
apiServer: ""
# What NetworkConfig `default` says, e.g. {fabric: host-gw}; without any the defaults count, and `kubectl` may make one.
config: {}
# Where the container runtime of the nodes has its plugins and their configuration.
paths:
  cniBin: /opt/cni/bin
  cniConf: /etc/cni/net.d
# Where agents serve their metrics: "[::]:9470" for Prometheus, on every address of the node. Probes ask 127.0.0.1 at that port.
listen: 127.0.0.1:9470
# `error`, `warn`, `info`, `debug` or `trace`.
log: info
operator:
  enabled: true
  replicas: 2
  # Where an operator serves its metrics, as above.
  listen: 127.0.0.1:9471
# IPPools: {NAME: {cidr: 10.244.0.0/16, …}}
pools: {}
"#;

const SCHEMA: &str = r#"{
  "$schema": "http://json-schema.org/draft-07/schema#",
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "image": {"type": "string", "minLength": 1},
    "imagePullSecrets": {"type": "array", "items": {"type": "object", "required": ["name"]}},
    "apiServer": {"type": "string", "pattern": "^(https://[^\" ]+)?$"},
    "config": {"type": "object"},
    "paths": {
      "type": "object",
      "additionalProperties": false,
      "properties": {"cniBin": {"type": "string", "pattern": "^/"}, "cniConf": {"type": "string", "pattern": "^/"}}
    },
    "listen": {"enum": ["127.0.0.1:9470", "0.0.0.0:9470", "[::]:9470"]},
    "log": {"enum": ["error", "warn", "info", "debug", "trace"]},
    "operator": {
      "type": "object",
      "additionalProperties": false,
      "properties": {
        "enabled": {"type": "boolean"},
        "replicas": {"type": "integer", "minimum": 1},
        "listen": {"enum": ["127.0.0.1:9471", "0.0.0.0:9471", "[::]:9471"]}
      }
    },
    "pools": {"type": "object", "additionalProperties": {"type": "object", "required": ["cidr"]}}
  }
}
"#;

const CONFIG: &str = "{{- with .Values.config }}
apiVersion: tartan.dev/v1alpha1
kind: NetworkConfig
metadata:
  name: default
spec:
  {{- toYaml . | nindent 2 }}
{{- end }}
";

const POOL: &str = "{{- range $name, $spec := .Values.pools }}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: {{ $name }}
spec:
  {{- toYaml $spec | nindent 2 }}
{{- end }}
";

const NOTES: &str =
    "Pods get their network once an agent is ready on their node: kubectl -n {{ .Release.Namespace }} get pods

Where Pod Security is enforced by default, the namespace has to allow host network:
  kubectl label namespace {{ .Release.Namespace }} pod-security.kubernetes.io/enforce=privileged

The way back: `tartan uninstall --help`, before `helm uninstall`, which leaves what is in the nodes' kernels.

Helm leaves definitions as they are: before an upgrade, kubectl apply -f crds/tartan.yaml of the new chart.

Before and after: `tartan doctor` on a node.
";

/// Where the template of the agents' pods begins.
const POD_OF_AGENT: &str = "    metadata:\n      labels:\n        app.kubernetes.io/name: tartan-agent\n";
/// An agent reads its boot file once, as it starts.
const BOOT: &str = r#"annotations:
        tartan.dev/boot: "kubernetes:{{ .Values.apiServer }} {{ .Values.listen }} {{ .Values.log }}"
      labels:"#;

/// Every file of the chart, by its path in it.
fn files() -> BTreeMap<String, String> {
    let version = env!("CARGO_PKG_VERSION");
    let chart = format!(
        "apiVersion: v2\nname: tartan\ndescription: One Kubernetes network\ntype: application\nversion: {version}\nappVersion: \"{version}\"\n\
         # From then on the token of an agent says on which node it runs.\nkubeVersion: \">=1.32.0-0\"\n"
    );
    let (definitions, rest): (Vec<&str>, Vec<&str>) =
        documents(MANIFEST).into_iter().partition(|text| kind(text) == "CustomResourceDefinition");
    let (operator, agent): (Vec<&str>, Vec<&str>) =
        rest.into_iter().filter(|text| kind(text) != "Namespace").partition(|text| text.contains("tartan-operator"));
    let mut files = BTreeMap::from([
        ("Chart.yaml".to_owned(), format!("{HEADER}{chart}")),
        ("values.yaml".to_owned(), format!("{HEADER}{}", VALUES.replace("VERSION", version))),
        ("values.schema.json".to_owned(), SCHEMA.to_owned()),
        ("templates/agent.yaml".to_owned(), template(&agent, None)),
        ("templates/operator.yaml".to_owned(), template(&operator, Some("operator.enabled"))),
        // Helm makes them before anything of their kinds, where they are not there: others' own are left alone.
        ("crds/tartan.yaml".to_owned(), plain(&definitions)),
        ("crds/pools.yaml".to_owned(), plain(&documents(POOLS))),
        ("crds/policies.yaml".to_owned(), plain(&documents(POLICIES))),
        ("templates/config.yaml".to_owned(), CONFIG.to_owned()),
        ("templates/pools.yaml".to_owned(), POOL.to_owned()),
        ("templates/NOTES.txt".to_owned(), NOTES.to_owned()),
    ]);
    for distribution in Distribution::value_variants() {
        if let Some(values) = values_for(*distribution) {
            let name = distribution.to_possible_value().expect("each has a name").get_name().to_owned();
            files.insert(format!("for/{name}.yaml"), values);
        }
    }
    files
}

/// What a distribution does otherwise; none: nothing.
fn values_for(distribution: Distribution) -> Option<String> {
    let ways = distribution.ways();
    let mut values = String::new();
    if let Some(address) = ways.api_server {
        values += &format!("apiServer: {address}\n");
    }
    if (ways.cni_bin, ways.cni_conf) != (USUAL.cni_bin, USUAL.cni_conf) {
        values += &format!("paths:\n  cniBin: {}\n  cniConf: {}\n", ways.cni_bin, ways.cni_conf);
    }
    (!values.is_empty()).then(|| format!("{HEADER}# Before this: {}.\n{values}", ways.before))
}

fn documents(text: &str) -> Vec<&str> {
    text.split("---\n").collect()
}

fn kind(document: &str) -> &str {
    document.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap_or_default()
}

/// Documents without the header of the file they are from, under ours.
fn plain(documents: &[&str]) -> String {
    let text = documents.join("---\n");
    let lines = text.lines().filter(|line| !line.starts_with("# Made by ")).map(|line| format!("{line}\n"));
    format!("{HEADER}{}", lines.collect::<String>())
}

/// The documents with what varies in it, all of them only if that value is so.
fn template(documents: &[&str], only_if: Option<&str>) -> String {
    let mut text = documents.join("---\n");
    let pull = "      {{- with .Values.imagePullSecrets }}\n      imagePullSecrets:\n        {{- toYaml . | nindent 8 }}\n      {{- end }}\n";
    for (place, value) in [
        (IMAGE, "image: {{ .Values.image | quote }}".to_owned()),
        (STORE, r#"store: "kubernetes:{{ .Values.apiServer }}""#.to_owned()),
        (CNI_BIN, "{{ .Values.paths.cniBin }}".to_owned()),
        (CNI_CONF, "{{ .Values.paths.cniConf }}".to_owned()),
        (
            "    listen: \"127.0.0.1:9470\"\n",
            "    listen: {{ .Values.listen | quote }}\n    log: {{ .Values.log }}\n".to_owned(),
        ),
        ("replicas: 2\n", "replicas: {{ .Values.operator.replicas }}\n".to_owned()),
        ("--listen=127.0.0.1:9471\n", "--listen={{ .Values.operator.listen }}\n".to_owned()),
        ("      containers:\n", format!("{pull}      containers:\n")),
        (POD_OF_AGENT, POD_OF_AGENT.replacen("labels:", BOOT, 1)),
        (&format!("namespace: {NAMESPACE}"), "namespace: {{ .Release.Namespace }}".to_owned()),
        (&format!("system:serviceaccount:{NAMESPACE}:"), "system:serviceaccount:{{ .Release.Namespace }}:".to_owned()),
    ] {
        text = text.replace(place, &value);
    }
    assert!(!text.contains(NAMESPACE), "a name of the namespace is left: {text}");
    match only_if {
        Some(value) => format!("{HEADER}{{{{- if .Values.{value} }}}}\n{text}{{{{- end }}}}\n"),
        None => format!("{HEADER}{text}"),
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart")
}

#[test]
fn the_chart_is_current() {
    let files = files();
    if std::env::var_os(WRITE).is_some() {
        for (path, text) in &files {
            let path = folder().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
    for (path, text) in &files {
        let there = fs::read_to_string(folder().join(path)).unwrap_or_default();
        assert!(there == *text, "deploy/chart/{path} is not what it is made of: run `cargo xtask gen`");
    }
    let there: Vec<String> =
        list(&folder()).iter().map(|path| path.strip_prefix(folder()).unwrap().display().to_string()).collect();
    assert_eq!(there, files.into_keys().collect::<Vec<_>>(), "what is no part of the chart");
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(list(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

// What Helm does with the few constructs that the chart has.

/// The chart's objects with these values over its own, in that namespace.
fn rendered(values: &str, namespace: &str) -> Vec<Value> {
    let files = files();
    let mut all: Value = serde_yaml_ng::from_str(&files["values.yaml"]).unwrap();
    merge(&mut all, serde_yaml_ng::from_str(values).unwrap());
    let templates = files.iter().filter(|(path, _)| path.starts_with("templates/") && path.ends_with(".yaml"));
    let definitions = files.iter().filter(|(path, _)| path.starts_with("crds/")).map(|(_, text)| text.clone());
    let texts = templates.map(|(_, text)| render(text, &all, namespace)).chain(definitions);
    let objects = texts.flat_map(|text| {
        documents(&text).into_iter().map(|text| serde_yaml_ng::from_str(text).unwrap()).collect::<Vec<Value>>()
    });
    objects.filter(|object| !object.is_null()).collect()
}

fn merge(values: &mut Value, over: Value) {
    match (values, over) {
        (Value::Mapping(there), Value::Mapping(over)) => {
            for (key, value) in over {
                merge(there.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (there, over) => *there = over,
    }
}

/// Line by line: `if`, `with`, `range` and `end` stand alone.
fn render(text: &str, values: &Value, namespace: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    block(&lines, values, namespace, &Scope { dot: Value::Null, variables: BTreeMap::new() })
}

struct Scope {
    dot: Value,
    variables: BTreeMap<&'static str, Value>,
}

fn block(lines: &[&str], values: &Value, namespace: &str, scope: &Scope) -> String {
    let mut out = String::new();
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        let action = line.trim().strip_prefix("{{- ").and_then(|line| line.strip_suffix(" }}"));
        let Some((word, what)) = action.and_then(|action| action.split_once(' ')) else {
            out += &format!("{}\n", filled(line, values, namespace));
            at += 1;
            continue;
        };
        if word == "toYaml" {
            let (what, indent) = what.split_once(" | nindent ").unwrap();
            let value = if what == "." { &scope.dot } else { &scope.variables[what] };
            let indent = " ".repeat(indent.parse().unwrap());
            out += &serde_yaml_ng::to_string(value)
                .unwrap()
                .lines()
                .map(|line| format!("{indent}{line}\n"))
                .collect::<String>();
            at += 1;
            continue;
        }
        let end = end_of(lines, at);
        let inner = &lines[at + 1..end];
        match word {
            "if" | "with" => {
                let value = lookup(values, what);
                if is_true(&value) {
                    out += &block(inner, values, namespace, &Scope { dot: value, variables: BTreeMap::new() });
                }
            }
            "range" => {
                let map = lookup(values, what.strip_prefix("$name, $spec := ").unwrap());
                for (name, spec) in map.as_mapping().unwrap() {
                    let variables = BTreeMap::from([("$name", name.clone()), ("$spec", spec.clone())]);
                    let named: Vec<String> =
                        inner.iter().map(|line| line.replace("{{ $name }}", name.as_str().unwrap())).collect();
                    let named: Vec<&str> = named.iter().map(String::as_str).collect();
                    out += &block(&named, values, namespace, &Scope { dot: Value::Null, variables });
                }
            }
            other => panic!("the chart uses `{other}`, which is not rendered here"),
        }
        at = end + 1;
    }
    out
}

fn end_of(lines: &[&str], from: usize) -> usize {
    let mut open = 0;
    for (at, line) in lines.iter().enumerate().skip(from) {
        let line = line.trim();
        open += i32::from(["{{- if ", "{{- with ", "{{- range "].iter().any(|begin| line.starts_with(begin)));
        open -= i32::from(line == "{{- end }}");
        if open == 0 {
            return at;
        }
    }
    panic!("a block without an end: {}", lines[from]);
}

fn filled(line: &str, values: &Value, namespace: &str) -> String {
    let Some((before, rest)) = line.split_once("{{ ") else { return line.to_owned() };
    let (what, after) = rest.split_once(" }}").unwrap();
    let text = match what.split_once(" | ") {
        None if what == ".Release.Namespace" => namespace.to_owned(),
        None => scalar(&lookup(values, what)),
        Some((what, "quote")) => format!("\"{}\"", scalar(&lookup(values, what))),
        Some((_, other)) => panic!("the chart uses `{other}`, which is not rendered here"),
    };
    format!("{before}{text}{}", filled(after, values, namespace))
}

fn lookup(values: &Value, path: &str) -> Value {
    let keys = path.strip_prefix(".Values.").unwrap_or_else(|| panic!("{path} is no value")).split('.');
    let mut value = values;
    for key in keys {
        value = value.get(key).unwrap_or_else(|| panic!("values.yaml has no {path}"));
    }
    value.clone()
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => panic!("{other:?} is no scalar"),
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(is) => *is,
        Value::Sequence(list) => !list.is_empty(),
        Value::Mapping(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => false,
    }
}

fn parsed(manifest: &str) -> Vec<Value> {
    documents(manifest).into_iter().map(|text| serde_yaml_ng::from_str(text).unwrap()).collect()
}

fn name(object: &Value) -> String {
    format!("{}/{}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap())
}

/// Takes out of the DaemonSet of agents what makes its pods anew when it differs.
fn restarted_by(agents: &mut Value) -> String {
    let metadata = agents["spec"]["template"]["metadata"].as_mapping_mut().unwrap();
    metadata.remove("annotations").unwrap()["tartan.dev/boot"].as_str().unwrap().to_owned()
}

#[test]
fn with_its_own_values_the_chart_is_the_manifest() {
    let mut wanted: BTreeMap<String, Value> =
        parsed(MANIFEST).into_iter().map(|object| (name(&object), object)).collect();
    wanted.remove(&format!("Namespace/{NAMESPACE}")).unwrap();
    for object in rendered("{}", NAMESPACE) {
        let (name, mut object) = (name(&object), object);
        if name.ends_with(".projectcalico.org") || name.ends_with(".policy.networking.k8s.io") {
            continue;
        }
        // The default of the boot file, said out loud.
        if let Some(boot) = object.get_mut("data").and_then(|data| data.get_mut("boot.yaml")) {
            *boot = boot.as_str().unwrap().replace("log: info\n", "").into();
        }
        if name == "DaemonSet/tartan-agent" {
            assert_eq!(restarted_by(&mut object), "kubernetes: 127.0.0.1:9470 info");
        }
        assert_eq!(Some(object), wanted.remove(&name), "{name}");
    }
    assert!(wanted.is_empty(), "missing: {:?}", wanted.keys());
}

#[test]
fn every_value_is_where_it_should_be() {
    let values = "{image: 'r/x:1', imagePullSecrets: [{name: s}], apiServer: 'https://[fd00::1]:6443', config: {fabric: host-gw}, \
                  paths: {cniBin: /a, cniConf: /b}, listen: '[::]:9470', log: debug, operator: {replicas: 1, listen: '[::]:9471'}, \
                  pools: {p: {cidr: 10.9.0.0/16}, q: {cidr: 'fd00::/64'}}}";
    let objects: BTreeMap<String, Value> =
        rendered(values, "elsewhere").into_iter().map(|object| (name(&object), object)).collect();
    let text = |object: &str| serde_yaml_ng::to_string(&objects[object]).unwrap();
    let check = |object: &str, parts: &[&str]| {
        for part in parts {
            assert!(text(object).contains(part), "{part:?} is not in {}", text(object));
        }
    };
    check(
        "DaemonSet/tartan-agent",
        &[
            "boot: kubernetes:https://[fd00::1]:6443 [::]:9470 debug",
            "image: r/x:1",
            "- name: s",
            "path: /a",
            "path: /b",
            "namespace: elsewhere",
        ],
    );
    check("Deployment/tartan-operator", &["image: r/x:1", "- name: s", "replicas: 1", "- --listen=[::]:9471"]);
    check(
        "ConfigMap/tartan-agent",
        &["kubernetes:https://[fd00::1]:6443", "[::]:9470", "log: debug", "cniBin: /a", "cniConf: /b"],
    );
    check("NetworkConfig/default", &["fabric: host-gw"]);
    check("IPPool/p", &["cidr: 10.9.0.0/16"]);
    check("IPPool/q", &["cidr: fd00::/64"]);
    check("ValidatingAdmissionPolicy/tartan-agent", &["system:serviceaccount:elsewhere:tartan-agent"]);
    assert!(!objects.values().any(|object| serde_yaml_ng::to_string(object).unwrap().contains(NAMESPACE)));
    let without = rendered("{operator: {enabled: false}}", NAMESPACE);
    assert!(without.iter().all(|object| !name(object).contains("tartan-operator")), "operator.enabled: false");
}

#[test]
fn distributions_differ_by_values_the_chart_has() {
    for distribution in Distribution::value_variants() {
        let Some(values) = values_for(*distribution) else { continue };
        let objects = rendered(&values, NAMESPACE);
        let manifest = super::manifest(*distribution, None, None).unwrap();
        let wanted = parsed(&manifest).into_iter().find(|object| name(object) == "DaemonSet/tartan-agent");
        let mut got = objects.into_iter().find(|object| name(object) == "DaemonSet/tartan-agent");
        got.as_mut().map(restarted_by).unwrap();
        assert_eq!(got, wanted, "{distribution:?}");
    }
}
