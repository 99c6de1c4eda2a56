//! The nft steps of a change as one transaction.
//!
//! Invariant: all steps that the kernel does not refuse come into force at one instant, and a refused one stops no
//! other, but for those of policy ([`Key::is_of_policy`]): of them all come into force or none. The kernel names every
//! message it refuses; that step is taken out and the rest tried again. Nothing is half done: a transaction is in force
//! as a whole or not at all, so what it would replace stays until it works.
//!
//! Order within: chains are emptied first, so that nothing refers to what is deleted next; then all deletions, chains
//! last (a verdict map refers to them); then all creations, elements last (the kernel loads a large map faster when its
//! rules are there).

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;
use tartan_netstate::nft::ElementKey;
use tartan_netstate::{Key, Object, Op, Step, epoch};

use super::encode::{self, ElementList};
use crate::nfnetlink::{Message, Refusal};
use crate::{Failure, KernelError};

/// Each try takes out at least one step. Elements need three tries however many are bad, chains and sets one each.
const MAX_TRIES: usize = 64;

/// Which step of the change a message carries out.
type Index = usize;

/// One message of the transaction.
struct Piece {
    message: Message,
    /// More than one only for elements of one set.
    about: Vec<Index>,
    /// That it is gone already is success.
    deletes: bool,
    /// About elements, not about a table, a set, a chain or a rule.
    elements: bool,
}

/// What earlier tries have shown.
#[derive(Default)]
struct Known {
    failed: BTreeMap<Index, KernelError>,
    /// Why those of policy have failed.
    policy: Option<KernelError>,
    /// What these would delete is gone.
    gone: BTreeSet<Index>,
    /// Elements of a message that was refused: now each in a message of its own, to find the guilty one.
    alone: BTreeSet<Index>,
}

/// What a transaction has besides its steps.
#[derive(Clone, Copy, Default)]
pub(super) struct Given {
    /// `NFT_TABLE_F_*` that the table gets.
    pub(super) table_flags: u32,
    /// The number that what is in force of policy gets, if it changes: not the one it had, and not 0.
    pub(super) epoch: u32,
}

/// Carries out all steps that can be, in one transaction given to `transact`.
pub(super) fn apply(
    steps: &[&Step],
    given: Given,
    mut transact: impl FnMut(&[&Message]) -> Vec<Refusal>,
) -> Vec<Failure> {
    let mut known = Known::default();
    for tries in 1.. {
        let pieces = compose(steps, given, &known);
        if pieces.is_empty() {
            break;
        }
        let messages: Vec<&Message> = pieces.iter().map(|piece| &piece.message).collect();
        let refusals = transact(&messages);
        if refusals.is_empty() {
            break;
        }
        if tries == MAX_TRIES {
            known.fail_rest(steps, &refusals[0]);
        }
        known.learn(steps, &pieces, &refusals);
    }
    let failure = |(index, error): (Index, KernelError)| Failure::of(steps[index], error);
    let together = known.policy.map(|error| fail_together(steps, &error)).unwrap_or_default();
    known.failed.into_iter().map(failure).chain(together).collect()
}

/// Failures of all steps of policy. There may be hundreds of thousands: for each owner one stands for
/// all.
pub(crate) fn fail_together(steps: &[&Step], error: &KernelError) -> Vec<Failure> {
    let mut told = BTreeSet::new();
    let of_policy = steps.iter().filter(|step| step.key().is_of_policy());
    let first = of_policy.filter(|step| told.insert(step.owner()));
    first.map(|step| Failure::of(step, error.clone())).collect()
}

fn compose(steps: &[&Step], given: Given, known: &Known) -> Vec<Piece> {
    if let Some((index, _)) =
        steps.iter().enumerate().find(|(_, step)| matches!(step.op(), Op::Delete(Key::NftTable, _)))
    {
        let done = known.failed.contains_key(&index) || known.gone.contains(&index);
        let piece = Piece { message: encode::del_table(), about: vec![index], deletes: true, elements: false };
        return if done { Vec::new() } else { vec![piece] };
    }
    let mut phases = Phases { given, ..Phases::default() };
    for (index, step) in steps.iter().enumerate().filter(|(index, step)| !known.has_failed(*index, step.key())) {
        phases.add(index, step.op(), known);
    }
    phases.in_order()
}

/// The messages of a transaction by phase.
#[derive(Default)]
struct Phases<'a> {
    given: Given,
    tables: Vec<Piece>,
    emptied: Vec<Piece>,
    elements_out: BTreeMap<&'a str, Vec<Element<'a>>>,
    chains_out: Vec<Piece>,
    sets_out: Vec<Piece>,
    /// Their elements go with them.
    gone_sets: BTreeSet<&'a str>,
    sets_in: Vec<Piece>,
    chains_in: Vec<Piece>,
    rules_in: Vec<Piece>,
    elements_in: BTreeMap<&'a str, Vec<Element<'a>>>,
}

struct Element<'a> {
    index: Index,
    key: &'a ElementKey,
    data: &'a Object,
    alone: bool,
}

impl<'a> Phases<'a> {
    fn add(&mut self, index: Index, op: Op<'a>, known: &Known) {
        let (old, new) = op.sides();
        let old = old.filter(|_| !known.gone.contains(&index));
        let alone = known.alone.contains(&index);
        let out = |message| Piece { message, about: vec![index], deletes: true, elements: false };
        let into = |message| Piece { message, about: vec![index], deletes: false, elements: false };
        match op.key() {
            Key::NftTable => self.tables.extend(new.map(|_| into(encode::new_table(self.given.table_flags)))),
            Key::NftSet { set } => {
                if old.is_some() {
                    self.sets_out.push(out(encode::del_set(set)));
                    self.gone_sets.insert(set);
                }
                if let Some(Object::NftSet(new)) = new {
                    let id = u32::try_from(index).expect("a change is bounded by the send buffer") + 1;
                    self.sets_in.push(into(encode::new_set(set, new, id)));
                }
            }
            Key::NftChain { chain } => {
                if let Some(Object::NftChain(old)) = old {
                    self.emptied.push(out(encode::flush_chain(chain)));
                    let stays = matches!(new, Some(Object::NftChain(new)) if new.hook == old.hook);
                    if !stays {
                        self.chains_out.push(out(encode::del_chain(chain)));
                    }
                }
                if let Some(Object::NftChain(new)) = new {
                    self.chains_in.push(into(encode::new_chain(chain, new)));
                    // A chain that was not known to be there may be there all the same.
                    self.chains_in.extend(old.is_none().then(|| into(encode::flush_chain(chain))));
                    self.rules_in.extend(new.rules.iter().map(|rule| into(encode::new_rule(chain, rule))));
                }
            }
            Key::NftElement { set, .. } if epoch::is_key(op.key()) => {
                let flush = encode::flush_set(set);
                match (old, new) {
                    (_, Some(_)) => self.rules_in.extend([flush, encode::epoch(self.given.epoch)].map(into)),
                    (Some(_), None) => self.emptied.push(out(flush)),
                    (None, None) => {}
                }
            }
            Key::NftElement { set, key } => {
                if let Some(data) = old {
                    self.elements_out.entry(set).or_default().push(Element { index, key, data, alone });
                }
                if let Some(data) = new {
                    self.elements_in.entry(set).or_default().push(Element { index, key, data, alone });
                }
            }
            _ => {}
        }
    }

    fn in_order(self) -> Vec<Piece> {
        let Phases { gone_sets, .. } = self;
        let out = self.elements_out.iter().filter(|(set, _)| !gone_sets.contains(*set));
        let elements_out = out.flat_map(|(set, elements)| element_pieces(set, elements, true));
        let elements_in = self.elements_in.iter().flat_map(|(set, elements)| element_pieces(set, elements, false));
        [self.tables, self.emptied]
            .into_iter()
            .flatten()
            .chain(elements_out)
            .chain([self.sets_out, self.chains_out, self.sets_in, self.chains_in, self.rules_in].into_iter().flatten())
            .chain(elements_in)
            .collect()
    }
}

/// Elements of one set in as few messages as they fit into.
fn element_pieces(set: &str, elements: &[Element<'_>], deletes: bool) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut list = ElementList::new();
    let mut about = Vec::new();
    let close = |list: ElementList, about| {
        let message = if deletes { list.delete_from(set) } else { list.add_to(set) };
        Piece { message, about, deletes, elements: true }
    };
    let (alone, together): (Vec<_>, Vec<_>) = elements.iter().partition(|element| element.alone);
    for element in together {
        list.push(element.key, element.data);
        about.push(element.index);
        if list.is_full() {
            pieces.push(close(std::mem::replace(&mut list, ElementList::new()), std::mem::take(&mut about)));
        }
    }
    if !about.is_empty() {
        pieces.push(close(list, about));
    }
    for element in alone {
        let mut single = ElementList::new();
        single.push(element.key, element.data);
        pieces.push(close(single, vec![element.index]));
    }
    pieces
}

// === impl Known ===

impl Known {
    /// Takes out what was refused on its own account.
    ///
    /// A bad set or rule makes the kernel refuse innocent messages after it, so of those only the first counts, and
    /// elements count when nothing else was refused.
    fn learn(&mut self, steps: &[&Step], pieces: &[Piece], refusals: &[Refusal]) {
        let mut blamed = false;
        for refusal in refusals {
            let Some(piece) = refusal.index.and_then(|index| pieces.get(index)) else {
                return self.fail_largest(steps, refusal);
            };
            match piece.about.as_slice() {
                [index] if piece.deletes && refusal.errno == Errno::ENOENT => {
                    self.gone.insert(*index);
                }
                _ if blamed => {}
                [index] => {
                    self.fail(steps, *index, refusal);
                    blamed = !piece.elements;
                }
                several => self.alone.extend(several),
            }
        }
    }

    /// The transaction is too large, or memory too small, and policy is most of it: all else is tried without that first.
    fn fail_largest(&mut self, steps: &[&Step], refusal: &Refusal) {
        match steps.iter().position(|step| step.key().is_of_policy()) {
            Some(index) if self.policy.is_none() => self.fail(steps, index, refusal),
            _ => self.fail_rest(steps, refusal),
        }
    }

    fn fail_rest(&mut self, steps: &[&Step], refusal: &Refusal) {
        for index in 0..steps.len() {
            self.fail(steps, index, refusal);
        }
    }

    fn fail(&mut self, steps: &[&Step], index: Index, refusal: &Refusal) {
        let step = steps[index];
        if step.key().is_of_policy() {
            self.policy.get_or_insert_with(|| refused(&doing(step.op()), refusal));
        } else {
            self.failed.entry(index).or_insert_with(|| refused(&doing(step.op()), refusal));
        }
    }

    fn has_failed(&self, index: Index, key: &Key) -> bool {
        self.failed.contains_key(&index) || self.policy.is_some() && key.is_of_policy()
    }
}

/// Why something was not done.
pub(super) fn refused(doing: &str, refusal: &Refusal) -> KernelError {
    let others = "the table belongs to another program: is a second agent running on this node?";
    let says = refusal.says.clone().or_else(|| (refusal.errno == Errno::EPERM).then(|| others.into()));
    KernelError::Refused { doing: doing.into(), errno: refusal.errno, says }
}

fn doing(op: Op<'_>) -> String {
    let verb = match op {
        Op::Create(..) => "add",
        Op::Replace { .. } => "replace",
        Op::Delete(..) => "delete",
    };
    format!("{verb} {}", op.key())
}

#[cfg(test)]
mod tests {
    use tartan_netstate::Owner;
    use tartan_netstate::nft::{Chain, ElementData, Fields, rule};

    use super::*;

    fn table() -> Step {
        Step::create(Key::NftTable, Object::NftTable, Owner::Node)
    }

    fn chain(name: &str) -> Step {
        let chain = Chain::regular(vec![rule("").accept(), rule("").drop()]);
        Step::create(Key::NftChain { chain: name.into() }, Object::NftChain(chain.into()), Owner::Node)
    }

    fn element(port: u16) -> Step {
        let key = Key::NftElement { set: "s".into(), key: Fields::new().port(port).key() };
        Step::create(key, Object::NftElement(ElementData::default()), Owner::Pod(port.to_string().into()))
    }

    fn element_of(set: &str, port: u16) -> Step {
        let key = Key::NftElement { set: set.into(), key: Fields::new().port(port).key() };
        Step::create(key, Object::NftElement(ElementData::default()), Owner::Policy)
    }

    fn refusal(index: Option<usize>, errno: Errno) -> Refusal {
        Refusal { index, errno, says: None }
    }

    /// Applies against a kernel that refuses what `judge` says; gives back who failed and how often it was tried.
    fn check(steps: &[Step], judge: impl Fn(&[&Message]) -> Vec<Refusal>) -> (Vec<String>, usize) {
        let mut tries = 0;
        let failures = apply(&steps.iter().collect::<Vec<_>>(), Given::default(), |messages| {
            tries += 1;
            judge(messages)
        });
        (failures.iter().map(|failure| failure.key.to_string()).collect(), tries)
    }

    /// Refuses every message that holds these bytes.
    fn refuse<'a>(needle: &'a [u8], errno: Errno) -> impl Fn(&[&Message]) -> Vec<Refusal> + 'a {
        move |messages| {
            let holds = |message: &&Message| message.attrs.0.windows(needle.len()).any(|part| part == needle);
            messages.iter().enumerate().filter(|(_, m)| holds(m)).map(|(i, _)| refusal(Some(i), errno)).collect()
        }
    }

    #[test]
    fn nothing_to_do_says_nothing() {
        assert_eq!(check(&[], |_| panic!("nothing is sent")), (vec![], 0));
    }

    #[test]
    fn a_refused_whole_fails_every_step() {
        for errno in [Errno::ENOMEM, Errno::EMSGSIZE, Errno::ENOBUFS] {
            let (failed, tries) = check(&[table(), chain("a"), element(1)], |_| vec![refusal(None, errno)]);
            assert_eq!((failed.len(), tries), (3, 1));
        }
    }

    #[test]
    fn a_bad_element_is_found_among_many() {
        let steps: Vec<_> = (1..=3000).map(element).collect();
        let (failed, tries) = check(&steps, refuse(&2345_u16.to_be_bytes(), Errno::EINVAL));
        assert_eq!((failed, tries), (vec!["nft element 0929 of s".to_owned()], 3));
    }

    #[test]
    fn what_is_of_policy_fails_together() {
        let steps = [
            table(),
            chain("policy_a"),
            element(7),
            element_of("policy_s", 8),
            element_of("policy_s", 9),
            element_of("policy_t", 9),
        ];
        for errno in [Errno::ENFILE, Errno::ENOMEM, Errno::EEXIST] {
            let mut sent = Vec::new();
            let failures = apply(&steps.iter().collect::<Vec<_>>(), Given::default(), |messages| {
                sent = messages.iter().map(|message| message.attrs.0.clone()).collect();
                refuse(&[6, 0, 1, 0, 0, 8], errno)(messages)
            });
            let failed: Vec<_> =
                failures.iter().map(|failure| (failure.key.to_string(), failure.owner.clone())).collect();
            let one_each = [
                ("nft chain policy_a".to_owned(), Owner::Node),
                ("nft element 0008 of policy_s".to_owned(), Owner::Policy),
            ];
            assert_eq!(failed, one_each);
            assert!(failures.iter().all(|failure| failure.error.to_string().contains("0008")), "{failures:?}");
            let holds_some = |attrs: &Vec<u8>| attrs.windows(7).any(|part| part == b"policy_");
            assert!(sent.len() == 2 && !sent.iter().any(holds_some), "the others went in, and they alone");
        }
    }

    #[test]
    fn what_is_too_large_fails_before_what_came_with_it() {
        let steps = [table(), chain("a"), chain("policy_a"), element_of("policy_s", 8), element(7)];
        for errno in [Errno::ENOMEM, Errno::EMSGSIZE] {
            let too_large = |messages: &[&Message]| {
                let any = !refuse(b"policy_", errno)(messages).is_empty();
                any.then(|| refusal(None, errno)).into_iter().collect()
            };
            assert_eq!(
                check(&steps, too_large),
                (["nft chain policy_a", "nft element 0008 of policy_s"].map(str::to_owned).into(), 2)
            );
        }
    }

    #[test]
    fn the_innocent_after_a_bad_chain_are_tried_again() {
        // Once "bad" is seen the kernel refuses all that comes after it.
        let judge = |messages: &[&Message]| {
            let first = refuse(b"bad", Errno::ELOOP)(messages).first().and_then(|refusal| refusal.index);
            (first.unwrap_or(messages.len())..messages.len()).map(|i| refusal(Some(i), Errno::ELOOP)).collect()
        };
        let (failed, _) = check(&[table(), chain("bad1"), chain("bad2"), chain("good"), element(1)], judge);
        assert_eq!(failed, ["nft chain bad1", "nft chain bad2"]);
    }

    #[test]
    fn what_is_gone_already_is_deleted() {
        let deleted = |step: Step| match step {
            Step::Create(key, entry) => Step::Delete(key, entry),
            other => other,
        };
        let steps = [deleted(chain("a")), deleted(element(7)), deleted(element(8))];
        let (failed, _) = check(&steps, |messages| {
            let deletes = messages.iter().enumerate().filter(|(_, message)| message.flags == 0);
            deletes.map(|(index, _)| refusal(Some(index), Errno::ENOENT)).collect()
        });
        assert_eq!(failed, Vec::<String>::new());
    }
}
