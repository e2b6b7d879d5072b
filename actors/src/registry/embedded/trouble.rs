//! ✎ Trouble on purpose: what a registry may do to its clients, and what etcd with known defects has done to them. It exists
//! with the feature `testkit` alone and is told what to do on its thread; otherwise nothing is ever wrong.

/// What becomes of a transaction that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is done and answered.
    Given,
    /// It is not done, and the client cannot know.
    LostBefore,
    /// It is done, and the client cannot know.
    LostAfter,
    /// The client is left without an answer, and it is done after this.
    Late(std::time::Duration),
}

/// What becomes of news that a watch is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// They are told.
    Told,
    /// They are not told yet.
    Held,
    /// They are told, and before that so many revisions that were told already.
    Again(i64),
    /// They are never told.
    Missed,
}

/// What a test decides.
pub trait Trouble {
    /// Asked before each transaction that writes.
    fn reply(&mut self) -> Reply;
    /// Asked before each batch of a watch that begins at this key.
    fn news(&mut self, key: &[u8]) -> News;
}

#[cfg(feature = "testkit")]
thread_local! {
    static TROUBLE: std::cell::RefCell<Option<Box<dyn Trouble>>> = const { std::cell::RefCell::new(None) };
}

/// From now on this thread's registries are in this trouble.
#[cfg(feature = "testkit")]
pub fn make(trouble: Option<Box<dyn Trouble>>) {
    TROUBLE.set(trouble);
}

#[cfg(feature = "testkit")]
fn ask<T>(what: impl FnOnce(&mut dyn Trouble) -> T) -> Option<T> {
    TROUBLE.with_borrow_mut(|trouble| trouble.as_mut().map(|trouble| what(&mut **trouble)))
}

#[cfg(not(feature = "testkit"))]
fn ask<T>(_: impl FnOnce(&mut dyn Trouble) -> T) -> Option<T> {
    None
}

pub(super) fn reply() -> Reply {
    ask(|trouble| trouble.reply()).unwrap_or(Reply::Given)
}

pub(super) fn news(key: &[u8]) -> News {
    ask(|trouble| trouble.news(key)).unwrap_or(News::Told)
}
