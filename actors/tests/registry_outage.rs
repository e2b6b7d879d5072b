//! What a backend does while its registry is away: killed, started again, frozen, or one endpoint of two.

mod support;

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use support::{Etcd, free_address};
use troupe_actors::registry::embedded::Server;
use troupe_actors::registry::etcd::EtcdBackend;
use troupe_actors::registry::{Backend, Change, Compare, Op, RegistryError, Timeouts, Txn};

const REQUEST: Duration = Duration::from_secs(2);

fn backend(urls: &[String]) -> EtcdBackend {
    let timeouts = Timeouts {
        request: REQUEST,
        ..Timeouts::default()
    };
    EtcdBackend::new(urls.to_vec(), timeouts).expect("a backend")
}

fn put(key: &str) -> Txn {
    Txn {
        then: vec![Op::Put {
            key: key.to_owned(),
            value: Bytes::from_static(b"1"),
            lease: 0,
        }],
        ..Txn::default()
    }
}

fn claim(key: &str) -> Txn {
    Txn {
        when: vec![Compare::Created(key.to_owned(), 0)],
        ..put(key)
    }
}

fn is_unreachable<T: std::fmt::Debug>(result: &Result<T, RegistryError>) -> bool {
    matches!(result, Err(RegistryError::Unreachable { .. }))
}

/// Within the time-out of a request and some slack for a busy machine.
async fn in_time<T>(call: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let answer = call.await;
    let took = begun.elapsed();
    assert!(took < REQUEST + Duration::from_secs(1), "took {took:?}");
    answer
}

#[test]
fn a_backend_is_made_outside_of_any_runtime() {
    backend(&["127.0.0.1:1".to_owned(), "http://localhost:2".to_owned()]);
    assert!(EtcdBackend::new(vec![], Timeouts::default()).is_err());
    for url in ["https://localhost:1", "not a url"] {
        let refused = EtcdBackend::new(vec![url.to_owned()], Timeouts::default());
        assert!(refused.is_err(), "{url}");
    }
}

#[test]
fn a_backend_outlives_the_runtime_of_its_first_call() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
    };
    let serving = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let address = "127.0.0.1:0".parse().expect("an address");
    let server = serving
        .block_on(async { Server::bind(address).await.map(Server::spawn) })
        .expect("bound");
    let backend = backend(&[server.local_addr().to_string()]);
    for n in 0..3 {
        let listed = runtime().block_on(backend.list("/"));
        assert!(listed.is_ok(), "runtime {n}: {listed:?}");
        let written = runtime().block_on(backend.txn(put("/a")));
        assert!(written.is_ok() || is_unreachable(&written), "{written:?}");
    }
    serving.block_on(server.stop()).expect("it stops");
}

#[tokio::test]
async fn a_refused_connection_is_told_at_once_and_in_words() {
    let backend = backend(&[free_address().to_string()]);
    let begun = Instant::now();
    let error = backend.txn(put("/a")).await.expect_err("nobody is there");
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(error.to_string().contains("onnection refused"), "{error}");
}

#[tokio::test]
async fn one_dead_endpoint_of_two_fails_no_call() {
    let address = "127.0.0.1:0".parse().expect("an address");
    let server = Server::bind(address).await.expect("bound").spawn();
    let dead = free_address().to_string();
    let alive = server.local_addr().to_string();
    let backend = backend(&[dead, alive]);
    for n in 0..50 {
        let key = format!("/{n}");
        let claimed = backend.txn(claim(&key)).await.expect("a transaction");
        assert!(claimed.succeeded);
        assert_eq!(backend.list(&key).await.expect("a listing").kvs.len(), 1);
    }
    server.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_silent_endpoint_costs_a_read_half_its_time_and_then_nothing() {
    let address = "127.0.0.1:0".parse().expect("an address");
    let server = Server::bind(address).await.expect("bound").spawn();
    // It takes connections, as a frozen server's kernel does, and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent_url = silent.local_addr().expect("its address").to_string();
    let backend = backend(&[silent_url, server.local_addr().to_string()]);
    in_time(backend.list("/")).await.expect("the other answers");
    let begun = Instant::now();
    backend.list("/").await.expect("the other answers");
    assert!(begun.elapsed() < REQUEST / 4, "it is remembered");
    server.stop().await.expect("it stops");
}

#[tokio::test]
async fn a_write_that_may_have_arrived_is_not_sent_again() {
    let address = "127.0.0.1:0".parse().expect("an address");
    let server = Server::bind(address).await.expect("bound").spawn();
    let alive = server.local_addr().to_string();
    // One never answers, the other hangs up as soon as it has heard something.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let rude = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let silent_url = silent.local_addr().expect("its address").to_string();
    let rude_url = rude.local_addr().expect("its address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = rude.accept().await {
            stream.readable().await.ok();
        }
    });
    for (bad, key) in [(silent_url, "/a"), (rude_url, "/b")] {
        let backend = backend(&[bad, alive.clone()]);
        let first = in_time(backend.txn(claim(key))).await;
        assert!(is_unreachable(&first), "{first:?}");
        let again = backend.txn(claim(key)).await.expect("the other answers");
        assert!(again.succeeded, "the first was not sent to it as well");
    }
    server.stop().await.expect("it stops");
}

#[tokio::test]
async fn an_embedded_registry_that_ends_lets_go_of_its_watches() {
    let address = "127.0.0.1:0".parse().expect("an address");
    let server = Server::bind(address).await.expect("bound").spawn();
    let backend = backend(&[server.local_addr().to_string()]);
    let mut watch = backend.watch("/", 0).await.expect("a watch");
    let begun = Instant::now();
    server.stop().await.expect("it stops");
    assert!(begun.elapsed() < Duration::from_secs(1), "nothing held it");
    let last = tokio::time::timeout(REQUEST, watch.next()).await;
    let last = last.expect("the watch ends");
    assert!(matches!(
        last,
        None | Some(Err(RegistryError::Unreachable { .. }))
    ));
    assert!(is_unreachable(&in_time(backend.list("/")).await));
}

#[tokio::test]
async fn a_new_life_of_the_embedded_registry_is_told_from_the_old_one() {
    let address = free_address();
    let server = Server::bind(address).await.expect("bound").spawn();
    let backend = backend(&[address.to_string()]);
    let lease = backend
        .grant(Duration::from_secs(60))
        .await
        .expect("a lease");
    let old = backend.txn(claim("/a")).await.expect("a transaction").stamp;
    server.stop().await.expect("it stops");

    let server = Server::bind(address).await.expect("bound").spawn();
    let new = backend.list("/").await.expect("it works again");
    assert!(new.kvs.is_empty());
    assert!(new.stamp.revision > old.revision, "revisions keep rising");
    assert_ne!(new.stamp.cluster_id, old.cluster_id);
    let lost = RegistryError::LeaseLost { id: lease.id };
    assert_eq!(backend.renew(lease.id).await, Err(lost));
    let watched = backend.watch("/", old.revision + 1).await;
    let told = match watched {
        Ok(mut watch) => watch.next().await.expect("a last word"),
        Err(error) => Err(error),
    };
    assert!(
        matches!(told, Err(RegistryError::Compacted { oldest }) if oldest == new.stamp.revision)
    );
    server.stop().await.expect("it stops");
}

#[tokio::test]
async fn after_etcd_was_killed_and_started_again_the_same_backend_works() {
    let mut etcd = Etcd::start().await;
    let backend = backend(&[etcd.url()]);
    let lease = backend
        .grant(Duration::from_secs(60))
        .await
        .expect("a lease");
    let written = backend.txn(claim("/a")).await.expect("a transaction");
    let mut watch = backend
        .watch("/", written.stamp.revision + 1)
        .await
        .expect("a watch");

    etcd.kill();
    let ended = tokio::time::timeout(Duration::from_secs(5), async {
        while let Some(Ok(_)) = watch.next().await {}
    });
    ended.await.expect("the watch ends with its server");
    assert!(is_unreachable(&in_time(backend.list("/")).await));
    assert!(is_unreachable(&in_time(backend.txn(claim("/b"))).await));
    assert!(is_unreachable(&in_time(backend.renew(lease.id)).await));
    let watching = in_time(backend.watch("/", 1)).await;
    assert!(watching.is_err());

    etcd.restart().await;
    let again = backend.list("/").await.expect("it works again");
    assert_eq!(again.kvs.len(), 1);
    assert_eq!(again.stamp.cluster_id, written.stamp.cluster_id);
    backend.renew(lease.id).await.expect("the lease lives on");
    let mut watch = backend
        .watch("/", again.stamp.revision + 1)
        .await
        .expect("a new watch");
    assert!(
        backend
            .txn(claim("/b"))
            .await
            .expect("a transaction")
            .succeeded
    );
    let seen = loop {
        let batch = watch.next().await.expect("it goes on").expect("a batch");
        if let Some(change) = batch.changes.into_iter().next() {
            break change;
        }
    };
    assert!(matches!(seen, Change::Put(kv) if kv.key == "/b"));
}

#[tokio::test]
async fn against_a_frozen_etcd_every_call_ends_in_time() {
    let etcd = Etcd::start().await;
    let backend = backend(&[etcd.url()]);
    let lease = backend
        .grant(Duration::from_secs(60))
        .await
        .expect("a lease");
    let mut watch = backend.watch("/", 0).await.expect("a watch");

    etcd.freeze();
    assert!(is_unreachable(&in_time(backend.list("/")).await));
    assert!(is_unreachable(&in_time(backend.txn(claim("/a"))).await));
    assert!(is_unreachable(&in_time(backend.grant(REQUEST)).await));
    assert!(is_unreachable(&in_time(backend.renew(lease.id)).await));
    assert!(is_unreachable(&in_time(backend.remaining(lease.id)).await));
    assert!(is_unreachable(&in_time(backend.revoke(i64::MAX)).await));
    assert!(is_unreachable(&in_time(backend.status()).await));
    assert!(in_time(backend.watch("/", 0)).await.is_err());
    let ended = tokio::time::timeout(Duration::from_secs(10), async {
        while let Some(Ok(_)) = watch.next().await {}
    });
    ended.await.expect("the keep-alive ends the watch");

    etcd.thaw();
    // The frozen claim may have been carried out after all: exactly what "unreachable" means.
    let claimed = loop {
        match backend.txn(claim("/a")).await {
            Ok(outcome) => break outcome,
            Err(error) => assert!(
                matches!(error, RegistryError::Unreachable { .. }),
                "{error}"
            ),
        }
    };
    let listing = backend.list("/a").await.expect("it works again");
    assert_eq!(listing.kvs.len(), 1);
    assert!(claimed.succeeded || listing.kvs[0].mod_revision < claimed.stamp.revision + 1);
    backend.renew(lease.id).await.expect("the lease lives on");
}

#[tokio::test]
async fn a_quiet_watch_is_not_taken_for_a_flood_of_pings() {
    let etcd = Etcd::start_quiet().await;
    let backend = backend(&[etcd.url()]);
    let mut watch = backend.watch("/", 0).await.expect("a watch");
    let quiet = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
    assert!(quiet.is_err(), "the watch should just be quiet: {quiet:?}");
    backend.txn(put("/a")).await.expect("a transaction");
    let batch = watch.next().await.expect("it goes on").expect("a batch");
    assert_eq!(batch.changes.len(), 1);
}
