//! Every backend of the registry keeps the contract: the embedded registry and a real etcd, through the same client.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::Etcd;
use troupe_actors::registry::Timeouts;
use troupe_actors::registry::contract::{CHECKS, COMPACTING, Check, Compact, Subject};
use troupe_actors::registry::embedded::{Config, Running, Server};
use troupe_actors::registry::etcd::EtcdBackend;

fn backend(url: &str) -> Arc<EtcdBackend> {
    // Patient, because all checks run at once on a machine that is doing other things too.
    let timeouts = Timeouts {
        request: Duration::from_secs(10),
        ..Timeouts::default()
    };
    Arc::new(EtcdBackend::new(vec![url.to_owned()], timeouts).expect("a backend"))
}

fn subject(url: &str) -> Subject {
    let address = url.to_owned();
    let compact: Compact = Arc::new(move |revision| {
        let address = address.clone();
        Box::pin(async move {
            let mut client = etcd_client::Client::connect([address], None)
                .await
                .expect("a client");
            client.compact(revision, None).await.expect("compacted");
        })
    });
    Subject {
        backend: backend(url),
        other: backend(url),
        prefix: String::new(),
        compact,
    }
}

async fn embedded() -> Running {
    let config = Config {
        progress: Duration::from_secs(1),
        ..Config::new_life()
    };
    let address = "127.0.0.1:0".parse().expect("an address");
    let server = Server::bind_with(address, config).await.expect("bound");
    server.spawn()
}

async fn run_all(url: &str) {
    let subject = subject(url);
    let mut failed = run(&subject, CHECKS).await;
    for check in COMPACTING {
        failed.extend(run(&subject, &[*check]).await);
    }
    assert!(failed.is_empty(), "not kept: {failed:#?}");
}

/// Runs checks side by side; answers those that failed.
async fn run(subject: &Subject, checks: &[(&'static str, Check)]) -> Vec<String> {
    let running: Vec<_> = checks
        .iter()
        .map(|(name, check)| {
            let subject = Subject {
                prefix: format!("/contract/{name}/"),
                ..subject.clone()
            };
            let check = *check;
            (*name, tokio::spawn(async move { check(&subject).await }))
        })
        .collect();
    let mut failed = Vec::new();
    for (name, task) in running {
        if let Err(error) = task.await {
            failed.push(format!("{name}: {error}"));
        }
    }
    failed
}

#[tokio::test]
async fn the_embedded_registry_keeps_the_contract_on_one_thread() {
    let server = embedded().await;
    run_all(&format!("http://{}", server.local_addr())).await;
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_registry_keeps_the_contract_on_many_threads() {
    let server = embedded().await;
    run_all(&format!("http://{}", server.local_addr())).await;
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_the_contract() {
    let etcd = Etcd::start().await;
    run_all(&etcd.url()).await;
}
