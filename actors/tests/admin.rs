//! The admin API against stand-ins for the other actors: shapes, refusals, deadlines, carrying between nodes, streams.
//!
//! Time is paused where a deadline is meant to pass: it passes at once when nothing else can happen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::{Actor, Addr, Context, Handler, Recipient, ResponseFuture};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;
use troupe_actors::admin::tls::{ClientTls, ServerTls, authority};
use troupe_actors::admin::{
    Access, ActorView, Actors, AdminActor, AdminSeed, AdminSettings, Audit, ChangedView,
    DrainReceipt, SettingView, Settings, Token,
};
use troupe_actors::cluster::{
    Cluster, ClusterChanged, Identity, Master, MasterRecord, Member, MemberState, Registration,
};
use troupe_actors::discovery::{NewMaster, Reborn, StepDown, StepDownError};
use troupe_actors::events::EventLog;
use troupe_actors::id::{Epoch, Generation, Incarnation, NodeId, TaskId};
use troupe_actors::master::{
    AskMaster, AwaitTasks, CancelTask, ChangeError, Ended, GetTask, ListTasks, MasterSnapshot,
    RetryTask, Submit, SubmitAndWait, SubmitError, Submitted, Taken, TaskView,
};
use troupe_actors::registry::{
    AskRegistry, Change, EditKey, EditRefused, KeyView, ListKeys, RegistryError, RegistrySnapshot,
    Stamp, WatchBatch, WatchKeys, WatchStream,
};
use troupe_actors::transport::tls::Secret;
use troupe_actors::transport::{Inbound, Refusals, Send, SendError};
use troupe_actors::wire::{ApiRequest, Envelope, Header, Message};
use troupe_actors::worker::{AskWorker, WorkerSnapshot};

// ---- stand-ins

/// What the stand-ins of one node do.
#[derive(Default)]
struct Script {
    leads: bool,
    busy: bool,
    hung: BTreeSet<&'static str>,
    tasks: BTreeMap<TaskId, TaskView>,
    heirs: Vec<Option<String>>,
    reborn: usize,
}

type Shared = Arc<Mutex<Script>>;
type Network = Arc<Mutex<BTreeMap<NodeId, Recipient<Inbound>>>>;

/// One stand-in for all actors of a node but AdminActor.
struct Others {
    me: NodeId,
    script: Shared,
    network: Network,
}

impl Actor for Others {
    type Context = Context<Self>;
}

impl Others {
    fn play<T: 'static>(
        &self,
        actor: &'static str,
        line: impl FnOnce(&mut Script) -> T + 'static,
    ) -> ResponseFuture<T> {
        let script = Arc::clone(&self.script);
        Box::pin(async move {
            let hung = script.lock().unwrap().hung.contains(actor);
            if hung {
                std::future::pending::<()>().await;
            }
            line(&mut script.lock().unwrap())
        })
    }
}

macro_rules! plays {
    ($($actor:literal $message:ty => $answer:ty, $line:expr;)*) => { $(
        impl Handler<$message> for Others {
            type Result = ResponseFuture<$answer>;
            fn handle(&mut self, message: $message, _: &mut Self::Context) -> Self::Result {
                let line: fn(&mut Script, $message) -> $answer = $line;
                self.play($actor, move |script| line(script, message))
            }
        }
    )* };
}

impl Handler<SubmitAndWait> for Others {
    type Result = ResponseFuture<Submitted>;

    fn handle(
        &mut self,
        SubmitAndWait(tasks): SubmitAndWait,
        ctx: &mut Self::Context,
    ) -> Self::Result {
        let answers = Handler::<Submit>::handle(self, Submit(tasks), ctx);
        let me = actix::AsyncContext::address(ctx);
        Box::pin(async move {
            let answers = answers.await;
            let ids = answers.iter().flatten().map(|taken| taken.id).collect();
            let (tell, ended) = tokio::sync::oneshot::channel();
            actix_rt::spawn(async move {
                if let Ok(Some(all)) = me.send(AwaitTasks(ids)).await {
                    tell.send(all).ok();
                }
            });
            Submitted { answers, ended }
        })
    }
}

impl Handler<AwaitTasks> for Others {
    type Result = ResponseFuture<Option<Vec<Ended>>>;

    fn handle(&mut self, AwaitTasks(ids): AwaitTasks, _: &mut Self::Context) -> Self::Result {
        let script = Arc::clone(&self.script);
        Box::pin(async move {
            loop {
                let open = |id: &TaskId| {
                    let script = script.lock().unwrap();
                    script.tasks.get(id).is_none_or(|t| t.state == "queued")
                };
                if !ids.iter().any(open) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let ended = ids.into_iter().map(|id| Ended {
                id,
                state: "done",
                output: Some(bytes::Bytes::from_static(b"21")),
                error: None,
            });
            Some(ended.collect())
        })
    }
}

plays! {
    "master" AskMaster => MasterSnapshot, |script, _| MasterSnapshot {
        leading: script.leads.then(|| "1-5".to_owned()),
        tasks: BTreeMap::from([("queued".to_owned(), script.tasks.len() as u64)]),
        outstanding: BTreeMap::from([("beta".to_owned(), 2)]),
        ..MasterSnapshot::default()
    };
    "master" ListTasks => Option<Vec<TaskView>>, |script, ask| script.leads.then(|| {
        let newest = script.tasks.values().rev();
        newest.filter(|t| ask.after.is_none_or(|a| t.id < a)).take(ask.limit).cloned().collect()
    });
    "master" GetTask => Option<Option<TaskView>>, |script, GetTask(id)| {
        script.leads.then(|| script.tasks.get(&id).cloned())
    };
    "master" CancelTask => Result<TaskView, ChangeError>, |script, CancelTask(id)| {
        let task = script.tasks.get_mut(&id).ok_or(ChangeError::Missing(id))?;
        if task.state == "done" {
            return Err(ChangeError::Conflict { state: "done", why: "it is already finished" });
        }
        "cancelled".clone_into(&mut task.state);
        Ok(task.clone())
    };
    "master" RetryTask => Result<TaskView, ChangeError>, |script, RetryTask(id)| {
        let task = script.tasks.get_mut(&id).ok_or(ChangeError::Missing(id))?;
        "queued".clone_into(&mut task.state);
        Ok(task.clone())
    };
    "master" Submit => Vec<Result<Taken, SubmitError>>, |script, Submit(tasks)| {
        tasks.into_iter().map(|task| {
            if !script.leads {
                return Err(SubmitError::NotMaster);
            }
            if script.busy {
                return Err(SubmitError::Busy { queued: 9, retry_after_s: 7 });
            }
            if task.job == "juggle" {
                return Err(SubmitError::Invalid("nobody can juggle".into()));
            }
            let id = task.id.expect("the API names every task");
            let input = serde_json::from_slice(&task.input).unwrap();
            let view = TaskView { input, ..view(id, "queued") };
            script.tasks.entry(id).or_insert(view);
            Ok(Taken { id, state: "queued" })
        }).collect()
    };
    "worker" AskWorker => WorkerSnapshot, |_, _| WorkerSnapshot { capacity: 4, ..WorkerSnapshot::default() };
    "registry" AskRegistry => RegistrySnapshot, |_, _| RegistrySnapshot {
        up: true,
        lease_remaining_s: Some(119),
        ..RegistrySnapshot::default()
    };
    "registry" ListKeys => Result<Vec<KeyView>, RegistryError>, |_, ListKeys { prefix }| Ok(vec![KeyView {
        key: format!("/troupe/{prefix}"),
        value: json!({"a": 1}),
        create_revision: 1,
        mod_revision: 2,
        lease: 3,
        ttl_s: Some(100),
        owner: Some("alpha".into()),
        stale: None,
        binary: false,
    }]);
    "registry" EditKey => Result<i64, EditRefused>, |_, edit| match edit.seen {
        2 => Ok(9),
        seen => Err(EditRefused::Changed { key: edit.key, seen, is: 2 }),
    };
    "registry" WatchKeys => Result<WatchStream, RegistryError>, |_, _| {
        let change = Change::Delete { key: "/troupe/master".into(), revision: 7 };
        let stamp = Stamp { cluster_id: 1, revision: 7 };
        Ok(futures_util::stream::iter([Ok(WatchBatch { stamp, changes: vec![change] })]).boxed())
    };
    "discovery" StepDown => Result<NewMaster, StepDownError>, |script, ask| {
        if !script.leads {
            return Err(StepDownError::NotMaster);
        }
        script.heirs.push(ask.heir.clone());
        match ask.heir {
            Some(_) => Ok(NewMaster { name: "beta".into(), epoch: "1-9".into(), handed_over: 3, masterless_ms: 1.5 }),
            None => Err(StepDownError::NoHeir("alone".into())),
        }
    };
    "discovery" Reborn => (), |script, _| script.reborn += 1;
}

/// Carries by encoding and decoding, as a socket would.
impl Handler<Send> for Others {
    type Result = Result<(), SendError>;

    fn handle(&mut self, Send { to, message }: Send, _: &mut Self::Context) -> Self::Result {
        let network = self.network.lock().unwrap();
        let desk = network.get(&to).ok_or(SendError::NoSession)?;
        let body = message.encode_body(Vec::new()).unwrap();
        if body.len() > 1024 * 1024 {
            return Err(SendError::TooLarge);
        }
        let message = Message::decode_body(message.kind(), &body).unwrap();
        desk.do_send(inbound(self.me, message.unwrap()));
        Ok(())
    }
}

fn inbound(from: NodeId, message: Message) -> Inbound {
    Inbound {
        from,
        incarnation: Incarnation(1),
        envelopes: vec![Envelope {
            header: Header::default(),
            message,
        }],
    }
}

/// Takes everything and answers nothing.
struct Mute;

impl Actor for Mute {
    type Context = Context<Self>;
}

impl Handler<Inbound> for Mute {
    type Result = ();
    fn handle(&mut self, _: Inbound, _: &mut Self::Context) {}
}

/// Settings of which one takes a number.
struct Knobs;

impl Settings for Knobs {
    fn show(&self) -> BTreeMap<String, SettingView> {
        let weight = SettingView {
            value: json!(0),
            origin: "default".into(),
            live: true,
        };
        BTreeMap::from([("discovery.weight".to_owned(), weight)])
    }

    fn set(
        &self,
        values: BTreeMap<String, Value>,
    ) -> BoxFuture<'static, Result<ChangedView, String>> {
        Box::pin(async move {
            let number = values.get("discovery.weight").and_then(Value::as_i64);
            let number = number.ok_or("it takes a number")?;
            Ok(ChangedView {
                changed: vec![format!("discovery.weight = {number}")],
                ..ChangedView::default()
            })
        })
    }

    fn reload(&self) -> BoxFuture<'static, Result<ChangedView, String>> {
        Box::pin(async { Err("config.toml:1: is not TOML".to_owned()) })
    }
}

#[actix_rt::test]
async fn settings_are_shown_changed_and_read_again_at_any_node() {
    let (alpha, _beta, _) = pair().await;
    let (status, shown) = alpha.get("/v1/config?node=beta").await;
    assert_eq!(status, 200, "{shown}");
    assert_eq!(shown["node"], "beta");
    assert_eq!(shown["settings"]["discovery.weight"]["live"], true);
    let (status, changed) = alpha
        .post("/v1/config?node=beta", r#"{"discovery.weight": 5}"#)
        .await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!(changed["changed"], json!(["discovery.weight = 5"]));
    for (path, body, status, words) in [
        (
            "/v1/config?node=beta",
            r#"{"discovery.weight": "x"}"#,
            422,
            "a number",
        ),
        ("/v1/config", "[]", 400, ""),
        ("/v1/config/reload", "", 422, "not TOML"),
        ("/v1/config/reload?node=nobody", "", 404, "nobody"),
    ] {
        let (found, answer) = alpha.post(path, body).await;
        assert_eq!(found, status, "{path}: {answer}");
        assert!(answer.to_string().contains(words), "{path}: {answer}");
    }
}

/// A supervision tree whose report panics once its master is to hang.
#[derive(Default)]
struct Tree {
    killed: Mutex<Vec<String>>,
}

impl Actors for Tree {
    fn report(&self) -> Vec<ActorView> {
        let broken = self
            .killed
            .lock()
            .unwrap()
            .iter()
            .any(|k| k == "master hang");
        assert!(!broken, "the report is broken, as planned");
        vec![ActorView {
            name: "master".into(),
            state: "running".into(),
            restarts: 2,
            last_failure: Some("panicked".into()),
            mailbox: Some(0),
            handled: 7,
            uptime_s: 1.5,
            busy_with: None,
        }]
    }

    fn trace(&self, name: &str) -> Option<String> {
        (name == "master").then(|| "0: master::handle".to_owned())
    }

    fn kill(&self, name: &str, how: &str) -> Result<(), String> {
        if how == "stop" {
            return Err("it is restarting already".into());
        }
        self.killed.lock().unwrap().push(format!("{name} {how}"));
        Ok(())
    }
}

// ---- a node

const ALPHA: NodeId = NodeId(1);
const BETA: NodeId = NodeId(2);
const GHOST: NodeId = NodeId(3);

struct Node {
    id: NodeId,
    script: Shared,
    tree: Arc<Tree>,
    drains: Arc<AtomicUsize>,
    seed: AdminSeed,
    router: Router,
    addr: Addr<AdminActor>,
}

fn node(id: NodeId, network: &Network, settings: AdminSettings) -> Node {
    let script = Shared::default();
    let others = Others {
        me: id,
        script: Arc::clone(&script),
        network: Arc::clone(network),
    }
    .start();
    let (tree, drains) = (Arc::new(Tree::default()), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&drains);
    let (drained, is_drained) = tokio::sync::watch::channel(None);
    let seed = AdminSeed {
        settings,
        identity: Identity {
            cluster: "troupe".into(),
            id,
            name: Arc::new(Mutex::new(name_of(id).into())),
            address: "127.0.0.1:22222".into(),
        },
        listener: Arc::new(TcpListener::bind("127.0.0.1:0").unwrap()),
        started_at: 1_700_000_000_000,
        started: Instant::now(),
        events: EventLog::new(100),
        refusals: Refusals::default(),
        actors: tree.clone(),
        access: Access::default(),
        audit: Audit::default(),
        tls: None,
        drain: Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let receipt = DrainReceipt {
                finished: 3,
                ..DrainReceipt::default()
            };
            drained.send_replace(Some(receipt));
        }),
        drained: is_drained,
        config: Arc::new(Knobs),
        ask_master: others.clone().recipient(),
        list_tasks: others.clone().recipient(),
        get_task: others.clone().recipient(),
        submit_and_wait: others.clone().recipient(),
        await_tasks: others.clone().recipient(),
        cancel_task: others.clone().recipient(),
        retry_task: others.clone().recipient(),
        submit: others.clone().recipient(),
        ask_worker: others.clone().recipient(),
        ask_registry: others.clone().recipient(),
        list_keys: others.clone().recipient(),
        edit_key: others.clone().recipient(),
        watch_keys: others.clone().recipient(),
        step_down: others.clone().recipient(),
        reborn: others.clone().recipient(),
        send: others.recipient(),
    };
    let (router, addr) = start(&seed);
    network.lock().unwrap().insert(id, addr.clone().recipient());
    Node {
        id,
        script,
        tree,
        drains,
        seed,
        router,
        addr,
    }
}

fn start(seed: &AdminSeed) -> (Router, Addr<AdminActor>) {
    let actor = AdminActor::new(seed.clone());
    (actor.router(), actor.start())
}

fn name_of(id: NodeId) -> &'static str {
    ["?", "alpha", "beta", "ghost"][id.0 as usize]
}

fn member(id: NodeId) -> Member {
    Member {
        registration: Registration {
            id,
            name: name_of(id).into(),
            ip: "127.0.0.1".into(),
            port: 22222,
            admin: "127.0.0.1:22223".into(),
            host: "here".into(),
            boot: String::new(),
            pid: 42,
            version: "0.1.0".into(),
            protocol: 1,
            weight: 0,
            eligible: true,
            roles: vec!["worker".into()],
            jobs: vec!["multiply".into()],
            capacity: 4,
            tags: BTreeMap::new(),
            started_at: 1_700_000_000_000,
            insecure: false,
        },
        incarnation: Incarnation(id.0 as i64),
        state: MemberState::Alive,
        session: true,
        rtt: Some(Duration::from_micros(80)),
        lag: Duration::ZERO,
        registry: true,
        unheard: vec![GHOST],
    }
}

impl Node {
    /// Shows this node a cluster of these members, led by that one.
    async fn sees(&self, members: &[NodeId], master: Option<NodeId>) {
        let mut cluster = Cluster::empty(self.id);
        cluster.incarnation = Incarnation(self.id.0 as i64);
        cluster.revision = 12;
        cluster.members = members.iter().copied().map(member).collect();
        cluster.leading = master == Some(self.id);
        cluster.master = master.map(|id| Master {
            record: MasterRecord {
                id,
                incarnation: Incarnation(1),
                address: "127.0.0.1:22222".into(),
            },
            epoch: Epoch {
                generation: Generation(1),
                revision: 5 + id.0 as i64,
            },
        });
        self.script.lock().unwrap().leads = cluster.leading;
        let changed = ClusterChanged(Arc::new(cluster));
        self.addr.send(changed).await.unwrap();
    }

    async fn ask(&self, request: Request<Body>) -> (StatusCode, HeaderMap, String) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        (parts.status, parts.headers, text)
    }

    async fn json(&self, request: Request<Body>) -> (u16, Value) {
        let (status, _, body) = self.ask(request).await;
        let json = serde_json::from_str(&body).unwrap_or(Value::String(body));
        (status.as_u16(), json)
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.json(Request::get(path).body(Body::empty()).unwrap())
            .await
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> (u16, Value) {
        self.json(Request::post(path).body(body.into()).unwrap())
            .await
    }

    /// Submits NDJSON; answers a value per line.
    async fn lines(&self, body: &str) -> (u16, Vec<Value>) {
        let request = Request::post("/v1/tasks").header("content-type", "application/x-ndjson");
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let (status, _, body) = self.ask(request).await;
        let lines = body.lines().map(|line| serde_json::from_str(line).unwrap());
        (status.as_u16(), lines.collect())
    }

    fn log(&self, fields: Value) {
        let fields = fields.as_object().expect("an object").clone();
        self.seed.events.push(fields);
    }

    /// Opens a stream.
    async fn follow(&self, path: &str, headers: &[(&str, &str)]) -> Reader {
        let mut request = Request::get(path);
        for (key, value) in headers {
            request = request.header(*key, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        Reader(response.into_body().into_data_stream())
    }
}

struct Reader(axum::body::BodyDataStream);

impl Reader {
    async fn next(&mut self) -> String {
        let chunk = self.0.next().await.expect("the stream goes on").unwrap();
        String::from_utf8(chunk.to_vec()).unwrap()
    }
}

#[actix_rt::test]
async fn keys_of_the_registry_are_changed_only_where_that_is_enabled_and_only_as_they_were_seen() {
    tokio::time::pause();
    let edit = |method: &str, seen: i64| {
        let path = format!("/v1/registry?key=master&seen={seen}");
        let request = Request::builder().method(method).uri(path);
        request.body(Body::from("{\"a\":2}")).unwrap()
    };
    let closed = node(ALPHA, &Network::default(), AdminSettings::default());
    let (status, body) = closed.json(edit("DELETE", 2)).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (403, &json!("not_enabled"))
    );
    let settings = AdminSettings {
        edit_registry: true,
        ..AdminSettings::default()
    };
    let open = node(ALPHA, &Network::default(), settings);
    assert_eq!(open.get("/v1/registry").await.1["editable"], true);
    for method in ["PUT", "DELETE"] {
        assert_eq!(open.json(edit(method, 2)).await.1["revision"], 9);
        let (status, body) = open.json(edit(method, 1)).await;
        assert_eq!((status, &body["error"]["code"]), (409, &json!("changed")));
    }
}

#[actix_rt::test]
async fn changes_of_keys_are_told_as_they_come() {
    let node = alone().await;
    let mut reader = node.follow("/v1/registry/watch?prefix=", &[]).await;
    assert!(reader.next().await.starts_with("event: watching\n"));
    let change = reader.next().await;
    assert!(
        change.starts_with("id: 7\n") && change.contains("\"change\":\"delete\""),
        "{change}"
    );
}

async fn alone() -> Node {
    tokio::time::pause();
    let node = node(ALPHA, &Network::default(), AdminSettings::default());
    node.sees(&[ALPHA], Some(ALPHA)).await;
    node
}

/// Alpha leads; both see both.
async fn pair() -> (Node, Node, Network) {
    tokio::time::pause();
    let network = Network::default();
    let alpha = node(ALPHA, &network, AdminSettings::default());
    let beta = node(BETA, &network, AdminSettings::default());
    for node in [&alpha, &beta] {
        node.sees(&[ALPHA, BETA], Some(ALPHA)).await;
    }
    (alpha, beta, network)
}

fn view(id: TaskId, state: &str) -> TaskView {
    TaskView {
        id,
        job: "multiply".into(),
        input: json!(7),
        state: state.into(),
        attempts: vec![],
        output: None,
        error: None,
        created: "2026-01-01T00:00:00.000Z".into(),
        finished: None,
        durable: false,
        idempotent_until: None,
        refused: vec![],
        not_before: None,
        progress: None,
        meta: BTreeMap::new(),
        trace_id: None,
        excluded: Vec::new(),
        stale: false,
    }
}

fn task_id(n: u64) -> TaskId {
    TaskId::new(n, &mut rand::rng())
}

fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error"]["code"].as_str().unwrap_or("-"))
}

// ---- shapes

fn has(value: &Value, wanted: &str) {
    let object = value.as_object().expect("an object");
    for key in wanted.split_whitespace() {
        assert!(object.contains_key(key), "{key} in {value}");
    }
}

#[actix_rt::test]
async fn every_read_has_the_shape_of_the_surface() {
    let node = alone().await;
    let (status, body) = node.get("/v1/members").await;
    assert_eq!((status, &body["revision"]), (200, &json!(12)));
    let first = &body["members"][0];
    has(
        first,
        "name id address admin incarnation state master weight eligible jobs tags capacity running version host
         pid since session rtt_us lag_us unheard registry started_at insecure",
    );
    assert_eq!(
        (&first["master"], &first["running"]),
        (&json!(true), &json!(0))
    );
    assert_eq!(first["started_at"], "2023-11-14T22:13:20.000Z");
    let (status, body) = node.get("/v1/master").await;
    assert_eq!(
        (status, &body["name"], &body["epoch"]),
        (200, &json!("alpha"), &json!("1-6"))
    );
    has(&body, "name id address epoch since");
    let (_, body) = node.get("/v1/actors").await;
    has(
        &body["nodes"][0]["actors"][0],
        "name state restarts last_failure mailbox handled uptime_s",
    );
    let (_, body) = node.get("/v1/actors/master/failure").await;
    assert_eq!(
        (&body["failure"], &body["trace"]),
        (&json!("panicked"), &json!("0: master::handle"))
    );
    assert_eq!(node.get("/v1/actors/cook/failure").await.0, 404);
    let (_, body) = node.get("/v1/status").await;
    has(
        &body,
        "node id cluster incarnation epoch master members registry tasks leading version uptime_s",
    );
    assert_eq!(body["members"], json!({"alive": 1}));
    assert_eq!(body["unanswered"], json!([]));
    let (_, body) = node.get("/v1/registry?prefix=services/").await;
    assert_eq!(body["keys"][0]["key"], "/troupe/services/");
    assert_eq!(node.get("/livez").await, (200, json!("ok\n")));
}

#[actix_rt::test]
async fn every_refusal_is_an_error_object() {
    let node = alone().await;
    let unknown = "/v1/tasks/0190a000-0000-7000-8000-000000000000";
    for (path, status, expected) in [
        ("/nothing", 404, "no_such_route"),
        ("/v1/tasks/abc", 400, "bad_request"),
        (unknown, 404, "no_such_task"),
        ("/v1/tasks?limit=x", 400, "bad_request"),
        ("/v1/tasks?state=x", 400, "bad_request"),
        ("/v1/status?node=nobody", 404, "no_such_node"),
        ("/v1/events?level=loud", 400, "bad_request"),
        ("/v1/master/step-down", 405, "no_such_method"),
    ] {
        let answer = node.get(path).await;
        assert_eq!(code(&answer), (status, expected), "GET {path}");
    }
    for (path, body, status, expected) in [
        ("/v1/actors/nobody/kill", "", 404, "no_such_actor"),
        (
            "/v1/actors/master/kill",
            r#"{"how":"softly"}"#,
            400,
            "bad_request",
        ),
        (
            "/v1/actors/master/kill",
            r#"{"how":"stop"}"#,
            409,
            "not_killed",
        ),
        ("/v1/actors/master/kill", "{", 400, "bad_request"),
        ("/v1/members/nobody/promote", "", 404, "no_such_node"),
        ("/v1/members/nobody/drain", "", 404, "no_such_node"),
        ("/v1/master/step-down", "", 409, "no_heir"),
        ("/v1/tasks", "", 400, "bad_request"),
        (
            "/v1/tasks",
            r#"{"job":"m","input":1,"typo":1}"#,
            400,
            "bad_request",
        ),
        ("/v1/tasks", r#"{"job":"juggle"}"#, 400, "invalid_task"),
        (
            "/v1/tasks",
            r#"{"job":"m","delay":"1s","not_before_ms":5}"#,
            400,
            "bad_request",
        ),
        (
            "/v1/tasks",
            r#"{"job":"m","timeout":"soon"}"#,
            400,
            "bad_request",
        ),
    ] {
        let answer = node.post(path, body).await;
        assert_eq!(code(&answer), (status, expected), "POST {path} {body}");
    }
}

#[actix_rt::test]
async fn without_a_master_what_belongs_to_it_is_refused_and_the_rest_works() {
    let node = alone().await;
    node.sees(&[ALPHA], None).await;
    assert_eq!(code(&node.get("/v1/master").await), (404, "no_master"));
    assert_eq!(code(&node.get("/v1/tasks").await), (503, "no_master"));
    let submit = node.post("/v1/tasks", r#"{"job":"m"}"#).await;
    assert_eq!(code(&submit), (503, "no_master"));
    assert_eq!(node.get("/v1/status").await.1["tasks"], Value::Null);
    assert_eq!(node.get("/v1/members").await.0, 200);
}

#[actix_rt::test]
async fn ready_means_registered_once_and_a_master_known() {
    tokio::time::pause();
    let node = node(ALPHA, &Network::default(), AdminSettings::default());
    assert_eq!(node.get("/readyz").await.0, 503);
    assert_eq!(node.get("/livez").await.0, 200);
    node.sees(&[ALPHA], Some(ALPHA)).await;
    assert_eq!(node.get("/readyz").await, (200, json!({"ready": true})));
    node.sees(&[ALPHA], None).await;
    let (status, body) = node.get("/readyz?verbose").await;
    assert_eq!((status, &body["checks"][0]["ok"]), (503, &json!(true)));
    let check = json!({"name": "master", "ok": false, "detail": "nobody leads"});
    assert_eq!(body["checks"][1], check);
}

#[actix_rt::test]
async fn a_hung_actor_is_named_and_the_summary_does_without_it() {
    let node = alone().await;
    node.script.lock().unwrap().hung = BTreeSet::from(["master", "registry"]);
    for (path, actor) in [("/v1/tasks", "master"), ("/v1/registry", "registry")] {
        let answer = node.get(path).await;
        assert_eq!(code(&answer), (504, "actor_hung"), "{path}");
        let error = &answer.1["error"];
        assert_eq!(
            (&error["node"], &error["actor"]),
            (&json!("alpha"), &json!(actor))
        );
    }
    let (status, body) = node.get("/v1/status").await;
    let silent = json!(["registry", "master"]);
    assert_eq!((status, &body["unanswered"]), (200, &silent));
    assert_eq!(node.get("/livez").await.0, 200);
    assert_eq!(node.get("/metrics").await.0, 200);
}

#[actix_rt::test]
async fn a_handler_that_panics_costs_its_own_request() {
    let node = alone().await;
    let hang = node.post("/v1/actors/master/kill", r#"{"how":"hang"}"#);
    assert_eq!(hang.await.0, 200);
    assert_eq!(code(&node.get("/v1/actors").await), (500, "internal"));
    assert_eq!(node.get("/v1/members").await.0, 200);
}

#[actix_rt::test]
async fn the_metrics_are_those_of_the_surface() {
    let node = alone().await;
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let (_, _, page) = node.ask(request).await;
    for line in [
        "troupe_build_info{version=\"0.1.0\"} 1",
        "troupe_has_master 1",
        "troupe_master_changes_total 1",
        "troupe_members{state=\"alive\"} 1",
        "troupe_peer_rtt_seconds{peer=\"alpha\"} 0.00008",
        "troupe_actor_restarts_total{actor=\"master\"} 2",
        "troupe_mailbox_depth{actor=\"master\"} 0",
        "troupe_tasks_queued 0",
        "troupe_tasks_running 0",
        "troupe_registry_up 1",
        "troupe_lease_remaining_seconds 119",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
    }
}

#[actix_rt::test]
async fn a_page_of_another_site_cannot_act_here() {
    let node = alone().await;
    for (origin, status) in [
        ("http://evil.example", 403),
        ("http://127.0.0.1:22223", 202),
    ] {
        let request = Request::post("/v1/members/alpha/drain")
            .header("host", "127.0.0.1:22223")
            .header("origin", origin);
        let (got, _) = node.json(request.body(Body::empty()).unwrap()).await;
        assert_eq!(got, status, "{origin}");
    }
    assert_eq!(node.drains.load(Ordering::Relaxed), 1);
}

// ---- tasks

#[actix_rt::test]
async fn a_submitted_task_is_listed_and_read() {
    let node = alone().await;
    let body = r#"{"job":"multiply","input":{"n":[1, 2]}}"#;
    let (status, receipt) = node.post("/v1/tasks", body).await;
    assert_eq!((status, &receipt["state"]), (202, &json!("queued")));
    let id = receipt["id"].as_str().unwrap();
    let (status, task) = node.get(&format!("/v1/tasks/{id}")).await;
    assert_eq!((status, &task["input"]), (200, &json!({"n": [1, 2]})));
    let (_, page) = node.get("/v1/tasks?limit=1").await;
    assert_eq!(
        (&page["tasks"][0]["id"], &page["next"]),
        (&json!(id), &Value::Null)
    );
}

#[actix_rt::test]
async fn a_list_is_read_page_by_page() {
    let node = alone().await;
    let ids: Vec<_> = (1..=3).map(task_id).collect();
    for id in &ids {
        let mut script = node.script.lock().unwrap();
        script.tasks.insert(*id, view(*id, "queued"));
    }
    let (_, first) = node.get("/v1/tasks?limit=2").await;
    assert_eq!(first["next"], json!(ids[1]));
    let path = format!("/v1/tasks?limit=2&after={}", ids[1]);
    let (_, second) = node.get(&path).await;
    assert_eq!(second["tasks"][0]["id"], json!(ids[0]));
    assert_eq!(second["next"], Value::Null);
}

#[actix_rt::test]
async fn ndjson_is_answered_line_by_line_in_order() {
    let node = alone().await;
    let id = task_id(1);
    let first = json!({"job": "multiply", "input": 1, "id": id});
    let rest = "{\"job\":\"juggle\"}\n{\"job\":\"multiply\",\"delay\":\"9y\"}\n";
    let (status, lines) = node.lines(&format!("{first}\n\nnonsense\n{rest}")).await;
    assert_eq!((status, lines.len()), (200, 4));
    assert_eq!(lines[0], json!({"id": id, "state": "queued"}));
    let codes = lines[1..].iter().map(|line| &line["error"]["code"]);
    let expected = ["bad_request", "invalid_task", "bad_request"];
    assert_eq!(codes.collect::<Vec<_>>(), expected);
    assert!(lines[2]["error"]["id"].is_string());
}

#[actix_rt::test]
async fn a_body_is_bounded_in_size_and_in_time() {
    let node = alone().await;
    let large = vec![b' '; AdminSettings::default().max_body + 1];
    let answer = node.post("/v1/tasks", large).await;
    assert_eq!(code(&answer), (413, "too_large"));
    let never = futures_util::stream::pending::<Result<String, std::io::Error>>();
    let answer = node.post("/v1/tasks", Body::from_stream(never)).await;
    assert_eq!(code(&answer), (408, "slow_body"));
    let task = json!({"job": "m", "input": "x".repeat(256 * 1024)});
    let answer = node.post("/v1/tasks", task.to_string()).await;
    assert_eq!(code(&answer), (413, "too_large"));
}

#[actix_rt::test]
async fn a_waiting_read_answers_when_the_task_is_finished() {
    let node = alone().await;
    let id = task_id(1);
    let queued = view(id, "queued");
    node.script.lock().unwrap().tasks.insert(id, queued);
    let start = tokio::time::Instant::now();
    let (_, task) = node.get(&format!("/v1/tasks/{id}?wait=3s")).await;
    assert_eq!(task["state"], "queued");
    assert_eq!(start.elapsed().as_secs(), 3);
    let script = Arc::clone(&node.script);
    actix_rt::spawn(async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        script.lock().unwrap().tasks.insert(id, view(id, "done"));
    });
    let start = tokio::time::Instant::now();
    let (_, task) = node.get(&format!("/v1/tasks/{id}?wait=30s")).await;
    assert_eq!(task["state"], "done");
    assert!(
        start.elapsed() < Duration::from_millis(50),
        "woken by its end"
    );
}

#[actix_rt::test]
async fn a_waiting_submit_answers_with_what_came_of_each() {
    let node = alone().await;
    let script = Arc::clone(&node.script);
    let id = task_id(1);
    actix_rt::spawn(async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        script.lock().unwrap().tasks.insert(id, view(id, "done"));
    });
    let task = json!({"job": "multiply", "input": 7, "id": id});
    let (status, receipt) = node.post("/v1/tasks?wait=9s", task.to_string()).await;
    assert_eq!(status, 200);
    assert_eq!(receipt, json!({"id": id, "state": "done", "output": 21}));
    let other = json!({"job": "multiply", "input": 7});
    let (status, receipt) = node.post("/v1/tasks?wait=1s", other.to_string()).await;
    assert_eq!((status, &receipt["state"]), (202, &json!("queued")));
}

// ---- between nodes

#[actix_rt::test]
async fn what_belongs_to_the_master_is_carried_there() {
    let (alpha, beta, _) = pair().await;
    let body = r#"{"job":"multiply","input":1,"timeout":"90s"}"#;
    let (status, receipt) = beta.post("/v1/tasks", body).await;
    assert_eq!(status, 202);
    let id: TaskId = receipt["id"].as_str().unwrap().parse().unwrap();
    assert!(alpha.script.lock().unwrap().tasks.contains_key(&id));
    assert_eq!(beta.get(&format!("/v1/tasks/{id}")).await.1["input"], 1);
    assert_eq!(beta.get("/v1/tasks").await.1["tasks"][0]["id"], json!(id));
    assert_eq!(
        beta.get("/v1/status").await.1["tasks"],
        json!({"queued": 1})
    );
    assert_eq!(beta.get("/v1/members").await.1["members"][1]["running"], 2);
    let (status, lines) = beta
        .lines("{\"job\":\"multiply\"}\n{\"job\":\"juggle\"}")
        .await;
    assert_eq!(
        (status, &lines[1]["error"]["code"]),
        (200, &json!("invalid_task"))
    );
    assert_eq!(lines[1]["error"]["status"], 400);
    let promoted = beta.post("/v1/members/beta/promote", "").await;
    let new = json!({"name": "beta", "epoch": "1-9", "handed_over": 3, "masterless_ms": 1.5});
    assert_eq!(promoted, (200, new));
    assert_eq!(alpha.script.lock().unwrap().heirs, [Some(BETA.to_string())]);
    let refused = beta.post("/v1/master/step-down", "").await;
    assert_eq!(code(&refused), (409, "no_heir"));
}

#[actix_rt::test]
async fn a_busy_masters_words_and_retry_after_come_through() {
    let (alpha, beta, _) = pair().await;
    alpha.script.lock().unwrap().busy = true;
    let request = Request::post("/v1/tasks").body(Body::from(r#"{"job":"m"}"#));
    let (status, headers, body) = beta.ask(request.unwrap()).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status.as_u16(), headers["retry-after"].as_bytes()),
        (503, &b"7"[..])
    );
    let error = &body["error"];
    assert_eq!(
        (&error["code"], &error["queued"]),
        (&json!("busy"), &json!(9))
    );
    assert!(error["id"].is_string());
    let (status, lines) = beta.lines("{\"job\":\"m\"}\n{\"job\":\"m\"}").await;
    assert_eq!((status, &lines[0]["error"]["refused"]), (503, &json!(2)));
}

#[actix_rt::test]
async fn a_large_submission_travels_in_parts_that_fit_a_frame() {
    let (alpha, beta, _) = pair().await;
    let line = format!("{}\n", json!({"job": "m", "input": "x".repeat(100_000)}));
    let (status, lines) = beta.lines(&line.repeat(20)).await;
    assert_eq!((status, lines.len()), (200, 20));
    assert!(lines.iter().all(|line| line["state"] == "queued"));
    assert_eq!(alpha.script.lock().unwrap().tasks.len(), 20);
    let (status, page) = beta.get("/v1/tasks?limit=20").await;
    assert_eq!(status, 200);
    assert!(page["next"].is_string(), "the page is cut by bytes");
}

#[actix_rt::test]
async fn what_belongs_to_a_node_is_carried_there() {
    let (alpha, beta, _) = pair().await;
    for node in ["beta".to_owned(), BETA.to_string()] {
        let path = format!("/v1/actors/master/kill?node={node}");
        let (status, body) = alpha.post(&path, r#"{"how":"panic"}"#).await;
        assert_eq!((status, &body["node"]), (200, &json!("beta")));
    }
    let twice = ["master panic", "master panic"];
    assert_eq!(*beta.tree.killed.lock().unwrap(), twice);
    assert!(alpha.tree.killed.lock().unwrap().is_empty());
    let drained = alpha.post("/v1/members/beta/drain", "").await;
    assert_eq!(drained, (202, json!({"node": "beta", "draining": true})));
    assert_eq!(beta.drains.load(Ordering::Relaxed), 1);
    let (status, receipt) = alpha.post("/v1/members/beta/drain?wait=1s", "").await;
    assert_eq!((status, &receipt["finished"]), (200, &json!(3)));
    assert_eq!(receipt["lost"], 0);
    assert_eq!(alpha.get("/v1/status?node=beta").await.1["node"], "beta");
    let refused = alpha.post("/v1/actors/nobody/kill?node=beta", "").await;
    assert_eq!(code(&refused), (404, "no_such_actor"));
}

#[actix_rt::test]
async fn the_actors_of_all_are_listed_and_a_silent_node_is_named() {
    let (alpha, _beta, network) = pair().await;
    alpha.sees(&[ALPHA, GHOST, BETA], Some(ALPHA)).await;
    let (_, body) = alpha.get("/v1/actors").await;
    let nodes = body["nodes"].as_array().unwrap();
    let names: Vec<_> = nodes.iter().map(|n| &n["node"]).collect();
    assert_eq!(names, ["alpha", "ghost", "beta"]);
    assert_eq!(nodes[1]["state"], "unreachable");
    assert_eq!(nodes[2]["actors"][0]["name"], "master");
    // One that takes the request and never answers costs a deadline, not the answer.
    let mute = Mute.start().recipient();
    network.lock().unwrap().insert(GHOST, mute);
    let (status, body) = alpha.get("/v1/actors").await;
    assert_eq!(
        (status, &body["nodes"][1]["state"]),
        (200, &json!("unreachable"))
    );
}

#[actix_rt::test]
async fn a_carried_request_is_not_carried_on() {
    let (alpha, beta, _) = pair().await;
    // Each takes the other for the master: nobody leads, and the request must not go round.
    alpha.sees(&[ALPHA, BETA], Some(BETA)).await;
    assert_eq!(code(&beta.get("/v1/tasks").await), (503, "not_master"));
    let submit = beta.post("/v1/tasks", r#"{"job":"m"}"#).await;
    assert_eq!(code(&submit), (503, "not_master"));
}

#[actix_rt::test]
async fn a_read_follows_the_mastership_that_moves_under_it() {
    let (alpha, beta, _) = pair().await;
    alpha.script.lock().unwrap().hung.insert("master");
    let id = task_id(1);
    let done = view(id, "done");
    beta.script.lock().unwrap().tasks.insert(id, done);
    let path = format!("/v1/tasks/{id}?wait=30s");
    let (answer, ()) = tokio::join!(beta.get(&path), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        beta.sees(&[ALPHA, BETA], None).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        beta.sees(&[ALPHA, BETA], Some(BETA)).await;
    });
    assert_eq!((answer.0, &answer.1["state"]), (200, &json!("done")));
}

#[actix_rt::test]
async fn a_write_whose_carrier_fell_silent_is_unknown_and_names_the_id() {
    let (_alpha, beta, network) = pair().await;
    let mute = Mute.start().recipient();
    network.lock().unwrap().insert(ALPHA, mute);
    let answer = beta.post("/v1/tasks", r#"{"job":"m"}"#).await;
    assert_eq!(code(&answer), (503, "unknown"));
    assert!(
        answer.1["error"]["id"].is_string(),
        "so that it can be sent again"
    );
    // It is told at once when the master leaves the view.
    let start = tokio::time::Instant::now();
    let (answer, ()) = tokio::join!(beta.post("/v1/tasks", r#"{"job":"m"}"#), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        beta.sees(&[BETA], None).await;
    });
    assert_eq!(code(&answer), (503, "unknown"));
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[actix_rt::test]
async fn carried_requests_are_bounded_at_both_ends() {
    tokio::time::pause();
    let network = Network::default();
    let carries_none = AdminSettings {
        max_carried: 0,
        ..AdminSettings::default()
    };
    let takes_none = AdminSettings {
        max_relayed: 0,
        ..AdminSettings::default()
    };
    let alpha = node(ALPHA, &network, carries_none);
    let beta = node(BETA, &network, takes_none);
    for node in [&alpha, &beta] {
        node.sees(&[ALPHA, BETA], Some(ALPHA)).await;
    }
    let crowded_here = alpha.get("/v1/status?node=beta").await;
    assert_eq!(code(&crowded_here), (503, "busy"));
    let gamma = node(GHOST, &network, AdminSettings::default());
    gamma.sees(&[ALPHA, BETA, GHOST], Some(ALPHA)).await;
    let crowded_there = gamma.get("/v1/status?node=beta").await;
    assert_eq!(code(&crowded_there), (503, "busy"));
}

#[actix_rt::test]
async fn nonsense_from_another_node_breaks_nothing() {
    let (alpha, _beta, _) = pair().await;
    for (method, path) in [
        ("", "/"),
        ("GET", "not a path"),
        ("GET", ""),
        ("PO ST", "/v1/tasks"),
        ("POST", "/v1/tasks"),
    ] {
        let request = ApiRequest {
            nonce: 1,
            method: method.into(),
            path: path.into(),
            body: vec![0xff; 10].into(),
            by: String::new(),
        };
        let inbound = inbound(BETA, request.into());
        alpha.addr.send(inbound).await.unwrap();
    }
    assert_eq!(alpha.get("/v1/members").await.0, 200);
}

// ---- events and logs

#[actix_rt::test]
async fn a_stream_resumes_after_the_last_event_id() {
    let node = alone().await;
    for n in 1..=3 {
        node.log(json!({"event": "task.created", "n": n}));
    }
    node.log(json!({"event": "log", "msg": "a plain line"}));
    let mut reader = node.follow("/v1/events", &[("last-event-id", "2")]).await;
    let third = reader.next().await;
    assert!(third.starts_with("id: 3\ndata: {\"event\":\"task.created\",\"hlc\":\""));
    assert!(third.ends_with("\",\"n\":3,\"seq\":3}\n\n"), "{third}");
    node.log(json!({"event": "task.done"}));
    assert!(reader.next().await.starts_with("id: 5\n"));
    assert_eq!(reader.next().await, ": still here\n\n");
    let lines = [("accept", "application/x-ndjson")];
    let mut reader = node.follow("/v1/logs?since=3", &lines).await;
    assert_eq!(reader.next().await.lines().count(), 2);
    // A number that this process has not reached is from an earlier one: all is new.
    let mut reader = node.follow("/v1/events?since=900", &[]).await;
    assert!(reader.next().await.starts_with("id: 1\n"));
}

#[actix_rt::test]
async fn a_follower_is_told_what_it_missed() {
    let node = alone().await;
    for n in 0..150 {
        node.log(json!({"event": "e", "n": n}));
    }
    let mut reader = node.follow("/v1/events?since=10", &[]).await;
    let chunk = reader.next().await;
    let lagged = |missed: u64| {
        format!("event: lagged\ndata: {{\"event\":\"lagged\",\"missed\":{missed}}}\n\n")
    };
    assert!(
        chunk.starts_with(&format!("{}id: 51\n", lagged(40))),
        "{chunk}"
    );
    for n in 0..2000 {
        node.log(json!({"event": "e", "n": n}));
    }
    let chunk = reader.next().await;
    assert!(chunk.starts_with(&lagged(2000 - 1024)), "{chunk}");
}

#[actix_rt::test]
async fn followers_are_bounded_and_end_with_the_life_of_the_actor() {
    tokio::time::pause();
    let settings = AdminSettings {
        max_followers: 1,
        ..AdminSettings::default()
    };
    let network = Network::default();
    let node = node(ALPHA, &network, settings);
    let mut reader = node.follow("/v1/events", &[]).await;
    assert_eq!(code(&node.get("/v1/events").await), (503, "busy"));
    network.lock().unwrap().clear();
    drop(node);
    assert!(reader.0.next().await.is_none());
}

#[actix_rt::test]
async fn logs_are_filtered_by_level_actor_and_task() {
    let node = alone().await;
    node.log(json!({"level": "INFO", "actor": "master", "task": "t1"}));
    node.log(json!({"level": "warn", "actor": "worker"}));
    node.log(json!({"level": "debug", "actor": "master", "event": "task.done"}));
    for (query, expected) in [
        ("", vec![1, 2, 3]),
        ("&level=info", vec![1, 2]),
        ("&actor=master", vec![1, 3]),
        ("&task=t1", vec![1]),
        ("&event=task.", vec![3]),
        ("&limit=2", vec![2, 3]),
        ("&since=2", vec![3]),
    ] {
        let (_, body) = node.get(&format!("/v1/logs?follow=false{query}")).await;
        let records = body["records"].as_array().unwrap().iter();
        let seqs = records.map(|r| r["seq"].as_u64().unwrap());
        assert_eq!(seqs.collect::<Vec<_>>(), expected, "{query}");
    }
}

#[actix_rt::test]
async fn a_snapshot_of_the_cluster_is_merged_by_the_nodes_clocks() {
    let (alpha, beta, _) = pair().await;
    for (node, second) in [(&alpha, 1), (&beta, 2), (&alpha, 3)] {
        let hlc = format!("000000000000000{second}");
        node.log(json!({"event": "e", "hlc": hlc, "node": name_of(node.id)}));
    }
    let (_, body) = beta.get("/v1/events?follow=false").await;
    let records = body["records"].as_array().unwrap();
    let nodes: Vec<_> = records.iter().map(|r| &r["node"]).collect();
    assert_eq!(nodes, ["alpha", "beta", "alpha"]);
    let mut reader = alpha.follow("/v1/events?node=beta", &[]).await;
    assert!(reader.next().await.starts_with("id: 1\n"));
    beta.log(json!({"event": "later"}));
    assert!(reader.next().await.contains("later"));
    alpha.sees(&[ALPHA, GHOST], Some(ALPHA)).await;
    let (_, body) = alpha.get("/v1/events?follow=false").await;
    assert!(body["missing"]["ghost"].is_string());
}

/// A record of a node, stamped.
fn stamped(node: &Node, event: &str, stamp: u64, peer: &str) -> Value {
    let hlc = format!("{stamp:016x}");
    json!({"event": event, "hlc": hlc, "node": name_of(node.id), "node_id": node.id.to_string(), "peer": peer})
}

#[actix_rt::test]
async fn one_stream_has_the_records_of_all_nodes_in_order_and_goes_on_after_a_stamp() {
    let (alpha, beta, _) = pair().await;
    alpha.log(stamped(&alpha, "peer.added", 1, ""));
    beta.log(stamped(&beta, "peer.added", 2, ""));
    alpha.log(stamped(&alpha, "peer.removed", 3, ""));
    let order = |text: &str| -> Vec<(String, u64)> {
        let lines = text.lines().filter_map(|l| l.strip_prefix("data: "));
        let fields = lines.map(|l| serde_json::from_str::<Value>(l).unwrap());
        let pair = |f: Value| {
            (
                f["node"].as_str().unwrap().to_owned(),
                f["seq"].as_u64().unwrap(),
            )
        };
        fields.map(pair).collect()
    };
    let mut reader = alpha.follow("/v1/events?node=*", &[]).await;
    let text = reader.next().await;
    let all = [("alpha", 1), ("beta", 1), ("alpha", 2)].map(|(n, seq)| (n.to_owned(), seq));
    assert_eq!(order(&text), all, "{text}");
    beta.log(stamped(&beta, "peer.removed", 4, ""));
    assert_eq!(order(&reader.next().await), [("beta".to_owned(), 2)]);
    // At another node, from a stamp on.
    let path = "/v1/events?node=*&after=0000000000000002";
    let mut reader = beta.follow(path, &[]).await;
    assert_eq!(order(&reader.next().await)[0], ("alpha".to_owned(), 2));
}

#[actix_rt::test]
async fn why_tells_the_evidence_of_all_nodes_however_busy_they_were_since() {
    let (alpha, beta, _) = pair().await;
    beta.log(stamped(&beta, "peer.condemned", 1, "ghost"));
    for _ in 0..200 {
        beta.log(stamped(&beta, "task.finished", 2, ""));
    }
    let (status, body) = alpha.get("/v1/why/node/ghost").await;
    assert_eq!(status, 200, "{body}");
    assert!(
        body["answer"][0]
            .as_str()
            .unwrap()
            .contains("beta: condemned ghost"),
        "{body}"
    );
    assert_eq!(body["answer"][1], "now: ghost is no member");
    let answer = alpha.get("/v1/why/node/nobody").await;
    assert_eq!(code(&answer), (404, "no_such_node"));
}

// ---- connections and lives

async fn connect(seed: &AdminSeed) -> tokio::net::TcpStream {
    let address = seed.listener.local_addr().unwrap();
    tokio::net::TcpStream::connect(address).await.unwrap()
}

/// Asks `/livez` over a connection of its own.
async fn alive(seed: &AdminSeed) -> bool {
    let mut stream = connect(seed).await;
    let request = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text.starts_with("HTTP/1.1 200 OK")
}

#[actix_rt::test]
async fn a_head_that_trickles_in_is_cut_off_and_frees_its_place() {
    let settings = AdminSettings {
        max_connections: 1,
        header_timeout: Duration::from_millis(100),
        ..AdminSettings::default()
    };
    let node = node(ALPHA, &Network::default(), settings);
    let mut slow = connect(&node.seed).await;
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost:")
        .await
        .unwrap();
    assert!(alive(&node.seed).await);
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).await.ok();
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
}

#[actix_rt::test]
async fn the_next_life_serves_the_same_listener_and_asks_for_the_picture() {
    let network = Network::default();
    let Node {
        seed, script, addr, ..
    } = node(ALPHA, &network, AdminSettings::default());
    assert!(alive(&seed).await);
    assert_eq!(script.lock().unwrap().reborn, 1);
    network.lock().unwrap().clear();
    drop(addr);
    let (_router, _addr) = start(&seed);
    assert!(alive(&seed).await);
    assert_eq!(script.lock().unwrap().reborn, 2);
}

// ---- who is let in

const OPERATOR: &str = "operator-operator-operator-operator";
const READER: &str = "reader-reader-reader-reader-reader-";

/// A node that asks for tokens and, when told, speaks TLS.
async fn guarded(tls: bool, settings: AdminSettings) -> (Node, ClientTls) {
    let secret = Secret::new([7; 32]);
    let names = vec!["127.0.0.1".to_owned()];
    let server = ServerTls::issued(secret.clone(), "troupe", names).unwrap();
    let client = ClientTls::new(authority(&secret, "troupe").unwrap().as_bytes()).unwrap();
    let mut node = node(ALPHA, &Network::default(), settings);
    node.seed.access = Access {
        operator: Some(Token::parse(OPERATOR).unwrap()),
        reader: Some(Token::parse(READER).unwrap()),
        hosts: Vec::new(),
    };
    node.seed.tls = tls.then(|| Arc::new(server));
    node.seed.listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
    (node.router, node.addr) = start(&node.seed);
    node.sees(&[ALPHA], Some(ALPHA)).await;
    (node, client)
}

fn bearer(method: &str, path: &str, token: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    let request = request.header("authorization", format!("Bearer {token}"));
    request.body(Body::empty()).unwrap()
}

#[actix_rt::test]
async fn a_reader_reads_an_operator_acts_and_a_stranger_gets_probes_alone() {
    let (node, _) = guarded(false, AdminSettings::default()).await;
    let drain = "/v1/members/alpha/drain";
    for (method, path, token, wanted) in [
        ("GET", "/v1/status", READER, (200, "")),
        ("GET", "/metrics", READER, (200, "")),
        ("GET", "/v1/status", "guess", (401, "wrong_token")),
        ("POST", drain, READER, (403, "read_only")),
        ("POST", drain, "guess", (401, "wrong_token")),
        ("POST", drain, OPERATOR, (202, "")),
        ("GET", "/livez", "guess", (200, "")),
        ("GET", "/", "guess", (200, "")),
    ] {
        let answer = node.json(bearer(method, path, token)).await;
        let found = answer.1["error"]["code"].as_str().unwrap_or("");
        assert_eq!((answer.0, found), wanted, "{method} {path} {token}");
    }
    assert_eq!(code(&node.get("/metrics").await), (401, "no_token"));
    assert_eq!(node.drains.load(Ordering::Relaxed), 1);
    let request = Request::get("/v1/status").body(Body::empty()).unwrap();
    let (_, headers, _) = node.ask(request).await;
    assert_eq!(headers["www-authenticate"], "Bearer realm=\"troupe\"");
    let (_, _, page) = node.ask(bearer("GET", "/metrics", READER)).await;
    for line in [
        "troupe_admin_refused_total{reason=\"no_token\"} 2",
        "troupe_admin_refused_total{reason=\"wrong_token\"} 2",
        "troupe_admin_refused_total{reason=\"read_only\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
    }
    for (method, path, token, wanted) in [
        ("GET", "/v1/config", READER, (200, "")),
        ("GET", "/v1/debug", READER, (200, "")),
        ("GET", "/v1/debug", "guess", (401, "wrong_token")),
        ("POST", "/v1/config", READER, (403, "read_only")),
        ("POST", "/v1/config/reload", READER, (403, "read_only")),
        (
            "POST",
            "/v1/config/reload",
            OPERATOR,
            (422, "config_rejected"),
        ),
    ] {
        let answer = node.json(bearer(method, path, token)).await;
        let found = answer.1["error"]["code"].as_str().unwrap_or("");
        assert_eq!((answer.0, found), wanted, "{method} {path} {token}");
    }
}

#[actix_rt::test]
async fn a_name_that_is_not_ours_is_refused_and_every_answer_has_strict_headers() {
    let node = alone().await;
    let rebound = Request::get("/v1/status").header("host", "evil.example:22223");
    let answer = node.json(rebound.body(Body::empty()).unwrap()).await;
    assert_eq!(code(&answer), (421, "foreign_host"));
    for (path, kept, policy) in [
        ("/", "no-cache", "script-src 'self'"),
        ("/v1/status", "no-store", "default-src 'none'"),
        ("/no/such/route", "no-store", "default-src 'none'"),
        ("/livez", "no-store", "frame-ancestors 'none'"),
    ] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let (_, headers, _) = node.ask(request).await;
        let has = |name: &str, wanted: &str| {
            let found = headers.get(name).map(|v| v.to_str().unwrap());
            assert!(
                found.is_some_and(|f| f.contains(wanted)),
                "{path} {name}: {found:?}"
            );
        };
        has("cache-control", kept);
        has("content-security-policy", policy);
        has("content-security-policy", "frame-ancestors 'none'");
        has("x-content-type-options", "nosniff");
        has("x-frame-options", "DENY");
        has("referrer-policy", "no-referrer");
        has("cross-origin-opener-policy", "same-origin");
        has("cross-origin-resource-policy", "same-origin");
    }
}

#[actix_rt::test]
async fn a_body_that_unfolds_or_is_nested_without_end_is_refused() {
    let node = alone().await;
    let zipped = Request::post("/v1/tasks").header("content-encoding", "gzip");
    let answer = node.json(zipped.body(Body::from("x")).unwrap()).await;
    assert_eq!(code(&answer), (415, "encoded"));
    let nested = |n: usize| {
        let (open, close) = ("[".repeat(n), "]".repeat(n));
        format!("{{\"job\":\"m\",\"input\":{open}\"[[[\\\"\"{close}}}")
    };
    let answer = node.post("/v1/tasks", nested(101)).await;
    assert_eq!(code(&answer), (400, "too_deep"));
    assert_eq!(node.post("/v1/tasks", nested(100)).await.0, 202);
    let (status, lines) = node
        .lines(&format!("{}\n{}\n", nested(100_000), nested(2)))
        .await;
    assert_eq!(status, 200);
    assert_eq!(lines[0]["error"]["code"], "too_deep");
    assert_eq!(lines[1]["state"], "queued");
    let long = json!({"job": "m", "meta": {"k": "x".repeat(400 * 1024)}});
    let answer = node.post("/v1/tasks", long.to_string()).await;
    assert_eq!(code(&answer), (413, "too_large"));
    let many: BTreeMap<String, &str> = (0..65).map(|n| (n.to_string(), "x")).collect();
    let answer = node
        .post("/v1/tasks", json!({"job": "m", "meta": many}).to_string())
        .await;
    assert_eq!(code(&answer), (400, "bad_request"));
}

/// Writes these bytes and reads until the connection ends.
async fn say(seed: &AdminSeed, bytes: &[u8]) -> String {
    let mut stream = connect(seed).await;
    stream.write_all(bytes).await.ok();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[actix_rt::test]
async fn a_head_is_bounded_in_count_size_and_time_and_each_refusal_is_an_answer() {
    let settings = AdminSettings {
        header_timeout: Duration::from_millis(200),
        ..AdminSettings::default()
    };
    let node = node(ALPHA, &Network::default(), settings);
    let begin = "GET /livez HTTP/1.1\r\nhost: localhost\r\n";
    let many = format!("{begin}{}\r\n", "x: y\r\n".repeat(100));
    assert!(
        say(&node.seed, many.as_bytes())
            .await
            .starts_with("HTTP/1.1 431")
    );
    let large = format!("{begin}x: {}\r\n\r\n", "y".repeat(40_000));
    assert!(
        say(&node.seed, large.as_bytes())
            .await
            .starts_with("HTTP/1.1 431")
    );
    let slow = say(&node.seed, begin.as_bytes()).await;
    assert!(
        slow.starts_with("HTTP/1.1 408") && slow.contains("slow_head"),
        "{slow}"
    );
    assert!(
        say(&node.seed, b"\x16\x03\x01hello\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 400")
    );
    // One request, then silence: the connection ends, and that is nobody's fault.
    let idle = say(&node.seed, format!("{begin}\r\n").as_bytes()).await;
    assert!(
        idle.starts_with("HTTP/1.1 200") && !idle.contains("408"),
        "{idle}"
    );
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let (_, _, page) = node.ask(request).await;
    for line in [
        "troupe_admin_refused_total{reason=\"large_head\"} 2",
        "troupe_admin_refused_total{reason=\"slow_head\"} 1",
        "troupe_admin_refused_total{reason=\"no_http\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
    }
}

#[actix_rt::test]
async fn over_tls_only_whoever_believes_the_clusters_authority_speaks_with_it() {
    let settings = AdminSettings {
        header_timeout: Duration::from_millis(500),
        ..AdminSettings::default()
    };
    let (node, client) = guarded(true, settings).await;
    let mut stream = client
        .connect("127.0.0.1", connect(&node.seed).await)
        .await
        .unwrap();
    let request = format!(
        "GET /v1/status HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {READER}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let plain = say(
        &node.seed,
        b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
    )
    .await;
    assert!(!plain.contains("HTTP"), "{plain}");
    // Half-open: it is cut off in time.
    assert_eq!(say(&node.seed, b"\x16").await, "");
    let other = Secret::new([8; 32]);
    let stranger = ClientTls::new(authority(&other, "troupe").unwrap().as_bytes()).unwrap();
    let refused = stranger
        .connect("127.0.0.1", connect(&node.seed).await)
        .await;
    assert!(refused.is_err());
}
