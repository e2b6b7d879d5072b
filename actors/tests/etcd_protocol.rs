//! What `etcdctl` cannot ask: the corners of etcd's protocol, put to the embedded registry and to a real etcd, answers
//! compared word for word. Revisions are counted from the one before the first question.

mod support;

use std::time::Duration;

use etcd_client::proto::{PbKeyValue, PbTxnOpResponse};
use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, Error, GetOptions, LeaseGrantOptions, PutOptions,
    SortOrder, SortTarget, Txn, TxnOp, WatchFilterType, WatchOptions, WatchResponse, WatchStream,
};
use support::Etcd;
use troupe_actors::registry::embedded::Server;

struct Scene {
    client: Client,
    base: i64,
    said: Vec<String>,
}

impl Scene {
    async fn new(url: String) -> Self {
        let mut client = Client::connect([url], None).await.expect("a client");
        let response = client.get("/", None).await.expect("an answer");
        let base = response.header().expect("a header").revision();
        Self {
            client,
            base,
            said: Vec::new(),
        }
    }

    fn say(&mut self, what: &str, answer: String) {
        self.said.push(format!("{what}: {answer}"));
    }

    fn rev(&self, revision: i64) -> i64 {
        if revision == 0 {
            0
        } else {
            revision - self.base
        }
    }

    fn kv(&self, kv: &PbKeyValue) -> String {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        format!(
            "{}={} c{} m{} v{} l{}",
            text(&kv.key),
            text(&kv.value[..kv.value.len().min(20)]),
            self.rev(kv.create_revision),
            self.rev(kv.mod_revision),
            kv.version,
            kv.lease
        )
    }

    fn error(error: &Error) -> String {
        match error {
            Error::GRpcStatus(status) => format!("{:?} {}", status.code(), status.message()),
            other => other.to_string(),
        }
    }

    async fn get(&mut self, what: &str, key: &str, options: GetOptions) {
        let answer = match self.client.get(key, Some(options)).await {
            Ok(response) => {
                let kvs: Vec<_> = response.0.kvs.iter().map(|kv| self.kv(kv)).collect();
                format!(
                    "{kvs:?} more={} count={}",
                    response.more(),
                    response.count()
                )
            }
            Err(error) => Self::error(&error),
        };
        self.say(what, answer);
    }

    async fn txn(&mut self, what: &str, txn: Txn) {
        let answer = match self.client.txn(txn).await {
            Ok(response) => {
                let revision = response.header().map_or(0, |h| self.rev(h.revision()));
                format!("@{revision} {}", self.outcome(&response.0))
            }
            Err(error) => Self::error(&error),
        };
        self.say(what, answer);
    }

    fn outcome(&self, response: &etcd_client::proto::PbTxnResponse) -> String {
        let of = |op: &Option<PbTxnOpResponse>| match op {
            Some(PbTxnOpResponse::ResponseRange(r)) => {
                let at = r.header.as_ref().map_or(0, |h| self.rev(h.revision));
                let kvs: Vec<_> = r.kvs.iter().map(|kv| self.kv(kv)).collect();
                format!("range@{at} {kvs:?} more={} count={}", r.more, r.count)
            }
            Some(PbTxnOpResponse::ResponsePut(r)) => {
                let at = r.header.as_ref().map_or(0, |h| self.rev(h.revision));
                let prev = r.prev_kv.as_ref().map(|kv| self.kv(kv));
                format!("put@{at} {prev:?}")
            }
            Some(PbTxnOpResponse::ResponseDeleteRange(r)) => {
                let at = r.header.as_ref().map_or(0, |h| self.rev(h.revision));
                let prev: Vec<_> = r.prev_kvs.iter().map(|kv| self.kv(kv)).collect();
                format!("delete@{at} {} {prev:?}", r.deleted)
            }
            Some(PbTxnOpResponse::ResponseTxn(r)) => {
                let at = r.header.as_ref().map_or(0, |h| self.rev(h.revision));
                format!("txn@{at} {}", self.outcome(r))
            }
            None => "nothing".to_owned(),
        };
        let done: Vec<_> = response.responses.iter().map(|r| of(&r.response)).collect();
        format!("{} {done:?}", response.succeeded)
    }

    fn watched(&self, response: &WatchResponse) -> String {
        let events: Vec<_> = response
            .0
            .events
            .iter()
            .map(|e| {
                let kv = e.kv.as_ref().map(|kv| self.kv(kv));
                let prev = e.prev_kv.as_ref().map(|kv| self.kv(kv));
                format!("{} {kv:?} before {prev:?}", e.r#type)
            })
            .collect();
        format!(
            "id={} created={} canceled={} compacted={} why={:?} fragment={} {events:?}",
            response.watch_id(),
            response.created(),
            response.canceled(),
            self.rev(response.compact_revision()),
            response.cancel_reason(),
            response.0.fragment
        )
    }

    async fn hear(&mut self, what: &str, watch: &mut WatchStream) {
        let next = tokio::time::timeout(Duration::from_secs(10), watch.message()).await;
        let answer = match next {
            Ok(Ok(Some(response))) => self.watched(&response),
            Ok(Ok(None)) => "the end".to_owned(),
            Ok(Err(error)) => Self::error(&error),
            Err(_) => "silence".to_owned(),
        };
        self.say(what, answer);
    }

    async fn put(&mut self, key: &str, value: &str) {
        self.client.put(key, value, None).await.expect("a put");
    }

    async fn ranges(&mut self) {
        for (key, value) in [("/r/a", "3"), ("/r/b", "1"), ("/r/c", "2"), ("/r/a", "4")] {
            self.put(key, value).await;
        }
        let all = || GetOptions::new().with_prefix();
        let base = self.base;
        for (what, options) in [
            ("min mod", all().with_min_mod_revision(base + 3)),
            ("max mod", all().with_max_mod_revision(base + 3)),
            ("min create", all().with_min_create_revision(base + 2)),
            ("max create", all().with_max_create_revision(base + 1)),
            (
                "filtered and limited",
                all().with_min_mod_revision(base + 3).with_limit(1),
            ),
            ("count only", all().with_count_only()),
            ("count only, limited", all().with_count_only().with_limit(1)),
            ("keys only", all().with_keys_only()),
            ("limit", all().with_limit(2)),
            ("limit as many as there are", all().with_limit(3)),
            ("negative limit", all().with_limit(-1)),
            (
                "limit and sort",
                all()
                    .with_limit(1)
                    .with_sort(SortTarget::Value, SortOrder::Descend),
            ),
            (
                "sort without order",
                all().with_sort(SortTarget::Value, SortOrder::None),
            ),
            (
                "keys descending",
                all().with_sort(SortTarget::Key, SortOrder::Descend),
            ),
            (
                "by version",
                all()
                    .with_sort(SortTarget::Version, SortOrder::Descend)
                    .with_limit(1),
            ),
            ("in the past", all().with_revision(base + 2)),
            ("in a negative past", all().with_revision(-5)),
            ("in the future", all().with_revision(base + 500)),
            ("serializable", all().with_serializable()),
            ("from key", GetOptions::new().with_from_key()),
            ("empty range", GetOptions::new().with_range("/a")),
        ] {
            self.get(what, "/r/", options).await;
        }
        self.get("no key", "", GetOptions::new()).await;
        self.get("all keys", "", GetOptions::new().with_all_keys())
            .await;
    }

    async fn transactions(&mut self) {
        let put = |key: &str| TxnOp::put(key, "t", None);
        let get = |key: &str| TxnOp::get(key, Some(GetOptions::new().with_prefix()));
        let delete = |key: &str| TxnOp::delete(key, None);
        let then = |ops: Vec<TxnOp>| Txn::new().and_then(ops);
        let nest = |ops: Vec<TxnOp>| TxnOp::txn(Txn::new().and_then(ops));
        let prev = |key: &str| TxnOp::put(key, "p", Some(PutOptions::new().with_prev_key()));
        let gone = DeleteOptions::new().with_prefix().with_prev_key();
        let absent = |key: &str| Compare::create_revision(key, CompareOp::Equal, 0);
        for (what, txn) in [
            ("empty", Txn::new()),
            (
                "read around a write",
                then(vec![
                    get("/x"),
                    put("/x/1"),
                    get("/x"),
                    prev("/x/2"),
                    prev("/x/3"),
                ]),
            ),
            (
                "delete with what was",
                then(vec![TxnOp::delete("/x", Some(gone)), get("/x")]),
            ),
            ("delete nothing", then(vec![delete("/nowhere")])),
            (
                "delete twice",
                then(vec![put("/y"), delete("/x/9"), delete("/x/9")]),
            ),
            (
                "nested",
                then(vec![put("/n/1"), nest(vec![put("/n/2"), get("/n")])]),
            ),
            (
                "nested condition looks before",
                then(vec![
                    put("/m/1"),
                    TxnOp::txn(
                        Txn::new()
                            .when(vec![absent("/m/1")])
                            .and_then(vec![put("/m/2")])
                            .or_else(vec![put("/m/3")]),
                    ),
                ]),
            ),
            (
                "nested duplicate",
                then(vec![put("/n/1"), nest(vec![put("/n/1")])]),
            ),
            (
                "nested delete of a put",
                then(vec![put("/n/1"), nest(vec![delete("/n/1")])]),
            ),
            (
                "siblings put the same",
                then(vec![nest(vec![put("/n/1")]), nest(vec![put("/n/1")])]),
            ),
            ("without a key", then(vec![put("/z"), put("")])),
            ("condition without a key", Txn::new().when(vec![absent("")])),
            (
                "put under no such lease",
                then(vec![
                    put("/z"),
                    TxnOp::put("/z/1", "", Some(PutOptions::new().with_lease(99))),
                ]),
            ),
            (
                "put ignoring no value",
                then(vec![
                    put("/z"),
                    TxnOp::put("/z/1", "", Some(PutOptions::new().with_ignore_value())),
                ]),
            ),
            (
                "put ignoring a value given",
                then(vec![TxnOp::put(
                    "/z/1",
                    "v",
                    Some(PutOptions::new().with_ignore_value()),
                )]),
            ),
            (
                "put ignoring a lease given",
                then(vec![TxnOp::put(
                    "/z/1",
                    "v",
                    Some(PutOptions::new().with_ignore_lease().with_lease(5)),
                )]),
            ),
            (
                "read the future",
                then(vec![
                    put("/z"),
                    TxnOp::get("/z", Some(GetOptions::new().with_revision(i64::MAX))),
                ]),
            ),
            (
                "129 operations",
                then((0..129).map(|n| put(&format!("/o/{n}"))).collect()),
            ),
            (
                "129 conditions",
                Txn::new().when(
                    (0..129)
                        .map(|n| absent(&format!("/o/{n}")))
                        .collect::<Vec<_>>(),
                ),
            ),
            (
                "128 deep down",
                then(vec![nest(
                    (0..128).map(|n| put(&format!("/o/{n}"))).collect(),
                )]),
            ),
            (
                "too large",
                then(vec![TxnOp::put("/z", "x".repeat(1_600_000), None)]),
            ),
            (
                "all over a range",
                Txn::new()
                    .when(vec![
                        Compare::version("/r", CompareOp::Greater, 0).with_prefix(),
                    ])
                    .and_then(vec![get("/r/a")]),
            ),
            (
                "not all over a range",
                Txn::new().when(vec![
                    Compare::version("/r", CompareOp::Greater, 1).with_prefix(),
                ]),
            ),
            (
                "over an empty range",
                Txn::new().when(vec![
                    Compare::version("/none", CompareOp::Equal, 0).with_prefix(),
                ]),
            ),
            (
                "value of nothing",
                Txn::new().when(vec![Compare::value("/none", CompareOp::NotEqual, "x")]),
            ),
            (
                "lease of a key",
                Txn::new().when(vec![Compare::lease("/r/a", CompareOp::Equal, 0)]),
            ),
            ("nothing of it was done", then(vec![get("/z"), get("/o")])),
        ] {
            self.txn(what, txn).await;
        }
    }

    async fn leases(&mut self) {
        for (id, ttl) in [(77, 60), (77, 60), (78, -3), (79, i64::MAX)] {
            let options = LeaseGrantOptions::new().with_id(id);
            let granted = self.client.lease_grant(ttl, Some(options)).await;
            let answer = match granted {
                Ok(lease) => format!("{} for {} {:?}", lease.id(), lease.ttl(), lease.error()),
                Err(error) => Self::error(&error),
            };
            self.say("grant", answer);
        }
        for id in [77, 404] {
            let known = self
                .client
                .lease_time_to_live(id, None)
                .await
                .expect("an answer");
            let answer = format!("{} of {}", known.ttl() >= 0, known.granted_ttl());
            self.say("time to live", answer);
        }
        for id in [77, 77, 0] {
            let answer = match self.client.lease_revoke(id).await {
                Ok(_) => "revoked".to_owned(),
                Err(error) => Self::error(&error),
            };
            self.say("revoke", answer);
        }
    }

    async fn watches(&mut self) {
        let from = |scene: &Self, n: i64| WatchOptions::new().with_start_revision(scene.base + n);
        self.put("/w/a", "1").await;
        let begun = {
            let answer = self.client.get("/w/a", None).await.expect("an answer");
            answer.header().expect("a header").revision() - self.base
        };
        let first = from(self, begun).with_prefix();
        let mut watch = self.client.watch("/w", Some(first)).await.expect("a watch");
        self.hear("created", &mut watch).await;
        self.hear("history", &mut watch).await;
        let options = WatchOptions::new().with_watch_id(5).with_prev_key();
        watch.watch("/w/b", Some(options)).await.expect("sent");
        self.hear("a second on the stream", &mut watch).await;
        let options = WatchOptions::new().with_watch_id(5);
        watch.watch("/w/b", Some(options)).await.expect("sent");
        self.hear("an id twice", &mut watch).await;
        let options = WatchOptions::new().with_range("/a");
        watch.watch("/w/b", Some(options)).await.expect("sent");
        self.hear("an empty range", &mut watch).await;
        watch.cancel(0).await.expect("sent");
        self.hear("the first is cancelled", &mut watch).await;
        watch.cancel(4711).await.expect("sent");
        watch.request_progress().await.expect("sent");
        self.hear("progress", &mut watch).await;
        self.put("/w/a", "2").await;
        self.put("/w/b", "1").await;
        self.hear("only the second hears", &mut watch).await;
        self.put("/w/b", "2").await;
        self.hear("with what was before", &mut watch).await;
        self.client.delete("/w/b", None).await.expect("deleted");
        self.hear("a deletion", &mut watch).await;
        watch
            .watch("", Some(from(self, begun)))
            .await
            .expect("sent");
        self.hear("no key is the first key", &mut watch).await;
        self.filters(begun).await;
        self.compacted(begun).await;
    }

    async fn filters(&mut self, begun: i64) {
        for (what, filter) in [
            ("no puts", vec![WatchFilterType::NoPut]),
            ("no deletes", vec![WatchFilterType::NoDelete]),
        ] {
            let options = WatchOptions::new()
                .with_prefix()
                .with_filters(filter)
                .with_start_revision(self.base + begun);
            let mut watch = self
                .client
                .watch("/w", Some(options))
                .await
                .expect("a watch");
            self.hear(what, &mut watch).await;
            self.hear(what, &mut watch).await;
        }
    }

    async fn compacted(&mut self, begun: i64) {
        self.put("/w/c", "1").await;
        let oldest = self.base + begun + 2;
        self.client.compact(oldest, None).await.expect("compacted");
        for (what, n) in [("compacted", begun), ("just kept", begun + 2)] {
            let options = WatchOptions::new()
                .with_prefix()
                .with_prev_key()
                .with_start_revision(self.base + n);
            let mut watch = self
                .client
                .watch("/w", Some(options))
                .await
                .expect("a watch");
            self.hear(what, &mut watch).await;
            self.hear(what, &mut watch).await;
        }
        let past = GetOptions::new().with_prefix().with_revision(oldest - 1);
        self.get("before the compaction", "/w", past).await;
        let at = GetOptions::new().with_prefix().with_revision(oldest);
        self.get("at the compaction", "/w", at).await;
    }
}

async fn play(url: String) -> Vec<String> {
    let mut scene = Scene::new(url).await;
    scene.ranges().await;
    scene.transactions().await;
    scene.leases().await;
    scene.watches().await;
    scene.said
}

#[tokio::test]
async fn both_give_the_same_answers() {
    let etcd = Etcd::start().await;
    let address = "127.0.0.1:0".parse().expect("an address");
    let server = Server::bind(address).await.expect("bound").spawn();
    let expected = play(etcd.url()).await;
    let got = play(format!("http://{}", server.local_addr())).await;
    server.stop().await.expect("it stops");
    let mut differences = String::new();
    for (expected, got) in expected.iter().zip(&got) {
        println!("{expected}");
        if expected != got {
            differences += &format!("etcd:     {expected}\nembedded: {got}\n\n");
        }
    }
    assert!(differences.is_empty(), "\n{differences}");
    assert_eq!(expected.len(), got.len());
}
