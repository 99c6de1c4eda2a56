//! Tables without their numbers: what two of them mean, and that what stays keeps its number.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use tartan_policy::ir::RuleRef;
use tartan_policy::verdicts::{ANY, Identity, Rows, Tables, Word};

/// Verdict and rule.
type Meaning = (u32, Option<Arc<RuleRef>>);
/// An identity, or any, and a class.
type Place = (Option<Arc<Identity>>, u32);

/// Whether both mean the same.
pub(crate) fn same(one: &Tables, other: &Tables) -> Result<(), String> {
    let numbers = |tables: &Tables| tables.identities.keys().copied().collect::<Vec<_>>();
    equal("identities", &named(one, numbers(one)), &named(other, numbers(other)))?;
    let addresses =
        |tables: &Tables| tables.addresses.iter().map(|(at, n)| (*at, identity(tables, *n))).collect::<Vec<_>>();
    equal("addresses", &addresses(one), &addresses(other))?;
    let ranges = |tables: &Tables| tables.ranges.iter().map(|(at, n)| (*at, identity(tables, *n))).collect::<Vec<_>>();
    equal("ranges", &ranges(one), &ranges(other))?;
    let rules = |tables: &Tables| {
        let mut rules: Vec<RuleRef> = tables.rules.values().map(|rule| RuleRef::clone(rule)).collect();
        rules.sort();
        rules
    };
    equal("rules", &rules(one), &rules(other))?;
    let pods = |tables: &Tables| tables.subjects.keys().cloned().collect::<Vec<_>>();
    equal("subjects", &pods(one), &pods(other))?;
    equal("number of sets", &one.sets.len(), &other.sets.len())?;
    for pod in one.subjects.keys() {
        let set = |tables: &Tables| tables.sets[&tables.subjects[pod]].clone();
        let (a, b) = (set(one), set(other));
        for (a, b) in [(&a.ingress, &b.ingress), (&a.egress, &b.egress)] {
            equal("classes", &a.classes, &b.classes)?;
            equal(&format!("rows of {pod}"), &rows(one, a), &rows(other, b))?;
        }
    }
    Ok(())
}

/// Whether what is there in both has the same number: as it does when time goes on, and when an agent starts anew.
pub(crate) fn numbers_stay(before: &Tables, after: &Tables) -> Result<(), String> {
    let now: BTreeMap<&Identity, u32> = after.identities.iter().map(|(number, it)| (&**it, *number)).collect();
    for (number, identity) in &before.identities {
        match now.get(&**identity) {
            Some(now) if now != number => return Err(format!("{identity:?} was {number} and is {now}")),
            _ => {}
        }
    }
    let now: BTreeMap<&RuleRef, u32> = after.rules.iter().map(|(number, it)| (&**it, *number)).collect();
    for (number, rule) in &before.rules {
        match now.get(&**rule) {
            Some(now) if now != number => return Err(format!("{rule:?} was {number} and is {now}")),
            _ => {}
        }
    }
    Ok(())
}

fn named(tables: &Tables, numbers: Vec<u32>) -> Vec<Option<Arc<Identity>>> {
    let mut all: Vec<_> = numbers.into_iter().map(|number| identity(tables, number)).collect();
    all.sort();
    all
}

fn identity(tables: &Tables, number: u32) -> Option<Arc<Identity>> {
    assert!(number == ANY || tables.identities.contains_key(&number), "{number} stands for nothing");
    tables.identities.get(&number).cloned()
}

fn rows(tables: &Tables, rows: &Rows) -> BTreeMap<Place, (Meaning, Vec<String>)> {
    let meaning = |word: Word| {
        assert!(word.rule() == 0 || tables.rules.contains_key(&word.rule()), "{word:?} rests on no rule");
        (word.0 & Word::VERDICT_BITS, tables.rules.get(&word.rule()).cloned())
    };
    let row = |((number, class), word): (&(u32, u32), &Word)| {
        let residual = rows.residual.get(&(*number, *class));
        let asked = residual.into_iter().flat_map(|list| list.iter());
        let asked = asked.map(|way| format!("{:?} {:?}", way.asks, meaning(way.word))).collect();
        ((identity(tables, *number), *class), (meaning(*word), asked))
    };
    rows.words.iter().map(row).collect()
}

fn equal<T: PartialEq + Debug>(what: &str, one: &T, other: &T) -> Result<(), String> {
    if one == other { Ok(()) } else { Err(format!("{what} differ: {one:#?}\nand {other:#?}")) }
}
