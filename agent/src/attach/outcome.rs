//! The result of an ADD, as the next plugin and the runtime read it.

use serde_json::Value;
use tartan_api::cni::{CniError, CniRequest, Dns, Interface, Ip, Route};
use tartan_datapath::pod::{default_route, gateway, host_link, host_mac, metric};
use tartan_model::{Attachment, Family, World};
use tartan_netstate::claims::FIRST_INTERFACE;
use tartan_netstate::{Key, Netns, Object};

use super::wanted::previous;

/// What ADD prints, in the version that was asked for: what the chain had so far, and this attachment.
pub fn result(world: &World, attachment: &Attachment, request: &CniRequest) -> Result<Value, CniError> {
    let mut success = previous(&request.netconf)?.unwrap_or_default();
    let first = success.interfaces.len();
    let mirror = &world.programmed.mirror;
    let link = Key::Link { ns: Netns::Host, link: host_link(&attachment.id) };
    let mtu = match mirror.get(&link).map(|entry| &entry.object) {
        Some(Object::Link(link)) => Some(link.mtu),
        _ => None,
    };
    success.interfaces.push(Interface {
        name: host_link(&attachment.id).to_string(),
        mac: host_mac(&attachment.id).to_string(),
        mtu,
        ..Interface::default()
    });
    success.interfaces.push(Interface {
        name: attachment.ifname.to_string(),
        mac: attachment.mac.to_string(),
        mtu,
        sandbox: attachment.netns.path.to_string(),
        ..Interface::default()
    });
    for (family, address) in attachment.addresses.iter() {
        let gateway = gateway(family).to_string();
        success.ips.push(Ip {
            address: Family::host_net(*address).to_string(),
            gateway: Some(gateway.clone()),
            interface: Some(first + 1),
        });
        let mut route = Route { dst: family.everything().to_string(), gw: Some(gateway), ..Route::default() };
        if let Some(Object::Route(made)) = mirror.get(&default_route(attachment, family)).map(|entry| &entry.object) {
            route.others.extend(made.mtu.map(|mtu| ("mtu".to_owned(), mtu.into())));
        }
        if *attachment.ifname != *FIRST_INTERFACE {
            route.others.insert("priority".into(), metric(&attachment.ifname).into());
        }
        success.routes.push(route);
    }
    if success.dns == Dns::default() {
        let given = request.given.as_ref().map(|given| &given.dns);
        success.dns = given.filter(|dns| **dns != Dns::default()).unwrap_or(&request.netconf.dns).clone();
    }
    Ok(success.shape(request.version))
}
