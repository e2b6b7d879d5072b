//! The gazette: the records of all members in one order, gathered by the node that is asked.
//!
//! Its collector runs only while somebody reads, and one serves all readers: what it costs the cluster does not grow with
//! their number. Order: each round first takes a stamp of this node's hybrid logical clock, then asks every member. A
//! question carries that stamp, so whatever a member records after it has answered is stamped later: what is stamped
//! before the question is complete, and goes out sorted. The rest waits for the next round. What a member that did not
//! answer in time recorded meanwhile comes when it answers again, out of order; it is never held back.
//!
//! | bounded | by |
//! |---|---|
//! | records kept for readers | [`KEPT`] |
//! | one answer of a member | the bounds of a snapshot (`routes/records`) |
//! | a round | [`PATIENCE`]; who was silent is left alone for [`REST`] |

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::RecordsView;
use super::office::Office;
use crate::events::EventLog;
use crate::id::NodeId;

/// Records kept for readers that come late or resume: about 5 MB.
const KEPT: usize = 5000;
/// Pause between two rounds: a kill shows within two of them.
const ROUND: Duration = Duration::from_millis(200);
/// How long a round waits for a member.
const PATIENCE: Duration = Duration::from_millis(700);
/// How long a member that was silent is not asked again, so that it does not slow down every round.
const REST: Duration = Duration::from_secs(2);

/// A record's fields.
pub(crate) type Fields = Map<String, Value>;

/// The gathered records of one life of AdminActor.
pub(crate) struct Gazette {
    log: EventLog,
    life: u32,
    readers: AtomicUsize,
    collecting: AtomicBool,
    rounds: watch::Sender<u64>,
}

/// While it is kept, the collector runs.
pub(crate) struct Reader {
    office: Arc<Office>,
    /// Which life of the gazette its numbers belong to.
    pub(crate) life: u32,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.office.gazette.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Gazette {
    pub(crate) fn new() -> Self {
        Self {
            log: EventLog::new(KEPT),
            life: rand::random(),
            readers: AtomicUsize::new(0),
            collecting: AtomicBool::new(false),
            rounds: watch::Sender::new(0),
        }
    }

    /// Waits for the round that is under way, so that a new reader's "last N" are the last of all members.
    pub(crate) async fn round(&self) {
        let mut rounds = self.rounds.subscribe();
        // A round that takes too long is not waited for: what it brings comes on the stream.
        timeout(PATIENCE, rounds.changed()).await.ok();
    }

    pub(crate) fn log(&self) -> &EventLog {
        &self.log
    }

    /// The number behind the id of a record of this life.
    pub(crate) fn number(&self, id: &str) -> Option<u64> {
        let (life, number) = id.split_once('-')?;
        (u32::from_str_radix(life, 16) == Ok(self.life)).then_some(())?;
        number.parse().ok()
    }
}

/// Begins to read; the first reader starts the collector. `local` answers what this node keeps after a number, `ask` what
/// another member does.
pub(crate) fn read<L, A, F>(office: &Arc<Office>, local: L, ask: A) -> Reader
where
    L: Fn(Option<u64>) -> RecordsView + 'static,
    A: Fn(Arc<Office>, NodeId, Option<u64>) -> F + 'static,
    F: Future<Output = Result<RecordsView, String>> + 'static,
{
    let reader = Reader {
        office: Arc::clone(office),
        life: office.gazette.life,
    };
    office.gazette.readers.fetch_add(1, Ordering::AcqRel);
    if !office.gazette.collecting.swap(true, Ordering::AcqRel) {
        actix_rt::spawn(collect(Arc::clone(office), local, ask));
    }
    reader
}

async fn collect<L, A, F>(office: Arc<Office>, local: L, ask: A)
where
    L: Fn(Option<u64>) -> RecordsView,
    A: Fn(Arc<Office>, NodeId, Option<u64>) -> F,
    F: Future<Output = Result<RecordsView, String>>,
{
    let mut desk = Desk::default();
    desk.resume(&office.gazette.log);
    loop {
        let before = office.seed.events.stamp();
        let me = office.me();
        desk.take(me, Ok(local(desk.since(me))), Instant::now());
        let picture = office.picture();
        let others = picture.cluster.members.iter().map(|m| m.registration.id);
        let now = Instant::now();
        let others: Vec<_> = others
            .filter(|id| *id != me && desk.may_ask(*id, now))
            .collect();
        let asked = others.into_iter().map(|id| {
            let question = ask(Arc::clone(&office), id, desk.since(id));
            async move {
                let late = Err(format!("no answer within {PATIENCE:?}"));
                (id, timeout(PATIENCE, question).await.unwrap_or(late))
            }
        });
        for (id, answer) in join_all(asked).await {
            let notice = desk.take(id, answer, Instant::now());
            if let Some(mut notice) = notice {
                notice.insert("node".to_owned(), json!(picture.name_of(id)));
                notice.insert("node_id".to_owned(), json!(id.to_string()));
                notice.insert("hlc".to_owned(), json!(before));
                desk.held.push(notice);
            }
        }
        for fields in desk.due(&before) {
            office.gazette.log.push(fields);
        }
        office.gazette.rounds.send_modify(|rounds| *rounds += 1);
        tokio::select! {
            biased;
            () = office.closed() => return,
            () = sleep(ROUND) => {}
        }
        // All of this runs on one arbiter: nobody begins to read between the two lines.
        if office.gazette.readers.load(Ordering::Acquire) == 0 {
            office.gazette.collecting.store(false, Ordering::Release);
            return;
        }
    }
}

/// ● What was asked of whom, and what waits for its turn. Time is told.
#[derive(Default)]
struct Desk {
    members: BTreeMap<NodeId, Asked>,
    held: Vec<Fields>,
}

#[derive(Default)]
struct Asked {
    since: Option<u64>,
    rest_until: Option<Instant>,
}

impl Desk {
    /// Goes on where an earlier collector stopped: what readers have been given is not given again.
    fn resume(&mut self, log: &EventLog) {
        let (kept, _) = log.since(0);
        for record in kept {
            let id = record.fields.get("node_id").and_then(Value::as_str);
            let seq = record.fields.get("seq").and_then(Value::as_u64);
            if let (Some(Ok(id)), Some(seq)) = (id.map(str::parse::<NodeId>), seq) {
                let asked = self.members.entry(id).or_default();
                asked.since = asked.since.max(Some(seq));
            }
        }
    }

    fn since(&self, id: NodeId) -> Option<u64> {
        self.members.get(&id).and_then(|asked| asked.since)
    }

    fn may_ask(&self, id: NodeId, now: Instant) -> bool {
        let rest = self.members.get(&id).and_then(|asked| asked.rest_until);
        rest.is_none_or(|until| now >= until)
    }

    /// Takes an answer; what is to be told about it, when something was lost or it fell silent.
    fn take(
        &mut self,
        id: NodeId,
        answer: Result<RecordsView, String>,
        now: Instant,
    ) -> Option<Fields> {
        let asked = self.members.entry(id).or_default();
        let view = match answer {
            Ok(view) => view,
            Err(why) => {
                let fell_silent = asked.rest_until.is_none();
                asked.rest_until = Some(now + REST);
                return fell_silent.then(|| notice("unreachable", "err", json!(why)));
            }
        };
        asked.rest_until = None;
        let resumed = asked.since.is_some();
        let newest = view
            .records
            .iter()
            .filter_map(|f| f.get("seq")?.as_u64())
            .max();
        asked.since = newest.or(asked.since);
        self.held.extend(view.records);
        (resumed && view.missed > 0).then(|| notice("lagged", "missed", json!(view.missed)))
    }

    /// What is stamped before `before`, sorted: nothing earlier can come any more from those that answered.
    fn due(&mut self, before: &str) -> Vec<Fields> {
        let (mut due, held): (Vec<_>, Vec<_>) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|fields| stamp(fields) <= before);
        self.held = held;
        due.sort_by_cached_key(order);
        due
    }
}

fn notice(name: &str, key: &str, value: Value) -> Fields {
    let mut fields = Map::new();
    fields.insert("event".to_owned(), json!(name));
    fields.insert("level".to_owned(), json!("warn"));
    fields.insert("notice".to_owned(), json!(true));
    fields.insert(key.to_owned(), value);
    fields
}

fn stamp(fields: &Fields) -> &str {
    fields.get("hlc").and_then(Value::as_str).unwrap_or("")
}

/// By stamp; the node breaks a tie, and a node's own order stays.
pub(crate) fn order(fields: &Fields) -> (String, String, u64) {
    let node = fields.get("node_id").and_then(Value::as_str).unwrap_or("");
    let seq = fields.get("seq").and_then(Value::as_u64).unwrap_or(0);
    (stamp(fields).to_owned(), node.to_owned(), seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(records: &[(&str, u64)], missed: u64) -> RecordsView {
        let record = |(hlc, seq): &(&str, u64)| {
            let mut fields = Map::new();
            fields.insert("hlc".to_owned(), json!(hlc));
            fields.insert("seq".to_owned(), json!(seq));
            fields
        };
        RecordsView {
            records: records.iter().map(record).collect(),
            missed,
            missing: BTreeMap::new(),
        }
    }

    fn stamps(due: &[Fields]) -> Vec<&str> {
        due.iter().map(stamp).collect()
    }

    #[test]
    fn records_of_two_nodes_go_out_in_the_order_of_their_stamps_and_later_ones_wait() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        desk.take(NodeId(1), Ok(view(&[("02", 1), ("07", 2)], 0)), now);
        desk.take(NodeId(2), Ok(view(&[("01", 8), ("03", 9)], 0)), now);
        assert_eq!(stamps(&desk.due("05")), ["01", "02", "03"]);
        desk.take(NodeId(2), Ok(view(&[("06", 10)], 0)), now);
        assert_eq!(stamps(&desk.due("09")), ["06", "07"]);
        assert_eq!(
            (desk.since(NodeId(1)), desk.since(NodeId(2))),
            (Some(2), Some(10))
        );
    }

    #[test]
    fn who_is_silent_rests_and_is_told_once() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        let silent = || Err("no answer".to_owned());
        assert!(desk.take(NodeId(1), silent(), now).is_some());
        assert!(!desk.may_ask(NodeId(1), now + REST / 2));
        assert!(desk.may_ask(NodeId(1), now + REST));
        assert!(desk.take(NodeId(1), silent(), now + REST).is_none());
        desk.take(NodeId(1), Ok(view(&[], 0)), now + REST);
        assert!(desk.may_ask(NodeId(1), now + REST));
        assert!(desk.take(NodeId(1), silent(), now + REST).is_some());
    }

    #[test]
    fn what_was_lost_is_told_but_the_first_look_begins_where_it_likes() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        assert_eq!(desk.take(NodeId(1), Ok(view(&[("01", 5)], 4)), now), None);
        let told = desk.take(NodeId(1), Ok(view(&[("02", 9)], 3)), now);
        assert_eq!(told.unwrap()["missed"], 3);
    }
}
