//! Connections that stay while everything changes: cut when they are no longer allowed, in both directions, and no sooner.

use super::craft::{Kind, Part};
use super::field::Field;
use super::truth::{End, Expected, Probe, Seat, Truth};
use super::volley::{Flight, Tally, When};

/// So many at a time.
const TALKS: usize = 24;

/// One of them.
#[derive(Clone)]
pub(crate) struct Talk {
    probe: Probe,
    source_port: u16,
    /// Only the server goes on talking.
    reply_only: bool,
    seats: [Seat; 2],
}

/// Begins as many as are missing, between pods that may talk.
pub(crate) fn begin(talks: &mut Vec<Talk>, field: &Field, tally: &mut Tally, probes: &[Probe], round: usize) {
    let truth = &field.truth;
    let when = When { truths: &[truth], name: "a connection begins" };
    let are_two_pods = |probe: &&Probe| matches!((probe.from, probe.to), (End::Body(_), End::Body(_)));
    let candidates: Vec<&Probe> =
        probes.iter().filter(are_two_pods).filter(|probe| matches!(probe.kind, Kind::Tcp | Kind::Udp)).collect();
    for i in 0..candidates.len() {
        if talks.len() >= TALKS {
            break;
        }
        let probe = *candidates[(i * 41 + round * 17) % candidates.len()];
        let expected = Expected::under(when.truths, &probe);
        if !expected.must {
            continue;
        }
        let seats = seats(truth, &probe).expect("both are there");
        let talk = Talk { probe, source_port: tally.port(), reply_only: talks.len().is_multiple_of(2), seats };
        tally.ask(field, when, &[Flight::opening(probe, talk.source_port, expected)]);
        tally.fly(field, when, &[talk.says(Part::FromClient, expected)]);
        talks.push(talk);
    }
}

/// What both ends of all say while, or after, something changes.
pub(crate) fn go_on(talks: &[Talk], truths: &[&Truth]) -> Vec<Flight> {
    talks.iter().flat_map(|talk| talk.goes_on(truths)).collect()
}

/// Of connections whose ends have gone, the last is heard: whoever has an address now gets what he may get.
pub(crate) fn end(talks: &mut Vec<Talk>, field: &Field, tally: &mut Tally) {
    let truth = &field.truth;
    let when = When { truths: &[truth], name: "an end of a connection has gone" };
    let (stay, go): (Vec<Talk>, Vec<Talk>) =
        talks.drain(..).partition(|talk| seats(truth, &talk.probe).as_ref() == Some(&talk.seats));
    *talks = stay;
    let last: Vec<Flight> = go.iter().flat_map(|talk| talk.last(when.truths)).collect();
    tally.fly(field, when, &last);
}

fn seats(truth: &Truth, probe: &Probe) -> Option<[Seat; 2]> {
    let seat = |end| match end {
        End::Body(body) => truth.seats.get(&body).cloned(),
        End::Node(_) | End::Outside => None,
    };
    Some([seat(probe.from)?, seat(probe.to)?])
}

// === impl Talk ===

impl Talk {
    fn says(&self, part: Part, expected: Expected) -> Flight {
        Flight::later(self.probe, self.source_port, part, expected)
    }

    fn goes_on(&self, truths: &[&Truth]) -> Vec<Flight> {
        let expected = Expected::under(truths, &self.probe);
        let stays = |truth: &&Truth| seats(truth, &self.probe).as_ref() == Some(&self.seats);
        if !truths.iter().all(stays) {
            return self.last(truths);
        }
        let both = [Part::FromServer, Part::FromClient];
        both.into_iter().take(if self.reply_only { 1 } else { 2 }).map(|part| self.says(part, expected)).collect()
    }

    /// What may still be said once an end is another: as a new connection may, either way.
    fn last(&self, truths: &[&Truth]) -> Vec<Flight> {
        let back = self.probe.back(self.source_port);
        let [there, back] = [&self.probe, &back].map(|probe| Expected::under(truths, probe));
        let from_client = Expected { must: false, ..there };
        let from_server = Expected { may: there.may || back.may, ..from_client };
        vec![self.says(Part::FromClient, from_client), self.says(Part::FromServer, from_server)]
    }
}
