//! The counters of the members, which are only displayed: no decision depends on them.

use super::{Member, Output};
use crate::{
    engine::{Answer, Entry, Write},
    keys,
    session::{Purpose, Session},
};

impl Member {
    pub(super) fn tally(&mut self, tally: Vec<u8>, outputs: &mut Vec<Output>) {
        if self.tally.as_ref() != Some(&tally) || !self.tally_is_told {
            self.tally = Some(tally);
            self.put_tally(outputs);
        }
    }

    pub(super) fn put_tally(&mut self, outputs: &mut Vec<Output>) {
        let (Some(session), Some(tally)) = (&mut self.session, &self.tally) else { return };
        let put = Write::put(&keys::tally(&self.settings.name), tally.clone(), true);
        outputs.push(Output::Ask(session.ask(&mut self.last_ticket, Purpose::Tally, Vec::new(), vec![put])));
        self.tally_is_told = true;
    }

    pub(super) fn ask_tallies(&mut self, id: u64, outputs: &mut Vec<Output>) {
        match &mut self.session {
            Some(session) => {
                let read = session.read(&mut self.last_ticket, Purpose::Tallies(id), keys::TALLIES.to_owned());
                outputs.push(Output::Ask(read));
            }
            None => outputs.push(Output::Tallies { id, result: Err(out_of_reach()) }),
        }
    }

    /// Answers pending requests for counters with an error when the session has ended.
    pub(super) fn fail_tallies(&self, outputs: &mut Vec<Output>) {
        let waiting = self.session.iter().flat_map(Session::who_wait_for_tallies);
        outputs.extend(waiting.map(|id| Output::Tallies { id, result: Err(out_of_reach()) }));
    }
}

pub(super) fn answer(id: u64, answer: Answer) -> Output {
    let result = match answer {
        Answer::Read(entries) => Ok(entries.into_iter().filter_map(of_member).collect()),
        Answer::Denied(why) | Answer::Unknown(why) => Err(why),
        Answer::Made(_) | Answer::Refused => Err("etcd does not say".to_owned()),
    };
    Output::Tallies { id, result }
}

fn of_member(entry: Entry) -> Option<(String, Vec<u8>)> {
    Some((entry.key.strip_prefix(keys::TALLIES)?.to_owned(), entry.value))
}

fn out_of_reach() -> String {
    "etcd is out of reach: the counts of other members are not known".to_owned()
}
