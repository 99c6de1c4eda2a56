//! The transactions in which a change of policy comes into force, one after the other.
//!
//! A packet is judged by several lookups, and the kernel goes over to what is new at one instant for all exact maps, but
//! for intervals (which class a packet has, which identity is around an address) some time later. So no interval leads from
//! what was to what will be. For a while it leads to a number that stands between the two: rows of that say what was said
//! before, until they say, with everything else that is exact, what will be said.
//!
//! ```text
//! rows of what is between, as it was; classes that are new, and their rows    nothing leads there yet
//! intervals lead to what is between                                           where the same is said
//! addresses, sets and rows, those of what is between, too                     at one instant
//! intervals lead to what will be                                              where the same is said
//! rows to which nothing leads any more go; the generation                     no old answer is left to be stamped with it
//! ```
//!
//! That all lookups of a packet are of one instant is what the number of the state is for ([`epoch`]), which changes with
//! each of them.
//!
//! Invariant: whatever changes at once, a packet is judged as before the change or as after it, between any two
//! transactions and while the intervals of one are late. All of them together are the change. (`kernel/tests/phases`)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tartan_netstate::claims::NFT_BETWEEN;
use tartan_netstate::nft::{ElementKey, Nfproto, SetName};
use tartan_netstate::policy::{Element, Row, Side, leads_to, led_to, prefix, ranges};
use tartan_netstate::{Entry, Generation, Key, Object, Op, Owner, State, Step, epoch};

use super::intervals::{self, Interval, Overlap};

/// One transaction.
type Steps = Vec<Step>;
/// What becomes of an object; none: it goes.
type Becomes = (Arc<Key>, Option<Arc<Entry>>);
/// Whose rows, and of which set.
type Of = (Side, u32);
/// Numbers that stand for one, by that one.
type Stand = BTreeMap<u32, Vec<u32>>;

/// What was, or what will be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    After,
}

/// How intervals of some map, or of a set in it, go over.
struct Course {
    map: SetName,
    old: Vec<Interval>,
    new: Vec<Interval>,
    /// What they lead to in between.
    between: Vec<Interval>,
}

/// How all of them go over.
#[derive(Default)]
struct Courses {
    all: Vec<Course>,
    /// What was and what will be the identity around some addresses, and the number between them.
    identities: BTreeMap<(u32, u32), u32>,
    classes: BTreeMap<Of, Classes>,
    /// Identities that addresses come to have, and sets that pods come to have.
    gaining: BTreeSet<u32>,
    gaining_sets: BTreeSet<u32>,
}

/// The classes of a set.
#[derive(Default)]
struct Classes {
    old: BTreeSet<u32>,
    new: BTreeSet<u32>,
    between: BTreeMap<(u32, u32), u32>,
}

/// When a step is done.
enum Phase {
    /// When nothing leads there yet.
    Early,
    Exact,
    /// When nothing leads there any more.
    Late,
    /// With the generation.
    Last,
    /// As its [`Course`] says.
    Course,
}

/// The steps of each transaction. `mirror` is what they begin from; of policy they are all there is to do.
pub fn phases(mirror: &State, steps: Steps) -> Vec<Steps> {
    let mut all = transactions(mirror, steps);
    let mut there = mirror.get_shared(&epoch::element().0).map(|(key, now)| (key.clone(), now.clone()));
    for steps in &mut all {
        let changes = steps.iter().any(|step| step.key().is_of_policy());
        match (steps.iter().find(|step| epoch::is_key(step.key())), &there) {
            (Some(Step::Create(key, new) | Step::Replace { key, new, .. }), _) => {
                there = Some((key.clone(), new.clone()))
            }
            (Some(Step::Delete(..)), _) => there = None,
            (None, Some((key, now))) if changes => {
                steps.push(Step::Replace { key: key.clone(), old: now.clone(), new: now.clone() });
            }
            (None, _) => {}
        }
    }
    all
}

fn transactions(mirror: &State, steps: Steps) -> Vec<Steps> {
    let makes_sets = |step: &Step| match step.key() {
        Key::NftTable => true,
        key @ Key::NftSet { .. } => key.is_of_policy(),
        _ => false,
    };
    // Where policy's sets are made nothing of it is in force that could be half old and half new, unless another build made
    // the others.
    if steps.is_empty() {
        return Vec::new();
    }
    if steps.iter().any(makes_sets) || !steps.iter().any(|step| step.key().is_of_policy()) {
        return vec![steps];
    }
    let mut wanted = mirror.clone();
    steps.iter().filter(|step| step.key().is_of_policy()).for_each(|step| step.apply_to(&mut wanted));
    let courses = Courses::of(mirror, &wanted, &steps);
    let (mut early, mut exact, mut late, mut last) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for step in steps {
        match courses.phase(step.op()) {
            Phase::Early => early.push(becomes(step)),
            Phase::Exact => exact.push(becomes(step)),
            Phase::Late => late.push(becomes(step)),
            Phase::Last => last.push(step),
            Phase::Course => {}
        }
    }
    let [then, soon] =
        [(mirror, When::Before), (&wanted, When::After)].map(|(state, when)| courses.rows_between(state, when));
    early.extend(then.iter().map(|(key, word)| made(key.clone(), word.clone())));
    early.extend(courses.leads(|course| course.old.is_empty(), |course| &course.new));
    let there = courses.leads(|course| !course.old.is_empty() && !course.new.is_empty(), |course| &course.between);
    exact.extend(then.into_keys().filter(|key| !soon.contains_key(key)).map(gone));
    exact.extend(soon.iter().map(|(key, word)| made(key.clone(), word.clone())));
    let back = courses.leads(|course| !course.new.is_empty(), |course| &course.new);
    late.splice(..0, soon.into_keys().map(gone));
    late.extend(courses.leads(|course| course.new.is_empty(), |course| &course.new));
    let mut now = mirror.clone();
    let mut phases: Vec<Steps> =
        [early, there, exact, back, late].into_iter().map(|phase| towards(&mut now, phase)).collect();
    phases[4].extend(last);
    phases.retain(|steps| !steps.is_empty());
    phases
}

fn becomes(step: Step) -> Becomes {
    match step {
        Step::Create(key, new) | Step::Replace { key, new, .. } => (key, Some(new)),
        Step::Delete(key, _) => (key, None),
    }
}

fn made(key: Key, object: Object) -> Becomes {
    (key.into(), Some(Entry { object, owner: Owner::Policy }.into()))
}

fn gone(key: Key) -> Becomes {
    (key.into(), None)
}

/// The steps that make it so.
fn towards(now: &mut State, phase: Vec<Becomes>) -> Steps {
    let mut steps = Vec::new();
    for (key, new) in phase {
        let old = now.get_shared(&key).map(|(_, entry)| entry.clone());
        let step = match (old, new) {
            (None, Some(new)) => Step::Create(key, new),
            (Some(old), Some(new)) if old.object != new.object => Step::Replace { key, old, new },
            (Some(old), None) => Step::Delete(key, old),
            _ => continue,
        };
        step.apply_to(now);
        steps.push(step);
    }
    steps
}

// === impl Courses ===

impl Courses {
    fn of(mirror: &State, wanted: &State, steps: &[Step]) -> Courses {
        let mut courses = Courses::default();
        let (mut sets, mut families, mut taken) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut falls = false;
        for step in steps {
            let Some(changed) = Element::of(step.key()) else { continue };
            match (changed, step.op()) {
                (Element::Address(_), Op::Create(_, new) | Op::Replace { new, .. }) => {
                    courses.gaining.extend(led_to(new));
                }
                // Then it is one of those around it.
                (Element::Address(_), Op::Delete(..)) => falls = true,
                (Element::Subject, Op::Create(_, new) | Op::Replace { new, .. }) => {
                    courses.gaining_sets.extend(led_to(new));
                }
                (Element::Subject, Op::Delete(..)) => {}
                (Element::Range(nfproto), _) => {
                    families.insert(nfproto);
                }
                (Element::Class { side, set }, _) => {
                    sets.insert((side, set));
                }
                (Element::Row(row), _) => {
                    // What a change has left that was broken off.
                    let left = row.identity.into_iter().chain([row.class]);
                    taken.extend(left.filter(|number| number & NFT_BETWEEN != 0));
                }
            }
        }
        for of in sets {
            let (side, set) = of;
            let map = side.classes();
            let [old, new] = [mirror, wanted].map(|state| intervals::of(state, map, &prefix(set, None)));
            let mut classes = Classes { old: numbers(&old), new: numbers(&new), ..Classes::default() };
            let taken = &(&taken | &classes.old) | &classes.new;
            let between = lead_between(&old, &new, &taken, &mut classes.between);
            courses.all.push(Course { map, old, new, between });
            courses.classes.insert(of, classes);
        }
        let both: Vec<(SetName, [Vec<Interval>; 2])> = families
            .into_iter()
            .map(ranges)
            .map(|map| (map, [mirror, wanted].map(|state| intervals::of(state, map, &[]))))
            .collect();
        taken.extend(both.iter().flat_map(|(_, both)| both).flat_map(|each| numbers(each)));
        for (map, [old, new]) in both {
            let between = lead_between(&old, &new, &taken, &mut courses.identities);
            courses.all.push(Course { map, old, new, between });
        }
        courses.gaining.extend(courses.identities.keys().map(|(_, new)| *new));
        if falls {
            let around = |nfproto| intervals::of(wanted, ranges(nfproto), &[]);
            courses.gaining.extend(Nfproto::BOTH.into_iter().flat_map(around).map(|(_, number)| number));
        }
        courses
    }

    fn phase(&self, op: Op<'_>) -> Phase {
        let key = op.key();
        if !key.is_of_policy() || matches!(key, Key::NftChain { .. }) || Generation::of(key).is_some() {
            return Phase::Last;
        }
        let row = match Element::of(key) {
            Some(Element::Range(_) | Element::Class { .. }) => return Phase::Course,
            Some(Element::Subject | Element::Address(_)) | None => return Phase::Exact,
            Some(Element::Row(row)) => row,
        };
        let of = (row.side, row.set);
        let classes = self.classes.get(&of);
        let is_new = classes.is_some_and(|it| it.new.contains(&row.class) && !it.old.contains(&row.class));
        let is_gone = classes.is_some_and(|it| !it.new.contains(&row.class));
        match (op, row.identity) {
            // A change that was broken off may have left other rows of it.
            _ if is_new => Phase::Early,
            (Op::Delete(..), _) if is_gone => Phase::Late,
            // Whom it is about then, it was about before: until it goes, they are judged as before.
            (Op::Delete(..), Some(identity)) if !self.gains(identity, of) => Phase::Late,
            _ => Phase::Exact,
        }
    }

    fn gains(&self, identity: u32, (_, set): Of) -> bool {
        self.gaining.contains(&identity) || self.gaining_sets.contains(&set)
    }

    /// Makes intervals of these courses lead there.
    fn leads(&self, which: impl Fn(&Course) -> bool, there: impl Fn(&Course) -> &Vec<Interval>) -> Vec<Becomes> {
        let mut all = Vec::new();
        for course in self.all.iter().filter(|course| which(course)) {
            let key = |key: &ElementKey| Key::NftElement { set: course.map, key: key.clone() };
            let there = there(course);
            let stays: BTreeSet<&ElementKey> = there.iter().map(|(key, _)| key).collect();
            let before = course.old.iter().chain(&course.between).filter(|(key, _)| !stays.contains(key));
            all.extend(before.map(|(it, _)| gone(key(it))));
            all.extend(there.iter().map(|(it, number)| made(key(it), leads_to(*number))));
        }
        all
    }

    /// Sets that may have rows of what is between: all, unless it is between classes only.
    fn sets_between(&self, state: &State, classes_only: bool) -> BTreeSet<Of> {
        if classes_only {
            return self.classes.iter().filter(|(_, it)| !it.between.is_empty()).map(|(of, _)| *of).collect();
        }
        let of_side = |side: Side| {
            let rows = intervals::elements(state, side.any(), &[]).filter_map(|(key, _)| Row::of(key));
            rows.map(|row| (row.side, row.set)).collect::<Vec<Of>>()
        };
        Side::BOTH.into_iter().flat_map(of_side).collect()
    }

    /// Rows of what is between: those of what was, or of what will be.
    fn rows_between(&self, state: &State, when: When) -> BTreeMap<Key, Object> {
        let identities = stand(&self.identities, when);
        let mut rows = BTreeMap::new();
        for of in self.sets_between(state, identities.is_empty()) {
            let classes = self.classes.get(&of).map(|it| stand(&it.between, when)).unwrap_or_default();
            let (side, set) = of;
            let look_at: Vec<(SetName, Box<[u8]>)> = if classes.is_empty() {
                identities.keys().map(|identity| (side.words(), prefix(set, Some(*identity)))).collect()
            } else {
                [side.words(), side.any()].map(|map| (map, prefix(set, None))).into()
            };
            for (key, word) in look_at.iter().flat_map(|(map, prefix)| intervals::elements(state, *map, prefix)) {
                let alike = Row::of(key).into_iter().flat_map(|row| rows_alike(row, &identities, &classes));
                rows.extend(alike.map(|row| (row.key(), word.clone())));
            }
        }
        rows
    }
}

/// Which numbers stand for each that was, or that will be.
fn stand(between: &BTreeMap<(u32, u32), u32>, when: When) -> Stand {
    let mut stand = Stand::new();
    for ((old, new), number) in between {
        stand.entry(if when == When::Before { *old } else { *new }).or_default().push(*number);
    }
    stand
}

/// What intervals lead to between: what stays does, all else gets a number of its own.
fn lead_between(
    old: &[Interval],
    new: &[Interval],
    taken: &BTreeSet<u32>,
    between: &mut BTreeMap<(u32, u32), u32>,
) -> Vec<Interval> {
    let mut free = between.values().max().map_or(NFT_BETWEEN, |last| last + 1);
    let leads = |Overlap { key, old, new }: Overlap| {
        if old == new {
            return (key, new);
        }
        let number = between.get(&(old, new)).copied().unwrap_or_else(|| {
            // A change that did not come to its end has left some.
            let number =
                (free..).find(|number| !taken.contains(number)).expect("there are fewer intervals than numbers");
            free = number + 1;
            number
        });
        between.insert((old, new), number);
        (key, number)
    };
    intervals::overlaps(old, new).into_iter().map(leads).collect()
}

fn numbers(intervals: &[Interval]) -> BTreeSet<u32> {
    intervals.iter().map(|(_, number)| *number).collect()
}

/// The rows of what stands for the identity of this one, its class or both.
fn rows_alike<'a>(row: Row, identities: &'a Stand, classes: &'a Stand) -> impl Iterator<Item = Row> + use<'a> {
    let stand = |of: &'a Stand, number: u32| of.get(&number).into_iter().flatten().copied();
    let of_class = std::iter::once(row.class).chain(stand(classes, row.class));
    let of_identity = row.identity.into_iter().flat_map(move |own| stand(identities, own)).map(Some);
    let all = std::iter::once(row.identity).chain(of_identity);
    all.flat_map(move |identity| of_class.clone().map(move |class| Row { identity, class, ..row })).skip(1)
}

#[cfg(test)]
mod tests {
    use tartan_netstate::diff;
    use tartan_netstate::nft::Fields;

    use super::*;

    fn address(last: u8) -> Key {
        let key = Fields::new().addr(std::net::Ipv4Addr::new(10, 0, 0, last).into()).key();
        Key::NftElement { set: "policy_addresses4".into(), key }
    }

    fn ports(set: u32, low: u16, high: u16) -> Key {
        let of = |port| Fields::new().number(set).proto(6).port(port);
        Key::NftElement { set: "policy_egress_classes".into(), key: of(low).key_up_to(of(high)) }
    }

    fn row(identity: Option<u32>, class: u32) -> Key {
        Row { side: Side::Egress, set: 2, identity, class }.key()
    }

    fn state(elements: &[(Key, u32)]) -> State {
        let mut state = State::new();
        elements.iter().for_each(|(key, number)| state.insert(key.clone(), leads_to(*number), Owner::Policy));
        state
    }

    /// In which transaction each key is made, written anew or taken away; by its change, the key.
    fn check(before: &State, after: &State, wanted: &[&[(char, Key)]]) {
        let told = |steps: &Steps| -> Vec<(char, Key)> {
            let told = steps.iter().map(|step| match step.op() {
                Op::Create(key, _) => ('+', key.clone()),
                Op::Replace { key, .. } => ('=', key.clone()),
                Op::Delete(key, _) => ('-', key.clone()),
            });
            let mut told: Vec<(char, Key)> = told.collect();
            told.sort();
            told
        };
        let found: Vec<_> = phases(before, diff::diff(before, after, |_| true).steps).iter().map(told).collect();
        let wanted: Vec<Vec<(char, Key)>> = wanted
            .iter()
            .map(|steps| {
                let mut steps = steps.to_vec();
                steps.sort();
                steps
            })
            .collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_pod_that_goes_takes_no_class_with_it_before_its_address() {
        // Anyone may (1), and 77 may not (2). With its pod the name of port 8080 goes, and so its class.
        let before = state(&[
            (address(1), 77),
            (ports(2, 0, 90), 8),
            (ports(2, 90, 91), 9),
            (row(None, 8), 1),
            (row(None, 9), 1),
            (row(Some(77), 8), 2),
            (row(Some(77), 9), 2),
        ]);
        let after = state(&[(ports(2, 0, 91), 10), (row(None, 10), 1)]);
        let [one, other] = [NFT_BETWEEN, NFT_BETWEEN + 1];
        let between = |how| [one, other].map(|class| (how, row(None, class)));
        let own = |how| [one, other].map(|class| (how, row(Some(77), class)));
        let early = [between('+').as_slice(), &own('+'), &[('+', row(None, 10))]].concat();
        // They have the keys they had.
        let there = [('=', ports(2, 0, 90)), ('=', ports(2, 90, 91))];
        let exact = [own('-').as_slice(), &[('-', address(1))]].concat();
        let back = [('-', ports(2, 0, 90)), ('-', ports(2, 90, 91)), ('+', ports(2, 0, 91))];
        let old = [8, 9].map(|class| [('-', row(None, class)), ('-', row(Some(77), class))]).concat();
        let late = [between('-').as_slice(), &old].concat();
        check(&before, &after, &[&early, &there, &exact, &back, &late]);
    }

    #[test]
    fn an_address_that_falls_back_to_a_range_does_not_find_what_the_range_loses() {
        let to = |last: u8| Fields::new().addr(std::net::Ipv4Addr::new(10, 0, last, 0).into());
        let range = Key::NftElement { set: "policy_ranges4".into(), key: to(0).key_up_to(to(1)) };
        let common = [(range, 5), (ports(2, 0, 91), 8), (row(None, 8), 1)];
        let before = [common.as_slice(), &[(address(1), 77), (row(Some(77), 8), 3), (row(Some(5), 8), 2)]].concat();
        let [before, after] = [before.as_slice(), &common].map(state);
        check(&before, &after, &[&[('-', address(1)), ('-', row(Some(5), 8))], &[('-', row(Some(77), 8))]]);
    }

    /// A published list of a cloud's ranges: nothing else is done meanwhile, and it would not end today.
    #[test]
    fn as_many_intervals_as_a_policy_may_name_have_numbers_of_their_own_between() {
        const MANY: u32 = 50_000;
        let intervals = |plus: u32| -> Vec<Interval> {
            let key = |n: u32| ElementKey { bytes: n.to_be_bytes().into(), end: Some((n + 1).to_be_bytes().into()) };
            (0..MANY).map(|n| (key(n), plus + n)).collect()
        };
        let (old, new) = (intervals(1), intervals(MANY + 1));
        let taken = BTreeSet::from([NFT_BETWEEN, NFT_BETWEEN + 7]);
        let mut between = BTreeMap::new();
        let led = lead_between(&old, &new, &taken, &mut between);
        let numbers = numbers(&led);
        assert_eq!((led.len(), numbers.len()), (MANY as usize, MANY as usize));
        assert!(numbers.is_disjoint(&taken) && numbers.first() > Some(&NFT_BETWEEN), "{:?}", numbers.first());
        assert_eq!(lead_between(&old, &new, &taken, &mut between), led, "of the other family alike");
        let other = lead_between(&new, &old, &taken, &mut between);
        assert!(other.iter().all(|(_, number)| !numbers.contains(number) && !taken.contains(number)));
    }

    #[test]
    fn a_pod_without_a_class_of_its_own_needs_two_and_a_set_that_is_made_one() {
        let before = state(&[(address(1), 77), (ports(2, 0, 91), 8), (row(None, 8), 1), (row(Some(77), 8), 2)]);
        let mut after = before.clone();
        after.remove(&address(1));
        after.remove(&row(Some(77), 8));
        check(&before, &after, &[&[('-', address(1))], &[('-', row(Some(77), 8))]]);
        check(&after, &before, &[&[('+', address(1)), ('+', row(Some(77), 8))]]);
        let mut made = before.clone();
        let set = Key::NftSet { set: "policy_egress_any".into() };
        made.insert(set.clone(), Object::NftSet(tartan_netstate::nft::Set::exact(&[]).into()), Owner::Policy);
        check(&after, &made, &[&[('+', set), ('+', address(1)), ('+', row(Some(77), 8))]]);
        check(&before, &before, &[]);
    }

    #[test]
    fn a_set_of_others_changes_nothing_and_each_transaction_of_policy_has_its_number() {
        let (number, object) = epoch::element();
        let mut before = state(&[(address(1), 77), (ports(2, 0, 91), 8), (row(None, 8), 1), (row(Some(77), 8), 2)]);
        before.insert(number.clone(), object, Owner::Policy);
        let mut after = before.clone();
        after.remove(&address(1));
        after.remove(&row(Some(77), 8));
        let set = Key::NftSet { set: "encrypted4".into() };
        after.insert(set.clone(), Object::NftSet(tartan_netstate::nft::Set::exact(&[]).into()), Owner::Node);
        let number = || ('=', number.clone());
        check(&before, &after, &[&[('-', address(1)), number()], &[('-', row(Some(77), 8)), ('+', set), number()]]);
    }
}
