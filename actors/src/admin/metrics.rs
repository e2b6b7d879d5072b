//! ● The Prometheus page, by hand: the text format is a line per sample, and this node has few of them.
//!
//! No ids in labels; a series of a departed member ends with it, since every page is made from what is there now.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use super::picture::Picture;
use super::{ActorView, ProcessView};
use crate::master::MasterSnapshot;
use crate::master::tally::{Histogram, Tally};
use crate::registry::RegistrySnapshot;
use crate::transport::trust::Reason;
use crate::worker::WorkerSnapshot;

/// What the page is made from; what is absent is left out.
pub(crate) struct Facts<'a> {
    pub(crate) picture: &'a Picture,
    pub(crate) actors: Vec<ActorView>,
    pub(crate) master: Option<MasterSnapshot>,
    pub(crate) worker: Option<WorkerSnapshot>,
    pub(crate) registry: Option<RegistrySnapshot>,
    pub(crate) refusals: BTreeMap<Reason, u64>,
    pub(crate) process: ProcessView,
    /// Start of the process, unix ms.
    pub(crate) started_ms: u64,
    pub(crate) followers: usize,
    pub(crate) log_records: u64,
    pub(crate) refused: BTreeMap<&'static str, u64>,
}

/// The page.
pub(crate) fn render(facts: &Facts<'_>) -> String {
    let mut page = Page::default();
    of_the_cluster(&mut page, facts.picture);
    of_the_actors(&mut page, &facts.actors);
    if let Some(master) = &facts.master {
        of_the_master(&mut page, master);
        of_the_tasks(&mut page, &master.tally);
    }
    of_the_refused(&mut page, facts);
    if let Some(worker) = &facts.worker {
        let name = "troupe_tasks_running";
        page.family(name, "gauge", "Attempts running at this node.");
        page.sample(name, &[], worker.running.len());
    }
    if let Some(registry) = &facts.registry {
        of_the_registry(&mut page, registry);
    }
    of_the_process(&mut page, facts);
    let name = "troupe_admin_refused_total";
    let help = "Requests that were refused or cut off at the door of the API, by reason.";
    page.family(name, "counter", help);
    for (reason, count) in &facts.refused {
        page.sample(name, &[("reason", reason)], count);
    }
    page.text
}

fn of_the_cluster(page: &mut Page, picture: &Picture) {
    let cluster = &picture.cluster;
    let name = "troupe_build_info";
    page.family(name, "gauge", "Which build this is; always 1.");
    page.sample(name, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    let name = "troupe_has_master";
    page.family(name, "gauge", "Whether this node knows of a master.");
    page.sample(name, &[], u8::from(cluster.master.is_some()));
    let name = "troupe_is_master";
    page.family(name, "gauge", "Whether this node leads, as it sees it.");
    page.sample(name, &[], u8::from(cluster.leading));
    let name = "troupe_epoch";
    let help = "Revision of the highest epoch seen in this generation of the registry.";
    page.family(name, "gauge", help);
    page.sample(name, &[], cluster.epoch.revision);
    let name = "troupe_master_changes_total";
    page.family(name, "counter", "Changes of master seen.");
    page.sample(name, &[], picture.master_changes);
    let name = "troupe_members";
    page.family(name, "gauge", "Members of the view by state.");
    let mut states: BTreeMap<&str, u64> = BTreeMap::new();
    for state in ["alive", "suspect", "cut-off", "joining", "draining"] {
        states.insert(state, 0);
    }
    for member in &cluster.members {
        *states.entry(member.state.as_str()).or_default() += 1;
    }
    for (state, count) in states {
        page.sample(name, &[("state", state)], count);
    }
    let name = "troupe_heartbeat_lag_seconds";
    page.family(
        name,
        "gauge",
        "How late this node's own timers fired lately.",
    );
    if let Some(me) = cluster.member(cluster.me) {
        page.sample(name, &[], me.lag.as_secs_f64());
    }
    let name = "troupe_peer_rtt_seconds";
    page.family(name, "gauge", "Smoothed round-trip time to a member.");
    for member in &cluster.members {
        if let Some(rtt) = member.rtt {
            let peer = member.registration.name.as_str();
            page.sample(name, &[("peer", peer)], rtt.as_secs_f64());
        }
    }
}

fn of_the_actors(page: &mut Page, actors: &[ActorView]) {
    let name = "troupe_actor_restarts_total";
    page.family(name, "counter", "Restarts of an actor.");
    for actor in actors {
        page.sample(name, &[("actor", &actor.name)], actor.restarts);
    }
    let name = "troupe_actor_hung";
    let help = "Whether a handler of an actor does not return.";
    page.family(name, "gauge", help);
    for actor in actors {
        let hung = u8::from(actor.state == "hung");
        page.sample(name, &[("actor", &actor.name)], hung);
    }
    let name = "troupe_mailbox_depth";
    page.family(name, "gauge", "Messages waiting for an actor.");
    for actor in actors {
        if let Some(depth) = actor.mailbox {
            page.sample(name, &[("actor", &actor.name)], depth);
        }
    }
}

fn of_the_master(page: &mut Page, master: &MasterSnapshot) {
    let name = "troupe_tasks_queued";
    let help = "Tasks queued at this node, which is 0 unless it leads.";
    page.family(name, "gauge", help);
    let queued = master.tasks.get("queued").copied().unwrap_or(0);
    page.sample(name, &[], queued);
    let name = "troupe_journal_stalled";
    let help = "Whether durable tasks cannot be recorded now.";
    page.family(name, "gauge", help);
    page.sample(name, &[], u8::from(master.journal.stalled));
}

fn of_the_refused(page: &mut Page, facts: &Facts<'_>) {
    let name = "troupe_refused_total";
    let help = "Callers and called refused by the transport, and results refused in this reign, by reason.";
    page.family(name, "counter", help);
    for (reason, count) in &facts.refusals {
        page.sample(name, &[("reason", reason.as_str())], count);
    }
    let master = facts.master.as_ref().filter(|m| m.leading.is_some());
    for (reason, count) in master.iter().flat_map(|m| &m.refused) {
        page.sample(name, &[("reason", reason)], count);
    }
}

fn of_the_tasks(page: &mut Page, tally: &Tally) {
    let name = "troupe_tasks_total";
    let help = "Tasks that were finished while this node led, by job and outcome.";
    page.family(name, "counter", help);
    for (job, outcomes) in &tally.tasks {
        for (outcome, count) in outcomes {
            page.sample(name, &[("job", job), ("outcome", outcome)], count);
        }
    }
    let help = "From acceptance of a task to its first hand-out.";
    page.histogram("troupe_task_wait_seconds", help, &tally.wait);
    let help = "How long the attempt ran that gave a task's answer.";
    page.histogram("troupe_task_run_seconds", help, &tally.run);
    let help = "From sending a segment of the journal to its commit.";
    page.histogram("troupe_journal_commit_seconds", help, &tally.commit);
}

/// Under the names that every process has.
fn of_the_process(page: &mut Page, facts: &Facts<'_>) {
    let process = &facts.process;
    let name = "process_start_time_seconds";
    page.family(name, "gauge", "Start of the process, unix time.");
    page.sample(name, &[], facts.started_ms as f64 / 1000.0);
    if let Some(cpu) = process.cpu_s {
        let name = "process_cpu_seconds_total";
        page.family(name, "counter", "CPU used, user and system.");
        page.sample(name, &[], cpu);
    }
    let gauges = [
        (
            "process_resident_memory_bytes",
            "Resident memory.",
            process.resident_bytes,
        ),
        ("process_threads", "Threads.", process.threads),
        (
            "process_open_fds",
            "Open file descriptors.",
            process.open_fds,
        ),
        (
            "troupe_followers",
            "Followers of events and logs of this node.",
            Some(facts.followers as u64),
        ),
    ];
    for (name, help, value) in gauges {
        if let Some(value) = value {
            page.family(name, "gauge", help);
            page.sample(name, &[], value);
        }
    }
    let name = "troupe_log_records_total";
    page.family(name, "counter", "Log records of this node.");
    page.sample(name, &[], facts.log_records);
}

fn of_the_registry(page: &mut Page, registry: &RegistrySnapshot) {
    let name = "troupe_registry_up";
    page.family(name, "gauge", "Whether the registry answers.");
    page.sample(name, &[], u8::from(registry.up));
    if let Some(left) = registry.lease_remaining_s {
        let name = "troupe_lease_remaining_seconds";
        page.family(name, "gauge", "What is left of this node's lease.");
        page.sample(name, &[], left);
    }
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{}\"", escape(value)));
        let labels = labels.collect::<Vec<_>>().join(",");
        match labels.as_str() {
            "" => self.line(format_args!("{name} {value}")),
            labels => self.line(format_args!("{name}{{{labels}}} {value}")),
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let bounds = Histogram::bounds();
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (at, bound) in bounds.iter().enumerate() {
            below += histogram.buckets.get(at).copied().unwrap_or(0);
            self.sample(&bucket, &[("le", &bound.to_string())], below);
        }
        self.sample(&bucket, &[("le", "+Inf")], histogram.count());
        self.sample(&format!("{name}_sum"), &[], histogram.sum);
        self.sample(&format!("{name}_count"), &[], histogram.count());
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        writeln!(self.text, "{line}").ok();
    }
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
