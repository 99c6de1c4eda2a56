//! Bad documents, each with what its user is told.

use super::{config_document, document, documents};

/// One bad document: where the fault is, what is said, and what to do.
fn check(text: &str, place: &str, message: &str, fix: &str) {
    let found = documents("bad.yaml", text);
    let [Err(refused)] = found.as_slice() else { panic!("{text}\nwas taken as {found:#?}") };
    let condition = &refused.condition;
    let said = (
        format!("{} {}", condition.about, condition.field).trim_end().to_owned(),
        condition.message.as_str(),
        condition.fix.as_str(),
    );
    assert_eq!(said, (place.to_owned(), format!("bad.yaml:{message}").as_str(), fix), "{text}");
}

#[test]
fn headers() {
    for (text, place, message, fix) in [
        ("kind: Node\n", "bad.yaml metadata.name", "1: metadata.name is missing", "give the object a name"),
        (
            "\n\n- a\n",
            "bad.yaml",
            "3: the document is a list, not a block of keys and values",
            "write a block of keys and values",
        ),
        (
            "hello\n",
            "bad.yaml",
            "1: the document is the text \"hello\", not a block of keys and values",
            "write a block of keys and values",
        ),
        (
            "metadata: {name: a}\n",
            "bad.yaml kind",
            "1: kind is missing",
            "say what the document is, e.g. `kind: IPPool`",
        ),
    ] {
        check(text, place, message, fix);
    }
    for (api_version, kind, name, place, message, fix) in [
        (
            "v1",
            "Pod",
            "a",
            "bad.yaml kind",
            "2: Tartan does not read objects of kind Pod",
            "take it out; Tartan reads Node, NetworkConfig, NodeNetwork, IPPool, IPReservation, IPBlock",
        ),
        (
            "v1",
            "Nodes",
            "a",
            "bad.yaml kind",
            "2: Tartan does not read objects of kind Nodes",
            "write `kind: Node`, if that is what it should be",
        ),
        (
            "projectcalico.org/v1",
            "IPPool",
            "a",
            "IPPool/a apiVersion",
            "1: apiVersion is `projectcalico.org/v1`: IPPool is read as projectcalico.org/v3",
            "write `apiVersion: projectcalico.org/v3`",
        ),
        (
            "v1",
            "Node",
            "A_b",
            "bad.yaml metadata.name",
            "3: metadata.name is `A_b`: a name is 1 to 253 letters in lower case, digits, `-` and `.`, and begins and ends with a letter or digit",
            "choose another name",
        ),
    ] {
        check(&document(api_version, kind, name, ""), place, message, fix);
    }
}

#[test]
fn configurations() {
    let at = |field: &str| format!("NetworkConfig/default {field}").trim_end().to_owned();
    for (spec, field, message, fix) in [
        ("fabrik: vxlan", "spec.fabrik", "5: there is no key spec.fabrik", "did you mean `fabric`?"),
        (
            "colour: red",
            "spec.colour",
            "5: there is no key spec.colour",
            "known here: fabric, vxlan, underlay, underlayMTU, masquerade, nonMasqueradeCIDRs, hostFirewall, nodeAddress, cooldownSeconds, leaseSeconds, drainSeconds",
        ),
        ("fabric: vxlam", "spec.fabric", "5: spec.fabric is `vxlam`: unknown", "did you mean `vxlan`?"),
        ("fabric: ipip", "spec.fabric", "5: spec.fabric is `ipip`: unknown", "write one of vxlan, host-gw"),
        ("fabric: [vxlan]", "spec.fabric", "5: spec.fabric is a list, not a text", "write a text"),
        (
            "masquerade: yes",
            "spec.masquerade",
            "5: spec.masquerade is the text \"yes\", not true or false",
            "write true or false",
        ),
        (
            "vxlan: {vni: 0}",
            "spec.vxlan.vni",
            "5: spec.vxlan.vni is `0`: out of bounds",
            "write a number from 1 to 16777215",
        ),
        (
            "vxlan: {vni: 16777216}",
            "spec.vxlan.vni",
            "5: spec.vxlan.vni is `16777216`: out of bounds",
            "write a number from 1 to 16777215",
        ),
        (
            "vxlan: {vni: -1}",
            "spec.vxlan.vni",
            "5: spec.vxlan.vni is the number -1, not a whole number from 0 to 4294967295",
            "write a whole number from 0 to 4294967295",
        ),
        (
            "vxlan: {port: 0}",
            "spec.vxlan.port",
            "5: spec.vxlan.port is `0`: out of bounds",
            "write a number from 1 to 65535",
        ),
        (
            "vxlan: {port: 70000}",
            "spec.vxlan.port",
            "5: spec.vxlan.port is the number 70000, not a whole number from 0 to 65535",
            "write a whole number from 0 to 65535",
        ),
        ("vxlan: {vnid: 1}", "spec.vxlan.vnid", "5: there is no key spec.vxlan.vnid", "did you mean `vni`?"),
        (
            "vxlan: 7",
            "spec.vxlan",
            "5: spec.vxlan is the number 7, not a block of keys and values",
            "write a block of keys and values",
        ),
        ("underlay: ipv5", "spec.underlay", "5: spec.underlay is `ipv5`: unknown", "did you mean `ipv4`?"),
        (
            "underlayMTU: 1300",
            "spec.underlayMTU",
            "5: spec.underlayMTU is `1300`: out of bounds",
            "write a number from 1350 to 65535 bytes",
        ),
        (
            "{fabric: host-gw, underlayMTU: 1279}",
            "spec.underlayMTU",
            "5: spec.underlayMTU is `1279`: out of bounds",
            "write a number from 1280 to 65535 bytes",
        ),
        (
            "nonMasqueradeCIDRs: [10.0.0.0/8, 10.0.0.0/33]",
            "spec.nonMasqueradeCIDRs[1]",
            "5: spec.nonMasqueradeCIDRs[1] is `10.0.0.0/33`: not an address range",
            "write an address and a prefix length, e.g. 10.244.0.0/16 or fd00::/64",
        ),
        (
            "nonMasqueradeCIDRs: [10.0.0.1/8]",
            "spec.nonMasqueradeCIDRs[0]",
            "5: spec.nonMasqueradeCIDRs[0] is `10.0.0.1/8`: bits are set after the first 8",
            "write 10.0.0.0/8, if that is what is meant",
        ),
        (
            "nonMasqueradeCIDRs: 10.0.0.0/8",
            "spec.nonMasqueradeCIDRs",
            "5: spec.nonMasqueradeCIDRs is the text \"10.0.0.0/8\", not a list",
            "write a list",
        ),
        (
            "hostFirewall: closed",
            "spec.hostFirewall",
            "5: spec.hostFirewall is `closed`: unknown",
            "write one of open, report",
        ),
        (
            "leaseSeconds: 2",
            "spec.leaseSeconds",
            "5: spec.leaseSeconds is `2`: out of bounds",
            "write a number from 3 to 86400 seconds",
        ),
        (
            "drainSeconds: 3601",
            "spec.drainSeconds",
            "5: spec.drainSeconds is `3601`: out of bounds",
            "write a number from 0 to 3600 seconds",
        ),
        (
            "cooldownSeconds: 30s",
            "spec.cooldownSeconds",
            "5: spec.cooldownSeconds is the text \"30s\", not a whole number from 0 to 4294967295",
            "write a whole number from 0 to 4294967295",
        ),
        (
            "nodeAddress: {interface: eth0, canReach: 192.0.2.1}",
            "spec.nodeAddress",
            "5: spec.nodeAddress has interface and canReach: only one of them can choose",
            "keep one, e.g. interface",
        ),
        (
            "nodeAddress: {interface: eth0-of-the-node}",
            "spec.nodeAddress.interface",
            "5: spec.nodeAddress.interface is `eth0-of-the-node`: an interface name is 1 to 15 bytes without `/` and blanks",
            "write a name that `ip link` shows",
        ),
        (
            "nodeAddress: {canReach: 192.0.2.0/24}",
            "spec.nodeAddress.canReach",
            "5: spec.nodeAddress.canReach is `192.0.2.0/24`: not an address",
            "write one address, e.g. 192.0.2.1 or 2001:db8::1",
        ),
        (
            "nodeAddress: {interfaceRegex: 'eth('}",
            "spec.nodeAddress.interfaceRegex",
            "5: spec.nodeAddress.interfaceRegex is `eth(`: found open group without closing ')'",
            "write a regular expression, e.g. ^eth[0-9]+$",
        ),
        ("{fabric: vxlan, fabric: host-gw}", "spec", "5: the key fabric is there twice", "keep one of them"),
        (
            "{fabric: vxlan",
            "",
            "6: did not find expected ',' or '}', while parsing a flow mapping",
            "mend the YAML; indent with blanks, and put texts with `:`, `#`, quotes or brackets in quotes",
        ),
    ] {
        let place = if field.is_empty() { "bad.yaml".to_owned() } else { at(field) };
        check(&config_document(&format!("spec:\n  {spec}")), &place, message, fix);
    }
    check(&config_document("spce: {}"), &at("spce"), "4: there is no key spce", "did you mean `spec`?");
    check(
        &document("tartan.dev/v1alpha1", "NetworkConfig", "mine", ""),
        "NetworkConfig/mine metadata.name",
        "3: metadata.name is `mine`: not the configuration that counts",
        "name it `default`; a cluster has one network",
    );
}

#[test]
fn pools_and_blocks() {
    let sizes = |low: u8, high: u8| format!("write a number from {low} to {high}");
    for (spec, field, message, fix) in [
        (
            "blockSize: 26",
            "spec.cidr",
            "5: spec.cidr is missing",
            "say which range pods get addresses from, e.g. 10.244.0.0/16".to_owned(),
        ),
        (
            "cidr: 10.244.0.0",
            "spec.blockSize",
            "5: 10.244.0.0/32 is smaller than one block of the default spec.blockSize, 26",
            sizes(32, 32),
        ),
        (
            "{cidr: 10.244.0.0/16, blockSize: 19}",
            "spec.blockSize",
            "5: spec.blockSize is `19`: no prefix length of blocks in the ipv4 pool 10.244.0.0/16",
            sizes(20, 32),
        ),
        (
            "{cidr: 10.244.0.0/24, blockSize: 23}",
            "spec.blockSize",
            "5: spec.blockSize is `23`: no prefix length of blocks in the ipv4 pool 10.244.0.0/24",
            sizes(24, 32),
        ),
        (
            "{cidr: 'fd00::/64', blockSize: 26}",
            "spec.blockSize",
            "5: spec.blockSize is `26`: no prefix length of blocks in the ipv6 pool fd00::/64",
            sizes(116, 128),
        ),
        (
            "{cidr: 10.244.0.0/16, blockSize: 256}",
            "spec.blockSize",
            "5: spec.blockSize is the number 256, not a whole number from 0 to 255",
            "write a whole number from 0 to 255".to_owned(),
        ),
        (
            "cidr: 127.0.0.0/8",
            "spec.cidr",
            "5: spec.cidr is `127.0.0.0/8`: loopback, link-local, multicast and unspecified addresses cannot be a pod's",
            "choose a private range, e.g. 10.244.0.0/16 or fd00:10:244::/64".to_owned(),
        ),
        (
            "{cidr: 10.244.0.0/16, nodeSelector: zone = a}",
            "spec.nodeSelector",
            "5: spec.nodeSelector is `zone = a`: at character 6 of the selector: expected `==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`, found `= a`",
            "write it as in `zone == \"a\" && !has(gpu)`; all() is everything".to_owned(),
        ),
    ] {
        let text = document("projectcalico.org/v3", "IPPool", "p", &format!("spec:\n  {spec}"));
        check(&text, &format!("IPPool/p {field}"), message, &fix);
    }
    for (name, spec, field, message, fix) in [
        (
            "mine",
            "cidr: 10.1.0.0/26",
            "metadata.name",
            "3: metadata.name is `mine`: a claim on 10.1.0.0/26 is named 10-1-0-0-26, so that two claims on it meet",
            "name it 10-1-0-0-26",
        ),
        (
            "10-1-0-0-26",
            "{cidr: 10.1.0.0/26}",
            "spec.node",
            "5: spec.node is missing",
            "say which node claims it, or delete the claim",
        ),
        (
            "10-1-0-0-26",
            "{cidr: 10.1.0.0/26, node: a, given: [10.1.1.0/28]}",
            "spec.given[0]",
            "5: spec.given[0] is `10.1.1.0/28`: not inside 10.1.0.0/26",
            "only a part of the block can be given away",
        ),
    ] {
        let text = document("tartan.dev/v1alpha1", "IPBlock", name, &format!("spec:\n  {spec}"));
        check(&text, &format!("IPBlock/{name} {field}"), message, fix);
    }
}

#[test]
fn nodes() {
    for (rest, field, message, fix) in [
        (
            "spec: {podCIDRs: [10.1.0.0/24, nonsense]}",
            "spec.podCIDRs[1]",
            "4: spec.podCIDRs[1] is `nonsense`: not an address range",
            "write an address and a prefix length, e.g. 10.244.0.0/16 or fd00::/64",
        ),
        (
            "status:\n  addresses:\n  - {type: Hostname, address: x}\n  - {type: InternalIP, address: 192.0.2.300}",
            "status.addresses[1].address",
            "7: status.addresses[1].address is `192.0.2.300`: not an address",
            "write one address, e.g. 192.0.2.1 or 2001:db8::1",
        ),
        (
            "status: {addresses: {InternalIP: 192.0.2.1}}",
            "status.addresses",
            "4: status.addresses is a block of keys and values, not a list",
            "write a list",
        ),
    ] {
        check(&document("v1", "Node", "n", rest), &format!("Node/n {field}"), message, fix);
    }
    for (spec, field, message, fix) in [
        (
            "addresses: [192.0.2.1, 192.0.2.2]",
            "spec.addresses[1]",
            "5: spec.addresses[1] is `192.0.2.2`: the second ipv4 address",
            "keep at most one of each family",
        ),
        (
            "accepts: [{instance: a, address: 192.0.2.1, mac: 02:00}]",
            "spec.accepts[0].mac",
            "5: spec.accepts[0].mac is `02:00`: not a MAC address",
            "write six bytes in hex, e.g. 02:00:00:00:00:01",
        ),
    ] {
        let text = document("tartan.dev/v1alpha1", "NodeNetwork", "n", &format!("spec:\n  {spec}"));
        check(&text, &format!("NodeNetwork/n {field}"), message, fix);
    }
}
