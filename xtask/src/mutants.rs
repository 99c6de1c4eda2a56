//! `cargo xtask mutants`: breaks the policy compiler, and the order in which the kernel is told of a change, in one known point
//! after the other, in a copy, and sees that their tests notice.
//!
//! Invariant: the checkout is not touched. A row whose text is not found any more is an error: mend the row.

use crate::command::{self, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// A way to get it wrong.
struct Mutant {
    /// What would be wrong then.
    point: &'static str,
    /// In the sources of its part.
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

const fn mutant(point: &'static str, file: &'static str, from: &'static str, to: &'static str) -> Mutant {
    Mutant { point, file, from, to }
}

/// What is broken, and what has to notice.
struct Part {
    sources: &'static str,
    /// What `cargo test` builds,
    tests: &'static [&'static str],
    /// and which of them run.
    which: &'static [&'static str],
    /// Random histories that are played against each mutant.
    cases: &'static str,
    mutants: &'static [Mutant],
}

const PARTS: [Part; 3] = [
    // The comparisons with the oracle and with the rules asked one by one; not the tables of documents, which would notice
    // anything that dialects do.
    Part {
        sources: "policy/src",
        tests: &["-p", "tartan-policy", "--lib", "--test", "agree"],
        which: &["--skip", "misread", "--skip", "dialect"],
        cases: "100",
        mutants: POLICY,
    },
    Part {
        sources: "datapath/src/nftables/policy",
        tests: &["-p", "tartan-datapath", "--lib"],
        which: &["nftables::policy"],
        cases: "100",
        mutants: REVOKED,
    },
    Part {
        sources: "kernel/src/nft",
        tests: &["-p", "tartan-kernel", "--lib", "--test", "phases"],
        which: &[],
        cases: "40",
        mutants: PHASES,
    },
];

#[rustfmt::skip]
const POLICY: &[Mutant] = &[
    mutant("egress rules without policyTypes do not isolate", "dialect/k8s.rs", "Ok(if has_egress {", "Ok(if false && has_egress {"),
    mutant("a rule without peers is about nobody", "dialect/k8s.rs", "let remote = if peers.is_empty() {", "let remote = if false {"),
    mutant("a port without protocol is not TCP", "dialect/k8s.rs", ".unwrap_or(protocol::TCP)", ".unwrap_or(protocol::UDP)"),
    mutant("endPort is not in the range", "dialect/k8s.rs", "Some(Port::Range(low, high))", "Some(Port::Range(low, high.max(1) - 1))"),
    mutant("a NetworkPolicy does not isolate", "dialect/k8s.rs", "isolates: Some(\"spec.podSelector\".into())", "isolates: None"),
    mutant("Pass accepts", "dialect/cluster.rs", "(\"Pass\", Action::Pass)];\nconst ALLOW", "(\"Pass\", Action::Allow)];\nconst ALLOW"),
    mutant("Baseline comes with Admin", "dialect/cluster.rs", "(\"Baseline\", baseline_tier)", "(\"Baseline\", admin_tier)"),
    mutant("an unknown pod is never denied by labels", "traits.rs", "None if end.entity.may_be_any_pod() => Holds::Maybe", "None if false => Holds::Maybe"),
    mutant("an unknown pod is let in by labels", "traits.rs", "None if end.entity.may_be_any_pod() => Holds::Maybe", "None if end.entity.may_be_any_pod() => Holds::Yes"),
    mutant("except is ignored", "ir.rs", " && !self.except.contain(range)", ""),
    mutant("an exception begins no zone", "ir.rs", "begins.chain(ends)", "begins.chain(ends.take(0))"),
    mutant("of two blocks of one range the last one counts", "dialect/blocks.rs", "both(there.get(), &except)", "except"),
    mutant("what begins to be for a pod here mentions nothing", "verdicts/mod.rs", "(side, sets.policies(side, &out.program))", "(side, Vec::new())"),
    mutant("who is treated unlike before is listed as before", "verdicts/mod.rs", "changed.identities.extend(treated);", "drop(treated);"),
    mutant("pods of the host network are pods", "verdicts/identities.rs", "!pod.host_network && !pod.finished", "!pod.finished"),
    mutant("a pod that has ended keeps its address", "verdicts/identities.rs", "!pod.host_network && !pod.finished", "!pod.host_network"),
    mutant("of two that claim an address, one has it", "verdicts/identities.rs", "Traits::of(if may_be_a_node { Entity::Disputed } else { Entity::UnknownPod })", "Traits::of(if may_be_a_node { Entity::Disputed } else { Entity::World })"),
    mutant("what may be a node is none", "verdicts/identities.rs", "Traits::of(if may_be_a_node { Entity::Disputed } else { Entity::UnknownPod })", "Traits::of(Entity::UnknownPod)"),
    mutant("a namespace's new labels are not seen", "verdicts/identities.rs", "dirty.pods(world, pods_of(world, name));\n        }\n    }\n\n    fn changed_attachments", "let _ = name;\n        }\n    }\n\n    fn changed_attachments"),
    mutant("a new range does not reach known addresses", "verdicts/identities.rs", "dirty.addresses.extend(self.addresses.between(", "let _ = (self.addresses.between("),
    mutant("others' new names of ports are not seen", "verdicts/rows.rs", "!self.names.is_empty() && self.named_now(identities) != self.named", "false"),
    mutant("what may match matches", "verdicts/flatten.rs", "Holds::Maybe => matched.unless_passed(&there),", "Holds::Maybe => matched,"),
    mutant("Pass goes on in its tier", "verdicts/flatten.rs", "Action::Pass => next.clone(),", "Action::Pass => there.clone(),"),
    mutant("what a tier decides, no other tier does", "verdicts/flatten.rs", "lines[*last].tier == lines[at].tier && lines[*last].decides", "lines[*last].decides"),
    mutant("unknown pods are not where labels are looked for", "verdicts/places.rs", "ways.iter_mut().for_each(|way| way.push(Place::Unknown));", ""),
    mutant("pods with other ports share rows", "verdicts/sets.rs", "filter(|(name, ..)| names.contains(name)).cloned().collect();", "filter(|_| false).cloned().collect();"),
    mutant("identities that come are in no selection", "verdicts/selections.rs", "holds => drop(selection.members.insert(*number, holds)),", "_ => {}"),
];

#[rustfmt::skip]
const REVOKED: &[Mutant] = &[
    mutant("rows that lose revoke nothing", "revoked.rs", "        || rows(&before.tables, &after.tables)\n", ""),
    mutant("an address that comes to be somebody else revokes nothing", "revoked.rs", "        || identities(&before.tables, &after.tables)\n", ""),
    mutant("a pod that comes to have other policies revokes nothing", "revoked.rs", "        || subjects(before, after)\n", ""),
    mutant("the first policy revokes nothing", "revoked.rs", "        || (!before.tables.judged && after.tables.judged)\n", ""),
    mutant("only rows of one's own are compared", "revoked.rs", ".or_else(|| maps::word(rows, (ANY, class)))", ""),
    mutant("what goes over to a range is not compared with it", "revoked.rs", "(before.identity(*address), after.identity(*address))", "(before.identity(*address), before.identity(*address))"),
];

#[rustfmt::skip]
const PHASES: &[Mutant] = &[
    mutant("intervals go over at once", "phases.rs", "|course| !course.old.is_empty() && !course.new.is_empty(), |course| &course.between", "|course| !course.old.is_empty() && !course.new.is_empty(), |course| &course.new"),
    mutant("what is between says what will be said at once", "phases.rs", "early.extend(then.iter().map(", "early.extend(soon.iter().map("),
    mutant("what is between goes on saying what was said", "phases.rs", "    exact.extend(soon.iter().map(|(key, word)| made(key.clone(), word.clone())));\n", ""),
    mutant("rows of a new class come when it is in use", "phases.rs", "_ if is_new => Phase::Early,", "_ if is_new => Phase::Late,"),
    mutant("rows of a class that goes, go while it is in use", "phases.rs", "(Op::Delete(..), _) if is_gone => Phase::Late,", "(Op::Delete(..), _) if is_gone => Phase::Early,"),
    mutant("rows of an identity go before its addresses", "phases.rs", "if !self.gains(identity, of) => Phase::Late,", "if !self.gains(identity, of) => Phase::Early,"),
    mutant("who gains an identity finds rows that it has no more", "phases.rs", "self.gaining.contains(&identity) || self.gaining_sets.contains(&set)", "false"),
    mutant("what falls back to a range finds rows that it has no more", "phases.rs", "=> falls = true,", "=> falls = false,"),
    mutant("what anyone may is not said between", "phases.rs", "[side.words(), side.any()].map(", "[side.words()].map("),
    mutant("a packet can tell that it met two states", "phases.rs", "(None, Some((key, now))) if changes =>", "(None, Some((key, now))) if !changes =>"),
    mutant("between is what was, for all that changes", "phases.rs", "if when == When::Before { *old } else { *new }", "*old"),
];

/// Tries every row.
///
/// # Errors
/// The tests fail as they are, a row's text is not found, or the tests notice nothing.
pub(crate) fn run() -> Result<()> {
    let copy = copy()?;
    let (mut missed, mut tried) = (Vec::new(), 0);
    for part in &PARTS {
        if !passes(&copy, part)? {
            return Err(format!("the tests of {} fail as the code is: mend that first", part.sources).into());
        }
        for Mutant { point, file, from, to } in part.mutants {
            let path = copy.join(part.sources).join(file);
            let text = fs::read_to_string(&path)?;
            if !text.contains(from) {
                let file = format!("{}/{file}", part.sources);
                return Err(format!("{file} does not hold `{from}` any more: mend the row `{point}`").into());
            }
            fs::write(&path, text.replacen(from, to, 1))?;
            let start = Instant::now();
            let noticed = !passes(&copy, part)?;
            fs::write(&path, text)?;
            println!(
                "{} after {:.1} s: {point}",
                if noticed { "noticed" } else { "MISSED" },
                start.elapsed().as_secs_f64()
            );
            missed.extend((!noticed).then_some(*point));
        }
        tried += part.mutants.len();
    }
    println!("test result: ok. {} passed; {} failed", tried - missed.len(), missed.len());
    if missed.is_empty() { Ok(()) } else { Err(format!("nothing notices: {}", missed.join(", ")).into()) }
}

/// What git knows of the checkout, beside what cargo builds.
fn copy() -> Result<PathBuf> {
    let copy = command::target_dir().join("mutants");
    let _ = fs::remove_dir_all(&copy);
    for file in
        command::capture(Command::new("git").args(["ls-files"]))?.lines().filter(|file| Path::new(file).exists())
    {
        let to = copy.join(file);
        fs::create_dir_all(to.parent().expect("a file is in a folder"))?;
        fs::copy(file, to)?;
    }
    Ok(copy)
}

/// Whether the tests of the copy pass; one that does not compile proves nothing.
fn passes(copy: &Path, part: &Part) -> Result<bool> {
    let target = command::target_dir().join("mutants-target");
    let cargo = |more: &[&str]| {
        let mut cargo = command::cargo(&["test", "--quiet"]);
        cargo.args(part.tests).args(more);
        // That something fails is all there is to know.
        let settings = [("POLICY_CASES", part.cases), ("POLICY_SHRINKING", "0")];
        cargo.current_dir(copy).env("CARGO_TARGET_DIR", &target).envs(settings);
        cargo
    };
    command::capture(&mut cargo(&["--no-run"]))?;
    Ok(cargo(&[&["--"], part.which].concat()).output()?.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The group runs by name only: what it looks for must not vanish meanwhile.
    #[test]
    fn what_is_broken_is_there() -> Result<()> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("");
        for Part { sources, mutants, .. } in &PARTS {
            for Mutant { point, file, from, .. } in *mutants {
                let text = fs::read_to_string(repository.join(sources).join(file))?;
                assert!(text.contains(from), "{point}: {file} has no `{from}`");
            }
        }
        Ok(())
    }
}
