//! TLS, both ways: bytes of somebody who has shown no certificate.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{on_runtime, reader};
use crate::id::NodeId;

use crate::transport::tls::{Credentials, Secret, Tls, TlsNetwork};
use crate::transport::{Dialing, Network, Stream};

const WITHIN: Duration = Duration::from_secs(5);

/// Whoever dials gets these bytes, then the end.
struct Canned(Vec<u8>);

impl Network for Canned {
    fn dial(&self, _: &str, _: Duration) -> Dialing {
        let stream = stream(&self.0);
        Box::pin(async move { Ok(stream) })
    }
}

fn stream(data: &[u8]) -> Stream {
    Stream {
        reader: Box::new(reader(data)),
        writer: Box::new(tokio::io::sink()),
        remote: ([127, 0, 0, 1], 1).into(),
        proof: None,
    }
}

/// The first byte says which side the bytes are for. Nobody gets in.
pub(super) fn tls(data: &[u8]) {
    thread_local! {
        static OURS: Arc<Tls> = {
            let secret = Secret::new([7; 32]);
            Arc::new(Tls::new(Credentials::Secrets(vec![secret]), "troupe", NodeId(7)).expect("TLS"))
        };
    }
    let Some((side, data)) = data.split_first() else {
        return;
    };
    let ours = OURS.with(Arc::clone);
    let in_words = on_runtime(async {
        if side % 2 == 0 {
            let accepted = ours.accept(stream(data), Instant::now() + WITHIN).await;
            accepted.err().map(|why| why.to_string())
        } else {
            let network = TlsNetwork::new(Arc::new(Canned(data.to_vec())), ours);
            let dialled = network.dial("there:1", WITHIN).await;
            dialled.err().map(|why| format!("{why:?}"))
        }
    });
    assert!(
        in_words.is_some_and(|why| !why.is_empty()),
        "somebody without the secret got in"
    );
}
