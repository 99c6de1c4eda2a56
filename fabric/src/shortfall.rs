//! Why packets to a peer do not go as the configuration asks, as it is told.

use std::fmt;

use tartan_model::{Condition, FabricMode, Family};

use crate::census::Member;
use crate::choose::{Choice, Common};
use crate::{Instance, Peer, fabric_of};

/// Packets to a peer go, and in clear.
pub(crate) const UNENCRYPTED: &str = "Unencrypted";

/// Why packets of a family do not go as the configuration asks, unless time will mend it.
pub(crate) fn shortfall(
    common: &Common,
    name: &str,
    member: &Member,
    hears: &[(Instance, Peer<'_>)],
    family: Family,
    choice: &Choice,
) -> Option<Condition> {
    let node = &common.node;
    // A node without pods of a family has nobody who would miss it.
    node.fabric_addresses.get(family)?;
    // Of a word that is not understood that is said already.
    if common.config.fabric == FabricMode::None || member.unclear.is_some() {
        return None;
    }
    let now = fmt::from_fn(|out| match choice.used {
        Some(used) => write!(out, "{used} goes on carrying packets there"),
        None => out.write_str("no route leads there"),
    });
    let condition = |message: String, fix: &str| Condition {
        about: format!("Node/{name}"),
        field: "NetworkConfig spec.fabric".into(),
        reason: "NoCommonFabric",
        message: format!("{message}; {now}"),
        fix: fix.into(),
    };
    let Some(target) = choice.target else {
        if common.config.encrypts_by() == Some(FabricMode::Ipsec) && common.node.ipsec.iter().next().is_none() {
            let without = "without a secret of the cluster nothing is encrypted by ipsec";
            return match choice.used {
                Some(used) if used.is_encrypted() => None,
                Some(_) => Some(unencrypted(name, &format!("{without}; {now}"))),
                None => Some(condition(
                    format!("{without}, and no other way leads there"),
                    "see the condition SecretMissing",
                )),
            };
        }
        let message = format!("{name} and {} have no address family in common that spec.underlay allows", node.name);
        return Some(condition(message, "give both an address of one family, or change spec.underlay"));
    };
    let in_clear = target.is_encrypted() && choice.used.is_some_and(|used| !used.is_encrypted());
    if let Some((at, peer)) = hears.iter().find(|(at, _)| *at == target) {
        return match fabric_of(at).hop(node, at, peer, family) {
            Err(wrong) => Some(Condition { message: format!("{}; {now}", wrong.message), ..wrong }),
            Ok(_) if in_clear => {
                let missed = match target {
                    Instance::Ipsec { .. } => "answer to echo requests",
                    _ => "handshake",
                };
                Some(unencrypted(name, &format!("there was no {missed} by {target} yet; {now}")))
            }
            Ok(_) => None,
        };
    }
    if in_clear && !member.advert.accepts.is_empty() {
        return Some(unencrypted(name, &format!("{name} does not hear {target}; {now}")));
    }
    // A peer that accepts nothing yet is about to; one that accepts only other things is a matter for its admin.
    let carried = choice.announce.is_some_and(|at| member.accepts().any(|(accepted, _)| accepted == at));
    if carried || member.advert.accepts.is_empty() {
        return None;
    }
    let theirs: Vec<String> = member.advert.accepts.iter().map(|end| end.instance.to_string()).collect();
    let message = format!("{} sends by {target}, but {name} hears only {}", node.name, theirs.join(", "));
    Some(condition(message, "look at the agent there: it has not taken the present configuration, or cannot"))
}

/// What is asked for would encrypt, is blocked, and what stands in for it does not.
pub(crate) fn fallen_back(name: &str, configured: Option<Instance>, choice: &Choice) -> Option<Condition> {
    let blocked = configured.filter(|at| at.is_encrypted() && choice.target != configured)?;
    let used = choice.used.filter(|used| !used.is_encrypted())?;
    Some(unencrypted(name, &format!("{blocked} does not get there; {used} goes on carrying packets there")))
}

fn unencrypted(name: &str, why: &str) -> Condition {
    Condition {
        about: format!("Node/{name}"),
        field: "NetworkConfig spec.encryption".into(),
        reason: UNENCRYPTED,
        message: format!("packets to pods of {name} go in clear: {why}"),
        fix: "if this stays, see that UDP at that port, or ESP, gets through between the two, that with ipsec kernels answer echo \
              requests (icmp_echo_ignore_all is 0), and `tartan status` on that node"
            .into(),
    }
}
