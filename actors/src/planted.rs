//! Bugs on purpose: what the tests must be able to catch. None exists outside of builds with the feature `testkit`.
//!
//! Where production code asks [`is`], the answer is `false` at build time unless `testkit` is on; then at most one bug is
//! in place at a time, chosen on the thread by `plant` or for a whole process by `TROUPE_PLANTED`. `BUGS` names all,
//! with what each does; `docs/planted.md` shows which invariant caught each and how soon.

/// Whether this bug is in place.
#[cfg(not(feature = "testkit"))]
#[inline(always)]
pub const fn is(_: &str) -> bool {
    false
}

#[cfg(feature = "testkit")]
pub use chosen::{BUGS, is, plant};

#[cfg(feature = "testkit")]
mod chosen {
    use std::cell::Cell;
    use std::sync::OnceLock;

    /// Every planted bug, and what it does.
    pub const BUGS: &[(&str, &str)] = &[
        (
            "claim-without-compare",
            "mastership is put whatever the key holds, and whoever was outbid meanwhile leads",
        ),
        (
            "create-revision-as-epoch",
            "an epoch is the key's create_revision, which an overwriting put keeps",
        ),
        (
            "claim-unregistered",
            "mastership is claimed without comparing that the claimer is registered",
        ),
        (
            "two-masters-after-replacement",
            "a claim won in a registry that was replaced meanwhile counts, also when it was outbid",
        ),
        (
            "condemn-any-incarnation",
            "a verdict deletes whatever registration is there, compared with nothing",
        ),
        (
            "registration-overwritten",
            "a leftover at our address is overwritten instead of deleted first",
        ),
        (
            "watch-skips-a-revision",
            "a watch begins one revision too late",
        ),
        ("deletes-ignored", "deletions told by a watch are ignored"),
        (
            "never-relist",
            "a doubt does not lead to a new listing, and none is made from time to time",
        ),
        ("lease-not-renewed", "the lease is never renewed"),
        (
            "loss-not-noticed",
            "a registration that is gone is not noticed",
        ),
        (
            "challenge-not-answered",
            "a challenge through the registry is never answered",
        ),
        (
            "generation-does-not-rise",
            "a replaced registry gets the generation of the one before",
        ),
        (
            "leaves-without-deregistering",
            "a drained node leaves its registration behind",
        ),
        ("no-hard-evidence", "a refused dial is no evidence"),
        (
            "silence-condemns",
            "silence alone is evidence, whoever else hears the peer",
        ),
        ("never-suspects", "silence never becomes suspicion"),
        (
            "impatient",
            "suspicion begins after a tenth of the least silence",
        ),
        (
            "removal-not-told",
            "the master is not told of a removed member",
        ),
        ("deposed-leads-on", "a master that was deposed leads on"),
        (
            "unregistered-leads-on",
            "a master whose registration is gone leads on, though mastership is vacant with it",
        ),
        (
            "stand-down-not-told",
            "MasterActor is not told that it no longer leads",
        ),
        (
            "epoch-not-seeded",
            "the fence is not raised by the master key",
        ),
        ("never-claims", "a vacant mastership is not claimed"),
        ("one-restart-too-many", "the restart window allows one more"),
        ("one-restart-too-few", "the restart window allows one less"),
        (
            "restart-forgotten",
            "every third failure of an actor is not followed by a restart",
        ),
        ("late-result-accepted", "a superseded attempt records"),
        (
            "result-recorded-twice",
            "a repeated result is recorded again",
        ),
        (
            "same-attempt-again",
            "a task is handed out again under the number of the attempt before",
        ),
        (
            "lost-worker-keeps-tasks",
            "attempts of a lost worker stay leased",
        ),
        (
            "adopts-the-superseded",
            "an older attempt is adopted over a newer one",
        ),
        (
            "beyond-credit",
            "the master does not count what it hands out, and a worker takes more than it granted",
        ),
        (
            "started-again",
            "an assignment is delivered twice, and a worker starts an attempt again that it has seen",
        ),
        (
            "old-epoch-obeyed",
            "a deposed master goes on, and workers obey an epoch below the fence",
        ),
        (
            "credit-lost",
            "a finished attempt's credit is not given back",
        ),
        (
            "credit-lost-in-report",
            "a report grants one less than is free",
        ),
        (
            "result-forgotten",
            "a result is not held until it is acknowledged",
        ),
        (
            "any-generation",
            "a node of another generation of the registry is let in",
        ),
        (
            "mailbox-dropped",
            "what waits in the mailbox of an actor that failed is dropped at its restart",
        ),
        (
            "journal-not-fenced",
            "a master that is cut off leads on, and the journal is written whoever holds mastership: no fence on results",
        ),
        (
            "journal-loses-an-update",
            "that a task has ended is not in the segment that says so",
        ),
        (
            "acknowledged-before-commit",
            "a submit is answered before its record is in the journal",
        ),
        (
            "result-acknowledged-before-commit",
            "a worker is told to drop its result before that is in the journal",
        ),
        (
            "read-not-confirmed",
            "a master that is cut off leads on, and answers reads without asking whether it still leads",
        ),
        (
            "own-pause-ignored",
            "a node that was paused counts the time against others",
        ),
        (
            "no-relist-after-compaction",
            "a watch that was compacted away goes on from now, and what it missed is not listed",
        ),
    ];

    thread_local! {
        static CHOSEN: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    fn of_process() -> Option<&'static str> {
        static NAME: OnceLock<Option<String>> = OnceLock::new();
        NAME.get_or_init(|| std::env::var("TROUPE_PLANTED").ok())
            .as_deref()
    }

    /// Whether this bug is in place.
    pub fn is(bug: &str) -> bool {
        debug_assert!(
            BUGS.iter().any(|(name, _)| *name == bug),
            "{bug} is not in the list"
        );
        CHOSEN.get().or_else(of_process) == Some(bug)
    }

    /// From now on this bug is in place on this thread, and no other; `None` for none.
    ///
    /// # Panics
    /// There is no such bug.
    pub fn plant(bug: Option<&str>) {
        let known = |name: &str| BUGS.iter().find(|(known, _)| *known == name).map(|b| b.0);
        CHOSEN.set(
            bug.map(|name| {
                known(name).unwrap_or_else(|| panic!("there is no planted bug {name:?}"))
            }),
        );
    }
}
