//! TLS between two sides in memory: who is let in, who is not, and what each is told.

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::certificate::{issue, set_up};
use super::super::memory::MemoryNetwork;
use super::super::trust::Side;
use super::*;

const WITHIN: Duration = Duration::from_secs(5);

fn secrets(bytes: &[u8]) -> Credentials {
    Credentials::Secrets(bytes.iter().map(|b| Secret::new([*b; 32])).collect())
}

fn tls(bytes: &[u8], cluster: &str) -> Arc<Tls> {
    Arc::new(Tls::new(secrets(bytes), cluster, NodeId(7)).unwrap())
}

/// A node whose certificate was valid from this many hours after now to that many.
fn tls_of_hours(from: i64, to: i64) -> Arc<Tls> {
    let now = time::OffsetDateTime::now_utc();
    let hours = |n| now + time::Duration::hours(n);
    let secret = Secret::new([1; 32]);
    let me = life("a", NodeId(7), Incarnation::NONE);
    let papers = issue(&[secret], me, (hours(from), hours(to))).unwrap();
    let configs = set_up(papers, "a", true).unwrap();
    let credentials = secrets(&[1]);
    Arc::new(Tls {
        cluster: "a".to_owned(),
        id: NodeId(7),
        current: Mutex::new(Current {
            credentials,
            configs,
        }),
        turn: Arc::new(Semaphore::new(1)),
    })
}

/// What either side says of the other: whom it takes it for, or why it does not.
struct Talk {
    dialler: Result<Proof, Distrust>,
    acceptor: Result<Proof, Distrust>,
}

/// The dialler says a word, which the acceptor repeats.
async fn talk(dialler: Arc<Tls>, acceptor: Arc<Tls>) -> Talk {
    let memory = MemoryNetwork::default();
    let listener = memory.listen("there");
    let network = TlsNetwork::new(Arc::new(memory), dialler);
    let answering = async {
        let incoming = listener.incoming.lock().await.recv().await.unwrap();
        let stream = (incoming.open)().unwrap();
        let mut stream = acceptor.accept(stream, Instant::now() + WITHIN).await?;
        let broke = |why: io::Error| explain_io(&why);
        let mut word = [0; 4];
        stream.reader.read_exact(&mut word).await.map_err(broke)?;
        stream.writer.write_all(&word).await.map_err(broke)?;
        stream.writer.flush().await.map_err(broke)?;
        Ok(stream.proof.unwrap())
    };
    let asking = async {
        let mut stream = match network.dial("there", WITHIN).await {
            Ok(stream) => stream,
            Err(Unconnected::Distrusted(distrust)) => return Err(distrust),
            Err(other) => panic!("{other:?}"),
        };
        let broke = |why: io::Error| explain_io(&why);
        stream.writer.write_all(b"word").await.map_err(broke)?;
        stream.writer.flush().await.map_err(broke)?;
        stream.reader.read_exact(&mut [0; 4]).await.map_err(broke)?;
        Ok(stream.proof.unwrap())
    };
    let (acceptor, dialler) = futures_util::join!(answering, asking);
    Talk { dialler, acceptor }
}

fn reason(side: &Result<Proof, Distrust>) -> Option<Reason> {
    side.as_ref().err().map(|distrust| distrust.reason)
}

#[actix_rt::test]
async fn nodes_of_one_secret_and_cluster_learn_who_the_other_is() {
    let (a, b) = (tls(&[1], "a"), tls(&[1], "a"));
    b.set_incarnation(Incarnation(9));
    let talk = talk(Arc::clone(&a), b).await;
    let (dialler, acceptor) = (talk.dialler.unwrap(), talk.acceptor.unwrap());
    let words = dialler.holder.to_string();
    assert_eq!(words, format!("troupe://a/node/{}/9", NodeId(7)));
    assert_eq!(acceptor.holder, a.holder());
    assert_eq!(acceptor.own, dialler.holder);
}

#[actix_rt::test]
async fn what_binds_a_greeting_is_the_same_on_both_sides_and_never_twice() {
    let (a, b) = (tls(&[1], "a"), tls(&[1], "a"));
    let one = talk(Arc::clone(&a), Arc::clone(&b)).await;
    let (dialler, acceptor) = (one.dialler.unwrap(), one.acceptor.unwrap());
    assert_eq!(dialler.bindings, acceptor.bindings);
    assert_ne!(
        dialler.binding(Side::Dialler),
        dialler.binding(Side::Acceptor)
    );
    let other = talk(a, b).await.dialler.unwrap();
    assert_ne!(other.bindings, dialler.bindings);
}

#[actix_rt::test]
async fn another_secret_or_another_cluster_is_refused_in_the_handshake() {
    let other_secret = talk(tls(&[1], "a"), tls(&[2], "a")).await;
    assert_eq!(reason(&other_secret.dialler), Some(Reason::OtherSecret));
    assert_eq!(reason(&other_secret.acceptor), Some(Reason::DistrustsUs));
    let other_cluster = talk(tls(&[1], "a"), tls(&[1], "b")).await;
    let words = other_cluster.dialler.unwrap_err().words;
    assert!(
        words.contains("\"a\"") && words.contains("\"b\""),
        "{words}"
    );
    assert_eq!(reason(&other_cluster.acceptor), Some(Reason::DistrustsUs));
}

#[actix_rt::test]
async fn while_a_secret_is_rotated_both_are_accepted() {
    let both = talk(tls(&[1, 2], "a"), tls(&[2, 1], "a")).await;
    assert!(both.dialler.is_ok() && both.acceptor.is_ok());
    let both = talk(tls(&[2, 1], "a"), tls(&[1, 2], "a")).await;
    assert!(both.dialler.is_ok() && both.acceptor.is_ok());
}

#[actix_rt::test]
async fn secrets_are_replaced_while_it_runs_and_bad_ones_change_nothing() {
    let (a, b) = (tls(&[1], "a"), tls(&[2], "a"));
    b.set_incarnation(Incarnation(3));
    assert!(b.replace(secrets(&[])).is_err());
    let holder = b.replace(secrets(&[1])).unwrap();
    assert_eq!(holder, b.holder());
    assert_eq!(holder.subject, Subject::Life(NodeId(7), Incarnation(3)));
    assert!(talk(a, b).await.acceptor.is_ok());
}

#[actix_rt::test]
async fn a_certificate_out_of_its_time_is_refused_on_either_side() {
    for (from, to) in [(-48, -24), (24, 48)] {
        let stale = talk(tls_of_hours(from, to), tls(&[1], "a")).await;
        assert_eq!(reason(&stale.acceptor), Some(Reason::Expired));
        assert_eq!(reason(&stale.dialler), Some(Reason::DistrustsUs));
        let stale = talk(tls(&[1], "a"), tls_of_hours(from, to)).await;
        let distrust = stale.dialler.unwrap_err();
        assert_eq!(distrust.reason, Reason::Expired);
        assert!(distrust.words.contains("clock"), "{distrust}");
    }
}

// --- an authority of one's own -------------------------------------------------------------------------------------

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

use rcgen::{BasicConstraints, IsCa, Issuer};

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let pem = pem("CERTIFICATE", certificate.der());
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn issue(&self, uri: &str) -> OwnCertificates {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = CertificateParams::new(vec!["some.host".to_owned()]).unwrap();
        if !uri.is_empty() {
            let uri = SanType::URI(uri.to_owned().try_into().unwrap());
            params.subject_alt_names.push(uri);
        }
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        OwnCertificates {
            chain: pem("CERTIFICATE", certificate.der()).into_bytes(),
            key: pem("PRIVATE KEY", &key.serialize_der()).into_bytes(),
            authority: self.pem.clone().into_bytes(),
        }
    }

    fn node(&self, uri: &str, cluster: &str) -> Result<Arc<Tls>, TlsError> {
        let credentials = Credentials::Own(self.issue(uri));
        Tls::new(credentials, cluster, NodeId(7)).map(Arc::new)
    }
}

/// The library has no PEM writer in its tree, and a test needs three.
fn pem(what: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in der.chunks(3) {
        let byte = |n: usize| u32::from(three.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..4 {
            let six = (bits >> (18 - 6 * n)) & 63;
            let digit = char::from(ALPHABET[six as usize]);
            text.push(if n <= three.len() { digit } else { '=' });
        }
    }
    format!("-----BEGIN {what}-----\n{text}\n-----END {what}-----\n")
}

#[actix_rt::test]
async fn certificates_of_an_authority_of_ones_own_name_the_cluster_or_a_node_of_it() {
    let ours = Authority::new();
    let any = ours.node("troupe://a", "a").unwrap();
    let named = ours.node("troupe://a/name/node-b", "a").unwrap();
    let talk = talk(any, named).await;
    assert_eq!(talk.acceptor.unwrap().holder.subject, Subject::Any);
    let subject = Subject::Name("node-b".to_owned());
    assert_eq!(talk.dialler.unwrap().holder.subject, subject);
}

#[actix_rt::test]
async fn certificates_of_another_authority_or_cluster_are_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let us = || ours.node("troupe://a", "a").unwrap();
    let foreign = talk(theirs.node("troupe://a", "a").unwrap(), us()).await;
    assert_eq!(reason(&foreign.dialler), Some(Reason::OtherSecret));
    let other = talk(ours.node("troupe://b", "b").unwrap(), us()).await;
    assert_eq!(reason(&other.dialler), Some(Reason::OtherCluster));
    let by_secret = talk(tls(&[1], "a"), us()).await;
    assert!(by_secret.dialler.is_err() && by_secret.acceptor.is_err());
}

#[test]
fn a_certificate_that_others_would_refuse_is_refused_at_the_start() {
    let ours = Authority::new();
    let refused = |made: Result<Arc<Tls>, TlsError>| made.map(drop).unwrap_err().to_string();
    let nameless = refused(ours.node("", "a"));
    assert!(nameless.contains("troupe://a/name/"), "{nameless}");
    let other = refused(ours.node("troupe://b", "a"));
    assert!(other.contains("\"b\""), "{other}");
    let mut mixed = ours.issue("troupe://a");
    mixed.authority = Authority::new().pem.into_bytes();
    let mixed = Tls::new(Credentials::Own(mixed), "a", NodeId(7)).map(Arc::new);
    assert!(refused(mixed).contains("authority"));
    let mut unreadable = ours.issue("troupe://a");
    unreadable.key = b"nothing".to_vec();
    let unreadable = Tls::new(Credentials::Own(unreadable), "a", NodeId(7)).map(Arc::new);
    assert!(refused(unreadable).contains("the key cannot be read"));
}

// --- callers that are no nodes -------------------------------------------------------------------------------------

/// What becomes of somebody who says this.
async fn shout(bytes: &[u8]) -> Distrust {
    let memory = MemoryNetwork::default();
    let listener = memory.listen("there");
    let acceptor = tls(&[1], "a");
    let shouting = async {
        let mut stream = memory.dial("there", WITHIN).await.ok()?;
        stream.writer.write_all(bytes).await.ok()?;
        stream.reader.read_to_end(&mut Vec::new()).await.ok()
    };
    let answering = async {
        let incoming = listener.incoming.lock().await.recv().await.unwrap();
        let stream = (incoming.open)().unwrap();
        let until = Instant::now() + Duration::from_millis(200);
        acceptor.accept(stream, until).await.map(drop)
    };
    let (_, answer) = futures_util::join!(shouting, answering);
    answer.unwrap_err()
}

#[actix_rt::test]
async fn whoever_says_something_else_or_too_much_or_nothing_is_refused() {
    let plain = shout(b"TRPE\x00\x01\x01\x00\x00").await;
    assert_eq!(plain.reason, Reason::NoTls);
    assert!(plain.words.contains("without a secret"), "{plain}");
    // The pieces of one hello of 16 MiB.
    let mut piece = vec![0x16, 3, 1, 0x40, 0];
    piece.extend([1, 0xff, 0xff, 0xff]);
    piece.resize(5 + 0x4000, 0);
    let endless = shout(&piece.repeat(4)).await;
    assert!(
        matches!(endless.reason, Reason::TooLong | Reason::NoTls),
        "{endless}"
    );
    assert_eq!(shout(b"").await.reason, Reason::Late);
    assert_eq!(shout(&[0x16, 3, 1]).await.reason, Reason::Late);
}

#[test]
fn a_secret_is_read_as_it_was_written_and_nothing_else_is_one() {
    let secret = Secret::new([0xa5; 32]);
    let read = Secret::parse(&format!("{}\n", secret.reveal())).unwrap();
    assert_eq!(read.reveal(), secret.reveal());
    assert!(Secret::parse("short").is_err());
    assert!(Secret::parse(&"é".repeat(32)).is_err());
    assert_eq!(format!("{secret:?}"), "Secret(..)");
}

#[test]
fn only_whole_records_are_worth_computing_and_what_is_none_is_told_at_once() {
    let record = |kind: u8, length: u16| {
        let [high, low] = length.to_be_bytes();
        [&[kind, 3, 3, high, low][..], &vec![0; usize::from(length)]].concat()
    };
    let two = [record(22, 10), record(23, 300)].concat();
    assert_eq!(records(&[]), 0);
    assert_eq!(records(&two[..4]), 0);
    assert_eq!(records(&two[..14]), 0);
    assert_eq!(records(&two[..15]), 15);
    assert_eq!(records(&two[..319]), 15);
    assert_eq!(records(&two), two.len());
    let plain = [&two[..15], b"TRPE and more"].concat();
    assert_eq!(records(&plain), plain.len());
    let endless = [22, 3, 3, 0xff, 0xff];
    assert_eq!(records(&endless), endless.len());
}

#[test]
fn a_goodbye_in_the_middle_of_a_handshake_ends_its_step_whatever_follows() {
    let (_, client, server) = tls(&[1], "a").configs();
    let mut connection = ServerConnection::new(server).unwrap();
    let name = ServerName::try_from(NAME).unwrap();
    let mut dialler = rustls::ClientConnection::new(client, name).unwrap();
    let mut said = Vec::new();
    dialler.write_tls(&mut said).unwrap();
    // close_notify, and the beginning of a record that is longer than what is taken at once.
    said.extend([21, 3, 3, 0, 2, 1, 0, 22, 3, 3, 0x40, 0]);
    said.extend([0; 9000]);
    let (_, left) = take(&mut connection, &said);
    assert!(connection.is_handshaking() && !left.is_empty());
}
