//! What `supervisor` promises, tried on real actors: on one thread where order matters, on real arbiters where threads do.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::prelude::*;
use actix::{MailboxError, WrapFuture};
use futures_util::FutureExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use troupe_actors::backoff::Backoff;
use troupe_actors::supervisor::watchdog::{Finding, Watchdog, WatchdogSettings};
use troupe_actors::supervisor::{
    ActorReport, ActorState, ArbiterSpawner, ChildSpec, GaveUp, How, Kill, KillRefused,
    LocalSpawner, Plane, Restart, Strategy, SupervisionSettings, Supervisor, SupervisorHandle,
    TURN_BUDGET, install_panic_hook, mailbox,
};

/// What a player tells the test, in the order it happens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Note {
    Started(&'static str, u32),
    Stopped(&'static str, u32),
    Got(u32),
    Timer(u32),
}
use Note::{Got, Started, Stopped, Timer};

/// An actor that can be made to do everything an actor should not.
struct Player {
    name: &'static str,
    life: u32,
    sum: u32,
    notes: UnboundedSender<Note>,
    /// Asks for a timer at start, after so long.
    timer: Option<Duration>,
    refuses_to_stop: bool,
    dies_badly: bool,
}

impl Actor for Player {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        note(&self.notes, Started(self.name, self.life));
        if let Some(after) = self.timer {
            ctx.run_later(after, |player, _| note(&player.notes, Timer(player.life)));
        }
    }

    fn stopping(&mut self, _: &mut Context<Self>) -> Running {
        if self.refuses_to_stop {
            Running::Continue
        } else {
            Running::Stop
        }
    }

    fn stopped(&mut self, _: &mut Context<Self>) {
        note(&self.notes, Stopped(self.name, self.life));
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        assert!(!self.dies_badly, "a panic in the drop of a dead actor");
    }
}

fn note(notes: &UnboundedSender<Note>, note: Note) {
    // The test may be over already.
    let _over = notes.send(note);
}

/// Adds to the sum of this life and answers it.
#[derive(Message)]
#[rtype(result = "u32")]
struct Add(u32);

#[derive(Message)]
#[rtype(result = "()")]
struct Do(Deed);

enum Deed {
    Panic,
    PanicInTask,
    PanicInTimer,
    /// Cancels a timer and panics in the same turn.
    CancelAndPanic,
    Stop,
    /// Handles no further message until told.
    WaitForever,
    /// Blocks the thread until the channel says so.
    Block(blocking::Receiver<()>),
    /// Keeps its own mailbox full from now on.
    Flood,
}

impl Handler<Add> for Player {
    type Result = u32;

    fn handle(&mut self, Add(n): Add, _: &mut Context<Self>) -> u32 {
        self.sum += n;
        note(&self.notes, Got(n));
        self.sum
    }
}

impl Handler<Do> for Player {
    type Result = ();

    fn handle(&mut self, Do(deed): Do, ctx: &mut Context<Self>) {
        match deed {
            Deed::Panic => panic!("boom"),
            Deed::PanicInTask => {
                ctx.spawn(async { panic!("boom in a task") }.into_actor(self));
            }
            Deed::PanicInTimer => {
                ctx.run_later(Duration::ZERO, |_, _| panic!("boom in a timer"));
            }
            Deed::CancelAndPanic => {
                let timer = ctx.run_later(Duration::from_secs(1), |_, _| {});
                ctx.cancel_future(timer);
                panic!("boom");
            }
            Deed::Stop => ctx.stop(),
            Deed::WaitForever => ctx.wait(std::future::pending().into_actor(self)),
            Deed::Block(until) => until.recv().unwrap_or_default(),
            Deed::Flood => ctx.address().do_send(Do(Deed::Flood)),
        }
    }
}

/// A cast of players under one supervisor.
struct Stage {
    spawner: Arc<dyn troupe_actors::supervisor::Spawner>,
    settings: SupervisionSettings,
    supervisor: Option<Supervisor>,
    notes: UnboundedSender<Note>,
}

type Shape = fn(&mut Player);

fn plain(_: &mut Player) {}

impl Stage {
    fn local(settings: SupervisionSettings) -> (Self, UnboundedReceiver<Note>) {
        Self::on(LocalSpawner, settings)
    }

    fn on(
        spawner: impl troupe_actors::supervisor::Spawner + 'static,
        settings: SupervisionSettings,
    ) -> (Self, UnboundedReceiver<Note>) {
        install_panic_hook();
        let (notes, noted) = unbounded_channel();
        let stage = Self {
            spawner: Arc::new(spawner),
            settings,
            supervisor: Some(Supervisor::new(settings).seed(1)),
            notes,
        };
        (stage, noted)
    }

    fn player(&mut self, name: &'static str) -> Addr<Player> {
        self.shaped(name, plain, |spec| spec)
    }

    fn shaped(
        &mut self,
        name: &'static str,
        shape: Shape,
        spec: fn(ChildSpec) -> ChildSpec,
    ) -> Addr<Player> {
        self.placed(name, Plane::Tasks, shape, spec)
    }

    fn placed(
        &mut self,
        name: &'static str,
        plane: Plane,
        shape: Shape,
        spec: fn(ChildSpec) -> ChildSpec,
    ) -> Addr<Player> {
        let (addr, mailbox) = mailbox::<Player>(4);
        let notes = self.notes.clone();
        let life = Cell::new(0);
        let child = ChildSpec::new(name, plane, mailbox, move || {
            life.set(life.get() + 1);
            let mut player = Player {
                name,
                life: life.get(),
                sum: 0,
                notes: notes.clone(),
                timer: None,
                refuses_to_stop: false,
                dies_badly: false,
            };
            shape(&mut player);
            player
        });
        let supervisor = self
            .supervisor
            .take()
            .unwrap_or_else(|| Supervisor::new(self.settings));
        self.supervisor = Some(supervisor.child(spec(child)));
        addr
    }

    fn start(self) -> (SupervisorHandle, oneshot::Receiver<GaveUp>) {
        let (gave_up, given_up) = oneshot::channel();
        let handle = self
            .supervisor
            .unwrap()
            .start(self.spawner, move |last_word| {
                let _over = gave_up.send(last_word);
            });
        (handle, given_up)
    }
}

/// As often as it takes, without a delay.
fn unlimited() -> SupervisionSettings {
    SupervisionSettings {
        max_restarts: u32::MAX,
        backoff: Backoff::none(),
        ..SupervisionSettings::default()
    }
}

fn strategy(strategy: Strategy) -> SupervisionSettings {
    SupervisionSettings {
        strategy,
        ..unlimited()
    }
}

async fn next<const N: usize>(notes: &mut UnboundedReceiver<Note>) -> [Note; N] {
    let mut seen = Vec::with_capacity(N);
    while seen.len() < N {
        seen.push(notes.recv().await.expect("players hold the sender"));
    }
    seen.try_into().expect("just counted")
}

fn kill(name: &str, how: How) -> Kill {
    Kill {
        name: name.to_owned(),
        how,
    }
}

fn report_of(handle: &SupervisorHandle, name: &str) -> ActorReport {
    handle
        .report()
        .into_iter()
        .find(|report| report.name == name)
        .expect("a known name")
}

#[actix_rt::test]
async fn mailbox_and_addresses_outlive_a_panic_and_only_the_message_being_handled_is_lost() {
    let (mut stage, mut notes) = Stage::local(SupervisionSettings::default());
    let addr = stage.player("a");
    let recipient = addr.clone().recipient::<Add>();
    let (handle, _) = stage.start();
    addr.do_send(Add(1));
    let lost = addr.send(Do(Deed::Panic));
    addr.do_send(Add(2));
    let answered = addr.send(Add(3));
    assert_eq!(lost.await, Err(MailboxError::Closed));
    assert_eq!(
        answered.await,
        Ok(5),
        "2 and 3 in the second life, and not the 1 of the first"
    );
    assert_eq!(recipient.send(Add(4)).await, Ok(9));
    assert_eq!(
        next(&mut notes).await,
        [
            Started("a", 1),
            Got(1),
            Started("a", 2),
            Got(2),
            Got(3),
            Got(4)
        ]
    );
    let report = report_of(&handle, "a");
    assert_eq!(
        (report.state, report.restarts, report.handled),
        (ActorState::Running, 1, 5)
    );
    let failure = report.last_failure.unwrap();
    assert!(
        failure.starts_with("boom, at ") && failure.contains("supervision.rs:"),
        "{failure}"
    );
}

#[actix_rt::test]
async fn an_address_taken_from_the_context_outlives_the_life_it_was_taken_in() {
    struct Mirror(oneshot::Sender<Addr<Mirror>>);
    impl Actor for Mirror {
        type Context = Context<Self>;
        fn started(&mut self, ctx: &mut Context<Self>) {
            let (used_up, _) = oneshot::channel();
            let _later_lives_tell_nobody =
                std::mem::replace(&mut self.0, used_up).send(ctx.address());
        }
    }
    impl Handler<Add> for Mirror {
        type Result = u32;
        fn handle(&mut self, Add(n): Add, _: &mut Context<Self>) -> u32 {
            assert_ne!(n, 0, "zero");
            n
        }
    }
    let (tell, told) = oneshot::channel();
    let tell = Mutex::new(Some(tell));
    let (_, mailbox) = mailbox::<Mirror>(4);
    let child = ChildSpec::new("mirror", Plane::Control, mailbox, move || {
        Mirror(
            tell.lock()
                .unwrap()
                .take()
                .unwrap_or_else(|| oneshot::channel().0),
        )
    });
    let _handle = Supervisor::new(SupervisionSettings::default())
        .child(child)
        .start(Arc::new(LocalSpawner), |_| {});
    let addr = told.await.unwrap();
    assert_eq!(addr.send(Add(0)).await, Err(MailboxError::Closed));
    assert_eq!(addr.send(Add(7)).await, Ok(7));
}

#[actix_rt::test]
async fn panics_in_tasks_and_timers_are_survived_too() {
    let (mut stage, mut notes) = Stage::local(unlimited());
    let addr = stage.player("a");
    let (_handle, _) = stage.start();
    for (life, deed) in [Deed::PanicInTask, Deed::PanicInTimer, Deed::Panic]
        .into_iter()
        .enumerate()
    {
        let life = u32::try_from(life).unwrap() + 1;
        assert_eq!(next(&mut notes).await, [Started("a", life)]);
        addr.do_send(Do(deed));
    }
    assert_eq!(next(&mut notes).await, [Started("a", 4)]);
    assert_eq!(addr.send(Add(1)).await, Ok(1));
}

#[actix_rt::test]
async fn a_factory_that_panics_is_a_failure_like_any_other() {
    let tries = Arc::new(AtomicU32::new(0));
    let (addr, mailbox) = mailbox::<Player>(4);
    let (notes, _noted) = unbounded_channel();
    let child = ChildSpec::new("a", Plane::Tasks, mailbox, {
        let tries = Arc::clone(&tries);
        move || {
            let life = tries.fetch_add(1, Ordering::Relaxed) + 1;
            assert!(life > 2, "not yet");
            let notes = notes.clone();
            Player {
                name: "a",
                life,
                sum: 0,
                notes,
                timer: None,
                refuses_to_stop: false,
                dies_badly: false,
            }
        }
    });
    let handle = Supervisor::new(SupervisionSettings::default())
        .child(child)
        .start(Arc::new(LocalSpawner), |_| {});
    assert_eq!(addr.send(Add(1)).await, Ok(1));
    assert_eq!(tries.load(Ordering::Relaxed), 3);
    assert_eq!(report_of(&handle, "a").restarts, 2);
}

#[actix_rt::test]
async fn a_dead_actor_that_panics_in_its_drop_does_no_harm() {
    let (mut stage, _notes) = Stage::local(SupervisionSettings::default());
    let addr = stage.shaped(
        "a",
        |player| player.dies_badly = player.life == 1,
        |spec| spec,
    );
    let (_handle, _) = stage.start();
    assert_eq!(addr.send(Do(Deed::Panic)).await, Err(MailboxError::Closed));
    assert_eq!(addr.send(Add(1)).await, Ok(1));
}

#[actix_rt::test]
async fn ten_thousand_panics_in_a_row_are_survived() {
    let (mut stage, _notes) = Stage::local(unlimited());
    let addr = stage.player("a");
    let (handle, _) = stage.start();
    for _ in 0..10_000 {
        addr.do_send(Do(Deed::Panic));
    }
    assert_eq!(addr.send(Add(1)).await, Ok(1));
    let report = report_of(&handle, "a");
    assert_eq!((report.restarts, report.handled), (10_000, 10_001));
}

#[actix_rt::test]
async fn a_single_kill_is_healed_within_100_ms() {
    let (mut stage, mut notes) = Stage::on(ArbiterSpawner::new(), SupervisionSettings::default());
    let addr = stage.player("a");
    let (handle, _) = stage.start();
    assert_eq!(next(&mut notes).await, [Started("a", 1)]);
    let killed = Instant::now();
    handle.kill(&kill("a", How::Panic)).unwrap();
    assert_eq!(next(&mut notes).await, [Started("a", 2)]);
    assert_eq!(addr.send(Add(1)).await, Ok(1));
    assert!(
        killed.elapsed() < Duration::from_millis(100),
        "{:?}",
        killed.elapsed()
    );
    let failure = report_of(&handle, "a").last_failure.unwrap();
    assert!(failure.starts_with("killed by an operator"), "{failure}");
}

#[actix_rt::test]
async fn a_kill_works_on_a_full_mailbox_and_the_next_life_handles_what_was_in_it() {
    for how in [How::Panic, How::Stop] {
        let (mut stage, mut notes) = Stage::local(SupervisionSettings::default());
        let addr = stage.player("a");
        let (handle, _) = stage.start();
        addr.send(Do(Deed::WaitForever)).await.unwrap();
        let mut queued = 0;
        // Once to fill the queue, and again for what the guard takes into its own hands.
        for _ in 0..2 {
            while addr.try_send(Add(1)).is_ok() {
                queued += 1;
            }
            actix_rt::task::yield_now().await;
        }
        assert!(queued >= 4);
        handle.kill(&kill("a", how)).unwrap();
        assert_eq!(
            handle.kill(&kill("a", how)),
            Err(KillRefused::Pending { name: "a" })
        );
        assert_eq!(addr.send(Add(1)).await, Ok(queued + 1));
        assert_eq!(report_of(&handle, "a").restarts, 1);
        notes.close();
    }
}

#[actix_rt::test]
async fn the_depth_of_a_mailbox_that_is_not_handled_shows() {
    let (mut stage, _notes) = Stage::local(SupervisionSettings::default());
    let addr = stage.player("a");
    let (handle, _) = stage.start();
    addr.send(Do(Deed::WaitForever)).await.unwrap();
    for _ in 0..3 {
        addr.try_send(Add(1)).unwrap();
    }
    while report_of(&handle, "a").mailbox != Some(3) {
        actix_rt::task::yield_now().await;
    }
}

#[actix_rt::test]
async fn a_kill_of_nobody_is_refused_in_words() {
    let (mut stage, _notes) = Stage::local(SupervisionSettings::default());
    stage.player("a");
    let temporary = stage.shaped("b", plain, |spec| spec.restart(Restart::Temporary));
    let (handle, _) = stage.start();
    let refused = handle.kill(&kill("c", How::Panic)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        r#"there is no actor named "c"; there are a, b"#
    );
    temporary.send(Do(Deed::Stop)).await.unwrap();
    assert_eq!(temporary.send(Add(1)).await, Err(MailboxError::Closed));
    let refused = handle.kill(&kill("b", How::Panic)).unwrap_err();
    assert_eq!(refused.to_string(), "b is stopped, so it cannot be killed");
}

#[actix_rt::test]
async fn a_hang_is_named_the_rest_goes_on_and_a_shutdown_says_who_stayed() {
    let (mut stage, mut notes) = Stage::on(ArbiterSpawner::new(), SupervisionSettings::default());
    stage.shaped("stuck", plain, |spec| {
        spec.stop_within(Duration::from_millis(10))
    });
    let other = stage.placed("other", Plane::Transport, plain, |spec| spec);
    let (handle, _) = stage.start();
    next::<2>(&mut notes).await;
    let settings = WatchdogSettings {
        every: Duration::from_millis(2),
        hung_after: Duration::from_millis(50),
    };
    let (tell, mut found) = unbounded_channel();
    let watchdog = Watchdog::start(&handle, settings, move |finding| {
        tell.send(finding).unwrap()
    })
    .unwrap();
    handle.kill(&kill("stuck", How::Hang)).unwrap();
    let finding = found.recv().await.unwrap();
    assert!(
        matches!(finding, Finding::Hung { actor: "stuck", busy_for, .. } if busy_for > settings.hung_after)
    );
    let report = report_of(&handle, "stuck");
    assert_eq!((report.state, report.mailbox), (ActorState::Hung, None));
    assert!(report.busy_for > settings.hung_after);
    let refused = handle.kill(&kill("stuck", How::Stop)).unwrap_err();
    assert_eq!(
        refused,
        KillRefused::NotRunning {
            name: "stuck",
            state: ActorState::Hung
        }
    );
    assert_eq!(other.send(Add(1)).await, Ok(1));
    assert_eq!(handle.shutdown().await.overdue, ["stuck"]);
    assert_eq!(report_of(&handle, "stuck").state, ActorState::Hung);
    assert_eq!(report_of(&handle, "other").state, ActorState::Stopped);
    drop(watchdog);
    assert_eq!(
        found.recv().await,
        None,
        "a hang is reported once, and the watchdog ends when dropped"
    );
}

#[actix_rt::test]
async fn a_handler_that_returns_after_all_is_no_longer_hung() {
    let (mut stage, _notes) = Stage::on(ArbiterSpawner::new(), SupervisionSettings::default());
    let addr = stage.player("slow");
    let (handle, _) = stage.start();
    let settings = WatchdogSettings {
        every: Duration::from_millis(2),
        hung_after: Duration::from_millis(20),
    };
    let (tell, mut found) = unbounded_channel();
    let _watchdog = Watchdog::start(&handle, settings, move |finding| {
        tell.send(finding).unwrap()
    })
    .unwrap();
    let (release, until) = blocking::channel();
    let done = addr.send(Do(Deed::Block(until)));
    let (hung, ()) = futures_util::join!(found.recv(), async {
        // The request has to be on its way before the answer can be waited for.
        addr.do_send(Add(1));
        actix_rt::spawn(done);
    });
    assert!(matches!(hung, Some(Finding::Hung { actor: "slow", .. })));
    release.send(()).unwrap();
    assert_eq!(
        found.recv().await,
        Some(Finding::Recovered { actor: "slow" })
    );
    assert_eq!(report_of(&handle, "slow").state, ActorState::Running);
    assert_eq!(report_of(&handle, "slow").restarts, 0);
}

#[actix_rt::test]
async fn one_for_one_restarts_only_who_failed() {
    let (mut stage, mut notes) = Stage::local(strategy(Strategy::OneForOne));
    let [_a, b, _c] = ["a", "b", "c"].map(|name| stage.player(name));
    let (handle, _) = stage.start();
    assert_eq!(
        next(&mut notes).await,
        [Started("a", 1), Started("b", 1), Started("c", 1)]
    );
    b.do_send(Do(Deed::Panic));
    assert_eq!(next(&mut notes).await, [Started("b", 2)]);
    let restarts: Vec<_> = handle
        .report()
        .iter()
        .map(|report| report.restarts)
        .collect();
    assert_eq!(restarts, [0, 1, 0]);
}

#[actix_rt::test]
async fn one_for_all_stops_the_others_in_reverse_and_starts_all_in_order() {
    let (mut stage, mut notes) = Stage::local(strategy(Strategy::OneForAll));
    let [_a, b, _c] = ["a", "b", "c"].map(|name| stage.player(name));
    let (_handle, _) = stage.start();
    next::<3>(&mut notes).await;
    b.do_send(Do(Deed::Panic));
    assert_eq!(
        next(&mut notes).await,
        [
            Stopped("c", 1),
            Stopped("a", 1),
            Started("a", 2),
            Started("b", 2),
            Started("c", 2)
        ]
    );
}

#[actix_rt::test]
async fn rest_for_one_takes_those_started_later_along() {
    let (mut stage, mut notes) = Stage::local(strategy(Strategy::RestForOne));
    let [_a, b, _c, _d] = ["a", "b", "c", "d"].map(|name| stage.player(name));
    let (_handle, _) = stage.start();
    next::<4>(&mut notes).await;
    b.do_send(Do(Deed::Panic));
    assert_eq!(
        next(&mut notes).await,
        [
            Stopped("d", 1),
            Stopped("c", 1),
            Started("b", 2),
            Started("c", 2),
            Started("d", 2)
        ]
    );
}

#[actix_rt::test]
async fn two_that_fail_at_once_are_restarted_with_their_group_once() {
    let (mut stage, mut notes) = Stage::local(strategy(Strategy::OneForAll));
    let [a, b] = ["a", "b"].map(|name| stage.player(name));
    let (handle, _) = stage.start();
    next::<2>(&mut notes).await;
    a.do_send(Do(Deed::Panic));
    b.do_send(Do(Deed::Panic));
    // Starts are issued in order, but b's guard was about to run anyway.
    let mut again = next::<2>(&mut notes).await;
    again.sort_by_key(|note| note == &Started("b", 2));
    assert_eq!(again, [Started("a", 2), Started("b", 2)]);
    let restarts: Vec<_> = handle
        .report()
        .iter()
        .map(|report| report.restarts)
        .collect();
    assert_eq!(restarts, [1, 1]);
}

#[actix_rt::test]
async fn a_child_stuck_in_a_handler_cannot_be_restarted_with_its_group_so_the_supervisor_gives_up()
{
    let (mut stage, mut notes) = Stage::on(ArbiterSpawner::new(), strategy(Strategy::OneForAll));
    let fails = stage.placed("fails", Plane::Transport, plain, |spec| spec);
    stage.shaped("stuck", plain, |spec| {
        spec.stop_within(Duration::from_millis(5))
    });
    let (handle, given_up) = stage.start();
    next::<2>(&mut notes).await;
    handle.kill(&kill("stuck", How::Hang)).unwrap();
    while report_of(&handle, "stuck").busy_for == Duration::ZERO {
        actix_rt::task::yield_now().await;
    }
    fails.do_send(Do(Deed::Panic));
    let failure = "did not stop within its deadline".to_owned();
    assert_eq!(
        given_up.await,
        Ok(GaveUp {
            actor: "stuck",
            failure
        })
    );
    assert_eq!(
        fails.send(Add(1)).await,
        Err(MailboxError::Closed),
        "it does not wait for a life that never comes"
    );
}

#[actix_rt::test]
async fn a_transient_child_comes_back_after_a_panic_and_stays_down_after_a_stop() {
    let (mut stage, _notes) = Stage::local(SupervisionSettings::default());
    let addr = stage.shaped("a", plain, |spec| spec.restart(Restart::Transient));
    let (handle, _) = stage.start();
    assert_eq!(addr.send(Do(Deed::Panic)).await, Err(MailboxError::Closed));
    assert_eq!(addr.send(Add(1)).await, Ok(1));
    handle.kill(&kill("a", How::Stop)).unwrap();
    while report_of(&handle, "a").state != ActorState::Stopped {
        actix_rt::task::yield_now().await;
    }
    assert_eq!(addr.send(Add(1)).await, Err(MailboxError::Closed));
    assert_eq!(report_of(&handle, "a").restarts, 1);
}

#[actix_rt::test]
async fn shutdown_stops_in_reverse_start_order_and_closes_the_mailboxes() {
    let (mut stage, mut notes) = Stage::on(ArbiterSpawner::new(), SupervisionSettings::default());
    let a = stage.placed("a", Plane::Control, plain, |spec| spec);
    stage.placed("b", Plane::Transport, plain, |spec| spec);
    stage.placed("c", Plane::Admin, plain, |spec| spec);
    let (handle, given_up) = stage.start();
    next::<3>(&mut notes).await;
    assert!(handle.answers().await);
    let (first, second) = futures_util::join!(handle.shutdown(), handle.shutdown());
    assert!(first.is_clean() && second.is_clean());
    assert_eq!(
        next(&mut notes).await,
        [Stopped("c", 1), Stopped("b", 1), Stopped("a", 1)]
    );
    assert_eq!(a.send(Add(1)).await, Err(MailboxError::Closed));
    assert!(
        handle.shutdown().await.is_clean(),
        "the second time there is nothing left to do"
    );
    assert!(!handle.answers().await, "nobody is there to answer");
    assert!(given_up.await.is_err(), "an orderly end is no giving up");
    assert!(
        handle
            .report()
            .iter()
            .all(|report| report.state == ActorState::Stopped)
    );
}

#[tokio::test(start_paused = true)]
async fn a_child_that_refuses_to_stop_is_dropped_at_its_deadline_and_the_next_is_stopped_then() {
    let script = async {
        let (mut stage, mut notes) = Stage::local(SupervisionSettings::default());
        stage.player("a");
        stage.shaped(
            "b",
            |player| player.refuses_to_stop = true,
            |spec| spec.stop_within(Duration::from_secs(7)),
        );
        let (handle, _) = stage.start();
        next::<2>(&mut notes).await;
        let asked = tokio::time::Instant::now();
        assert_eq!(handle.shutdown().await.overdue, ["b"]);
        assert!(
            asked.elapsed() >= Duration::from_secs(7) && asked.elapsed() < Duration::from_secs(8)
        );
        assert_eq!(next(&mut notes).await, [Stopped("a", 1)]);
    };
    LocalSet::new().run_until(script).await;
}

#[actix_rt::test]
async fn the_death_of_an_arbiter_is_given_up_at_once() {
    let spawner = ArbiterSpawner::new();
    let arbiter = spawner.arbiter(Plane::Tasks).clone();
    let (mut stage, mut notes) = Stage::on(spawner, SupervisionSettings::default());
    let addr = stage.player("a");
    let (handle, given_up) = stage.start();
    next::<1>(&mut notes).await;
    arbiter.stop();
    let failure = "its arbiter died".to_owned();
    assert_eq!(
        given_up.await,
        Ok(GaveUp {
            actor: "a",
            failure
        })
    );
    assert_eq!(report_of(&handle, "a").state, ActorState::Stopped);
    assert_eq!(addr.send(Add(1)).await, Err(MailboxError::Closed));
    assert!(handle.shutdown().await.is_clean());
}

#[actix_rt::test]
async fn a_child_whose_arbiter_was_never_there_is_given_up() {
    let spawner = ArbiterSpawner::new();
    let arbiter = spawner.arbiter(Plane::Tasks).clone();
    arbiter.stop();
    // The arbiter is gone when what was spawned on it is dropped.
    while arbiter.spawn(async {}) {
        actix_rt::task::yield_now().await;
    }
    let (mut stage, _notes) = Stage::on(spawner, SupervisionSettings::default());
    stage.player("a");
    let (_handle, given_up) = stage.start();
    assert_eq!(given_up.await.unwrap().actor, "a");
}

#[actix_rt::test]
async fn the_death_of_the_control_plane_is_given_up_too() {
    let spawner = ArbiterSpawner::new();
    let control = spawner.arbiter(Plane::Control).clone();
    let (mut stage, mut notes) = Stage::on(spawner, SupervisionSettings::default());
    stage.player("a");
    let (handle, given_up) = stage.start();
    next::<1>(&mut notes).await;
    control.stop();
    assert_eq!(given_up.await.unwrap().actor, "supervisor");
    assert!(
        handle.shutdown().await.is_clean(),
        "nobody is left to ask, and nobody waits for them"
    );
}

#[tokio::test(start_paused = true)]
async fn the_sixth_failure_within_the_window_gives_up_and_a_slower_pace_never_does() {
    let script = async {
        let (mut stage, mut notes) = Stage::local(SupervisionSettings::default());
        let addr = stage.player("a");
        let (handle, mut given_up) = stage.start();
        next::<1>(&mut notes).await;
        for life in 2..=20 {
            tokio::time::advance(Duration::from_millis(2_100)).await;
            addr.do_send(Do(Deed::Panic));
            assert_eq!(next(&mut notes).await, [Started("a", life)]);
        }
        tokio::time::advance(Duration::from_secs(11)).await;
        for life in 21..=25 {
            addr.do_send(Do(Deed::Panic));
            assert_eq!(next(&mut notes).await, [Started("a", life)]);
        }
        assert!(given_up.try_recv().is_err());
        addr.do_send(Do(Deed::Panic));
        let last_word = given_up.await.unwrap();
        assert_eq!(last_word.actor, "a");
        assert!(last_word.failure.contains("boom"), "{last_word}");
        assert!(
            last_word.failure.ends_with("more than 5 restarts in 10s"),
            "{last_word}"
        );
        assert_eq!(addr.send(Add(1)).await, Err(MailboxError::Closed));
        assert_eq!(report_of(&handle, "a").state, ActorState::Stopped);
    };
    LocalSet::new().run_until(script).await;
}

#[tokio::test(start_paused = true)]
async fn a_send_to_an_actor_that_is_being_restarted_waits_for_its_next_life() {
    let hour = Duration::from_secs(3_600);
    let slow = SupervisionSettings {
        within: hour * 10,
        backoff: Backoff::new(hour, hour).jitter(0.0),
        ..SupervisionSettings::default()
    };
    let script = async {
        let (mut stage, mut notes) = Stage::local(slow);
        let addr = stage.player("a");
        let (handle, _) = stage.start();
        for life in 1..=2 {
            assert_eq!(next(&mut notes).await, [Started("a", life)]);
            addr.do_send(Do(Deed::Panic));
        }
        let mut waiting = Box::pin(addr.send(Add(1)));
        assert!((&mut waiting).now_or_never().is_none());
        while report_of(&handle, "a").state != ActorState::Restarting {
            tokio::task::yield_now().await;
        }
        let asked = tokio::time::Instant::now();
        assert_eq!(waiting.await, Ok(1));
        assert!(
            asked.elapsed() >= hour - Duration::from_secs(1),
            "{:?}",
            asked.elapsed()
        );
    };
    LocalSet::new().run_until(script).await;
}

#[tokio::test(start_paused = true)]
async fn timers_of_an_old_life_do_not_fire_in_the_new_one_and_its_cancels_cancel_nothing_there() {
    let script = async {
        let (mut stage, mut notes) = Stage::local(SupervisionSettings::default());
        let addr = stage.shaped(
            "a",
            |player| player.timer = Some(Duration::from_secs(60)),
            |spec| spec,
        );
        let (_handle, _) = stage.start();
        assert_eq!(next(&mut notes).await, [Started("a", 1)]);
        tokio::time::advance(Duration::from_secs(30)).await;
        addr.do_send(Do(Deed::CancelAndPanic));
        assert_eq!(next(&mut notes).await, [Started("a", 2)]);
        let reborn = tokio::time::Instant::now();
        assert_eq!(next(&mut notes).await, [Timer(2)]);
        assert!(
            reborn.elapsed() >= Duration::from_secs(60),
            "{:?}",
            reborn.elapsed()
        );
    };
    LocalSet::new().run_until(script).await;
}

#[actix_rt::test]
async fn a_flood_starves_no_neighbour() {
    let (mut stage, mut notes) = Stage::local(SupervisionSettings::default());
    let [flood, neighbour] = ["flood", "neighbour"].map(|name| stage.player(name));
    let (handle, _) = stage.start();
    next::<2>(&mut notes).await;
    flood.do_send(Do(Deed::Flood));
    for n in 1..=100 {
        assert_eq!(neighbour.send(Add(1)).await, Ok(n));
    }
    assert!(report_of(&handle, "flood").handled >= u64::from(TURN_BUDGET));
    assert!(handle.shutdown().await.is_clean());
}

#[test]
#[should_panic(expected = "two actors named")]
fn two_children_of_one_name_are_refused() {
    let (mut stage, _notes) = Stage::local(SupervisionSettings::default());
    stage.player("a");
    stage.player("a");
}
