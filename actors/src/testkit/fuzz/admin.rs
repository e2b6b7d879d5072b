//! The admin API under whatever comes over a connection, or is carried here by another node.
//!
//! The routes are the real ones; behind them one actor stands in for all others. It leads, takes every task that is acceptable
//! and has none.

use std::cell::OnceCell;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Method, Request, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tower::ServiceExt;

use super::{epoch, on_runtime, parts};
use crate::admin::access::Asked;
use crate::admin::routes::{answer_carried, router};
use crate::admin::{
    Access, ActorView, Actors, AdminSeed, AdminSettings, Life, NoSettings, Office, Token, Who,
};
use crate::cluster::{Cluster, Identity, Master, MasterRecord};
use crate::discovery::{NewMaster, Reborn, StepDown, StepDownError};
use crate::events::EventLog;
use crate::id::{Incarnation, NodeId, TaskId};
use crate::master::{
    AskMaster, AwaitTasks, CancelTask, ChangeError, Ended, GetTask, ListTasks, MasterSnapshot,
    RetryTask, Submission, Submit, SubmitAndWait, SubmitError, Submitted, Taken, TaskView,
};
use crate::registry::{
    AskRegistry, EditKey, EditRefused, KeyView, ListKeys, RegistryError, RegistrySnapshot,
    WatchKeys, WatchStream,
};
use crate::transport::{Send, SendError};
use crate::wire::{ApiRequest, MAX_PAYLOAD, Message};
use crate::worker::{AskWorker, WorkerSnapshot};

const ME: NodeId = NodeId(7);
const OTHER: NodeId = NodeId(8);
/// Largest body that is taken here.
const MAX_BODY: usize = 256 * 1024;
/// Nothing here takes long; what waits by request does not wait longer.
const SOON: Duration = Duration::from_millis(2);
/// An answer that does not end by itself is read so far.
const ENOUGH: usize = 256 * 1024;

/// Stands in for all other actors.
struct Others;

impl Actor for Others {
    type Context = Context<Self>;
}

macro_rules! answers {
    ($($message:ty => $answer:ty, $line:expr;)*) => { $(
        impl Handler<$message> for Others {
            type Result = actix::MessageResult<$message>;
            fn handle(&mut self, message: $message, _: &mut Self::Context) -> Self::Result {
                let line: fn($message) -> $answer = $line;
                actix::MessageResult(line(message))
            }
        }
    )* };
}

answers! {
    AskMaster => MasterSnapshot, |_| MasterSnapshot::default();
    ListTasks => Option<Vec<TaskView>>, |ask| {
        assert!(ask.limit <= 501);
        Some(Vec::new())
    };
    GetTask => Option<Option<TaskView>>, |_| Some(None);
    CancelTask => Result<TaskView, ChangeError>, |CancelTask(id)| Err(ChangeError::Missing(id));
    RetryTask => Result<TaskView, ChangeError>, |RetryTask(id)| Err(ChangeError::Missing(id));
    AwaitTasks => Option<Vec<Ended>>, |AwaitTasks(ids)| Some(ids.into_iter().map(ended).collect());
    Submit => Vec<Result<Taken, SubmitError>>, |Submit(tasks)| take(&tasks);
    SubmitAndWait => Submitted, |SubmitAndWait(tasks)| {
        let answers = take(&tasks);
        let (tell, told) = tokio::sync::oneshot::channel();
        let ended: Vec<_> = answers.iter().flatten().map(|t| ended(t.id)).collect();
        tell.send(ended).ok();
        Submitted { answers, ended: told }
    };
    AskWorker => WorkerSnapshot, |_| WorkerSnapshot::default();
    AskRegistry => RegistrySnapshot, |_| RegistrySnapshot::default();
    ListKeys => Result<Vec<KeyView>, RegistryError>, |_| Ok(Vec::new());
    EditKey => Result<i64, EditRefused>, |edit| {
        Err(EditRefused::Changed { key: edit.key, seen: edit.seen, is: 0 })
    };
    WatchKeys => Result<WatchStream, RegistryError>, |_| Ok(futures_util::stream::empty().boxed());
    StepDown => Result<NewMaster, StepDownError>, |_| Err(StepDownError::NoHeir("alone".to_owned()));
    Reborn => (), |_| ();
    Send => Result<(), SendError>, |_| Err(SendError::NoSession);
}

fn ended(id: TaskId) -> Ended {
    Ended {
        id,
        state: "done",
        output: Some(Bytes::from_static(b"21")),
        error: None,
    }
}

/// As a master does: by the rules of a submission. What comes this far is within the API's own bounds.
fn take(tasks: &[Submission]) -> Vec<Result<Taken, SubmitError>> {
    let take = |task: &Submission| {
        let id = task.id.expect("the API names every task");
        assert!(task.input.len() <= MAX_PAYLOAD && !task.job.is_empty());
        serde_json::from_slice::<serde::de::IgnoredAny>(&task.input).expect("the input is JSON");
        task.check()?;
        Ok(Taken {
            id,
            state: "queued",
        })
    };
    tasks.iter().map(take).collect()
}

struct Tree;

impl Actors for Tree {
    fn report(&self) -> Vec<ActorView> {
        Vec::new()
    }

    fn trace(&self, _: &str) -> Option<String> {
        None
    }

    fn kill(&self, name: &str, how: &str) -> Result<(), String> {
        assert!(["panic", "stop", "hang"].contains(&how));
        Err(format!("{name} is not killed"))
    }
}

struct Node {
    router: Router,
    office: Arc<Office>,
    _life: Life,
}

/// The API of this thread.
fn node() -> Rc<Node> {
    thread_local! {
        static NODE: OnceCell<Rc<Node>> = const { OnceCell::new() };
    }
    NODE.with(|cell| Rc::clone(cell.get_or_init(|| Rc::new(start()))))
}

fn start() -> Node {
    let others = Others.start();
    let seed = AdminSeed {
        refusals: crate::transport::Refusals::default(),
        settings: AdminSettings {
            relay_timeout: SOON,
            master_wait: SOON,
            max_wait: SOON,
            body_timeout: SOON,
            max_body: MAX_BODY,
            edit_registry: true,
            ..AdminSettings::default()
        },
        identity: Identity {
            cluster: "troupe".to_owned(),
            id: ME,
            name: Arc::new(Mutex::new("brave-lion".to_owned())),
            address: "127.0.0.1:22222".to_owned(),
        },
        listener: Arc::new(TcpListener::bind("127.0.0.1:0").expect("a port")),
        started_at: 1_700_000_000_000,
        started: Instant::now(),
        events: EventLog::new(16),
        actors: Arc::new(Tree),
        drain: Arc::new(|| {}),
        drained: tokio::sync::watch::channel(None).1,
        config: Arc::new(NoSettings),
        // As the requests of the corpus name it.
        access: Access {
            hosts: vec!["a".to_owned()],
            ..Access::default()
        },
        audit: Default::default(),
        tls: None,
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
    let (office, life) = Office::new(seed);
    office.show(Arc::new(cluster()));
    Node {
        router: router(Arc::clone(&office)),
        office,
        _life: life,
    }
}

/// This node leads; there is another.
fn cluster() -> Cluster {
    let mut cluster = Cluster::empty(ME);
    cluster.incarnation = Incarnation(9);
    cluster.members = [ME, OTHER].map(super::master::member).to_vec();
    cluster.leading = true;
    cluster.epoch = epoch(42);
    cluster.master = Some(Master {
        record: MasterRecord {
            id: ME,
            incarnation: Incarnation(9),
            address: "127.0.0.1:22222".to_owned(),
        },
        epoch: epoch(42),
    });
    cluster
}

/// The first of an answer's body. No handler may have panicked: that one answers for it is the last resort, not the plan.
async fn look(response: Response) -> (StatusCode, Vec<u8>) {
    let status = response.status();
    let mut body = response.into_body().into_data_stream();
    let mut text = Vec::new();
    while text.len() < ENOUGH
        && let Ok(Some(Ok(chunk))) = tokio::time::timeout(SOON, body.next()).await
    {
        text.extend_from_slice(&chunk);
    }
    assert_ne!(
        status,
        StatusCode::INTERNAL_SERVER_ERROR,
        "{}",
        String::from_utf8_lossy(&text)
    );
    (status, text)
}

/// A connection, as `serve` has it.
pub(super) fn http(data: &[u8]) {
    on_runtime(async {
        let router = node().router.clone();
        let (ours, theirs) = duplex(64 * 1024);
        let service = service_fn(move |request: Request<Incoming>| {
            let router = router.clone();
            async move {
                let (status, text) = match router.oneshot(request.map(Body::new)).await {
                    Ok(response) => look(response).await,
                    Err(never) => match never {},
                };
                let mut answer = Response::new(Body::from(text));
                *answer.status_mut() = status;
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(SOON)
            .max_buf_size(64 * 1024)
            .serve_connection(TokioIo::new(theirs), service);
        let (mut reader, mut writer) = tokio::io::split(ours);
        let saying = async {
            writer.write_all(data).await.ok();
            writer.shutdown().await.ok();
        };
        let hearing = async {
            let mut heard = [0; 4096];
            while matches!(reader.read(&mut heard).await, Ok(n) if n > 0) {}
        };
        let all = async { tokio::join!(serving, saying, hearing) };
        tokio::time::timeout(Duration::from_secs(10), all)
            .await
            .expect("a connection that says no more comes to an end")
            .0
            .ok();
    });
}

/// `changes u8 | path, Host, Origin, Sec-Fetch-Site, Authorization`, a line each; an empty one is none. Nobody is let in who shows
/// no token where there are tokens.
pub(super) fn access(data: &[u8]) {
    const OPERATOR: &str = "operator-operator-operator-operator";
    const READER: &str = "reader-reader-reader-reader-reader-";
    let Some((changes, Ok(text))) = data.split_first().map(|(c, t)| (c, str::from_utf8(t))) else {
        return;
    };
    let mut lines = text.split('\n');
    let mut line = || lines.next().filter(|line| !line.is_empty());
    let asked = Asked {
        path: line().unwrap_or("/"),
        safe: changes % 2 == 0,
        host: line(),
        origin: line(),
        site: line(),
        authorization: line(),
    };
    let shown = asked.authorization.and_then(|text| text.split_once(' '));
    let shown = shown.map(|(_, token)| token.trim());
    let guarded = Access {
        operator: Token::parse(OPERATOR).ok(),
        reader: Token::parse(READER).ok(),
        hosts: vec!["a".to_owned()],
    };
    match guarded.judge(&asked) {
        Ok(Who::Operator) => assert_eq!(shown, Some(OPERATOR)),
        Ok(Who::Reader) => assert!(asked.safe && shown == Some(READER)),
        Ok(Who::Anybody) => assert!(!asked.path.starts_with("/v1/")),
        Ok(Who::Loopback) => panic!("it asks for no token"),
        Err(refusal) => assert!(refusal.to_string().len() < 2048),
    }
    let open = Access::default().judge(&asked);
    assert!(!matches!(open, Ok(Who::Operator | Who::Reader)));
}

/// The first byte says whether it is NDJSON and whether it waits.
pub(super) fn submit(data: &[u8]) {
    let Some((how, body)) = data.split_first() else {
        return;
    };
    let lines = how & 1 == 1;
    let kind = if lines {
        "application/x-ndjson"
    } else {
        "application/json"
    };
    let path = if how & 2 == 2 {
        "/v1/tasks?wait=1ms"
    } else {
        "/v1/tasks"
    };
    let request = Request::post(path)
        .header(header::CONTENT_TYPE, kind)
        .body(Body::from(body.to_vec()))
        .expect("a request");
    let (status, text) = on_runtime(async {
        let router = node().router.clone();
        let Ok(answer) = router.oneshot(request).await;
        look(answer).await
    });
    assert!(
        status.is_success() || status.is_client_error(),
        "{status} to {body:?}"
    );
    if lines && status == StatusCode::OK {
        let told = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let asked = body.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
        assert_eq!(
            told.count(),
            asked.filter(|line| !line.is_empty()).count(),
            "each task is answered"
        );
    }
    for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        serde_json::from_slice::<serde_json::Value>(line).expect("the answer is JSON");
    }
}

/// `method u8 | path and query, \n, Last-Event-ID`.
pub(super) fn query(data: &[u8]) {
    let Some((method, rest)) = data.split_first() else {
        return;
    };
    let mut lines = rest.splitn(2, |b| *b == b'\n');
    let (path, id) = (lines.next().unwrap_or(&[]), lines.next());
    let methods = [Method::GET, Method::DELETE, Method::POST];
    let mut request = Request::builder()
        .method(methods[usize::from(*method) % methods.len()].clone())
        .uri(path);
    if let Some(id) = id {
        request = request.header("last-event-id", id);
    }
    // What hyper would refuse before us.
    let Ok(request) = request.body(Body::empty()) else {
        return;
    };
    on_runtime(async {
        let router = node().router.clone();
        let Ok(answer) = router.oneshot(request).await;
        look(answer).await;
    });
}

/// Each part is `what u8 | body`: a request or an answer, as the transport brings it.
pub(super) fn carried(data: &[u8]) {
    let read = |part: &[u8]| {
        let (what, body) = part.split_first()?;
        let kind = if what % 2 == 0 { 40 } else { 41 };
        Message::decode_body(kind, body).ok().flatten()
    };
    let messages: Vec<Message> = parts(data).into_iter().take(8).filter_map(read).collect();
    on_runtime(async {
        let node = node();
        for message in messages {
            match message {
                Message::ApiRequest(request) => answer(&node, request).await,
                Message::ApiResponse(response) => node.office.answered(OTHER, response),
                _ => {}
            }
        }
    });
}

async fn answer(node: &Node, request: ApiRequest) {
    let nonce = request.nonce;
    let answer = answer_carried(&node.office, node.router.clone(), request).await;
    assert_eq!(answer.nonce, nonce);
    assert_ne!(answer.status, 500, "{answer:?}");
}
