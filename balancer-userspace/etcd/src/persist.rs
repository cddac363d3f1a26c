//! Restarts a driver's work after a panic, because a member depends on this work.

use std::{any::Any, panic::AssertUnwindSafe};

use futures_util::FutureExt as _;

/// Work that can be restarted after a panic.
pub(crate) trait Persistent {
    /// Does the work; returns when no work remains.
    fn work(&mut self) -> impl Future<Output = ()> + Send;

    /// Cleans up after a panic. The clean-up should take some time, so that repeated panics do not follow each other
    /// quickly.
    fn clean_up(&mut self, panic: String) -> impl Future<Output = ()> + Send;
}

/// Does the work until none remains, and restarts it after each panic.
pub(crate) async fn persist(work: &mut impl Persistent) {
    while let Err(panic) = AssertUnwindSafe(work.work()).catch_unwind().await {
        let said = said(panic.as_ref());
        drop(panic);
        work.clean_up(said).await;
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a word").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Diary(Vec<String>);

    impl Persistent for Diary {
        async fn work(&mut self) {
            tokio::task::yield_now().await;
            self.0.push("work".to_owned());
            assert!(self.0.len() > 4, "{} is too few", self.0.len());
        }

        async fn clean_up(&mut self, panic: String) {
            self.0.push(panic);
        }
    }

    #[tokio::test]
    async fn when_the_work_panics_then_it_is_done_again_until_it_ends() {
        let mut diary = Diary::default();
        persist(&mut diary).await;
        assert_eq!(diary.0, ["work", "1 is too few", "work", "3 is too few", "work"]);
    }
}
