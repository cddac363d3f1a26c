//! The header `X-Load`, in which answers to HTTP checks contain an agent's report.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use balancer_config::{agent::MAX_ANSWER, names::BackendName};
use hyper::{HeaderMap, header::HeaderName};

use crate::load_report::{LoadReport, LoadReports};

const X_LOAD: HeaderName = HeaderName::from_static("x-load");
/// The number of answers without the header after which the prober reports this again, because another balancer may
/// have become the leader.
const REMIND: u32 = 30;

/// The receiver of all reports from `X-Load` headers, once it exists.
#[derive(Clone, Debug, Default)]
pub(super) struct LoadReceiver(Arc<OnceLock<LoadReports>>);

impl LoadReceiver {
    /// Sets the receiver of reports from `X-Load` headers.
    pub(super) fn set(&self, reports: LoadReports) {
        // A receiver that was set earlier stays as long as the checks run.
        let _ = self.0.set(reports);
    }
}

/// The `X-Load` reports of one backend.
#[derive(Debug)]
pub(super) struct LoadHeaders {
    name: BackendName,
    hearer: LoadReceiver,
    /// The number of answers without the header since the prober last reported a missing header.
    untold: AtomicU32,
}

impl LoadHeaders {
    pub(super) const fn new(name: BackendName, hearer: LoadReceiver) -> Self {
        Self { name, hearer, untold: AtomicU32::new(REMIND) }
    }

    /// Reports the header in the answer to a check; if the check `passed` and there is no header, reports that. If the
    /// receiver is busy, the function skips this answer, and the next answer is reported instead.
    pub(super) fn note(&self, headers: &HeaderMap, passed: bool) {
        let words = headers.get(X_LOAD).map(|words| {
            let words = words.as_bytes();
            words.get(..MAX_ANSWER).unwrap_or(words).to_vec()
        });
        match words {
            Some(words) => {
                self.untold.store(REMIND, Ordering::Relaxed);
                self.tell(Some(words));
            }
            None if passed => {
                let untold = self.untold.load(Ordering::Relaxed);
                let told = untold >= REMIND && self.tell(None);
                self.untold.store(if told { 0 } else { untold.saturating_add(1) }, Ordering::Relaxed);
            }
            None => {}
        }
    }

    fn tell(&self, words: Option<Vec<u8>>) -> bool {
        let report = LoadReport::Header { name: self.name.clone(), words };
        self.hearer.0.get().is_some_and(|reports| reports.try_send(report).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use balancer_config::fixture::name;
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn when_answers_have_the_header_then_each_is_told_and_of_those_without_it_the_first_and_a_few() {
        let (reports_in, mut reports) = mpsc::channel(8);
        let hearer = LoadReceiver::default();
        let words = LoadHeaders::new(name("web/web1"), hearer.clone());
        let with = HeaderMap::from_iter([(X_LOAD, "50%".parse().unwrap())]);
        words.note(&with, true);
        hearer.set(reports_in);
        let mut told = || match reports.try_recv() {
            Ok(LoadReport::Header { name, words }) => {
                assert_eq!(name.to_string(), "web/web1");
                Some(words.map(|words| String::from_utf8(words).unwrap()))
            }
            _ => None,
        };
        assert_eq!(told(), None, "nobody wanted it");
        words.note(&with, true);
        words.note(&with, false);
        assert_eq!([told(), told(), told()], [Some(Some("50%".to_owned())), Some(Some("50%".to_owned())), None]);
        words.note(&HeaderMap::new(), false);
        assert_eq!(told(), None, "an answer that fails takes nothing back");
        for _ in 0..=REMIND {
            words.note(&HeaderMap::new(), true);
        }
        assert_eq!([told(), told()], [Some(None), None]);
        words.note(&HeaderMap::new(), true);
        assert_eq!(told(), Some(None), "now and then");
    }
}
