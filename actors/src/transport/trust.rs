//! ● Whom a certificate names, whether that is who says hello, and the reasons for which somebody is refused.
//!
//! A certificate names its holder by one URI:
//!
//! | URI                                          | names                                   | issued by                     |
//! |----------------------------------------------|-----------------------------------------|-------------------------------|
//! | `troupe://<cluster>/node/<id>/<incarnation>` | one life of one node (0: not registered) | the node itself, by the secret |
//! | `troupe://<cluster>/name/<name>`             | whatever node has this name             | an authority of your own      |
//! | `troupe://<cluster>`                         | any node of the cluster                 | an authority of your own      |
//!
//! What is said inside a session is said by the holder of its certificate: [`Proof::vouches`] compares the two. The greeting
//! repeats a value that only this TLS session has ([`Proof::bindings`]), so that one which was taken from another session is
//! of no use in this.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::id::{Incarnation, NodeId};

const SCHEME: &str = "troupe://";

/// Bytes of a value that binds a greeting to its session.
pub const BINDING: usize = 32;

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Of which cluster.
    pub cluster: String,
    /// Which of its nodes.
    pub subject: Subject,
}

/// Which node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One life of one node; NONE while it is not registered.
    Life(NodeId, Incarnation),
    /// Whatever node has this name.
    Name(String),
    /// Any.
    Any,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.cluster)?;
        match &self.subject {
            Subject::Life(id, incarnation) => write!(f, "/node/{id}/{}", incarnation.0),
            Subject::Name(name) => write!(f, "/name/{name}"),
            Subject::Any => Ok(()),
        }
    }
}

impl Holder {
    /// Reads the URI of a certificate; `None` when it is none of the three.
    pub fn parse(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix(SCHEME)?.split('/');
        let cluster = parts.next().filter(|part| is_label(part))?.to_owned();
        let subject = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (None, ..) => Subject::Any,
            (Some("name"), Some(name), None, _) if is_label(name) => Subject::Name(name.to_owned()),
            (Some("node"), Some(id), Some(incarnation), None) => {
                let incarnation = Incarnation(incarnation.parse().ok()?);
                Subject::Life(NodeId::from_str(id).ok()?, incarnation)
            }
            _ => return None,
        };
        Some(Self { cluster, subject })
    }
}

/// What a name of a cluster or a node may be; it is shown to people.
fn is_label(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !part.is_empty() && part.len() <= 63 && part.chars().all(plain)
}

/// Why somebody is refused; the label of `troupe_refused_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// What came is no TLS.
    NoTls,
    /// It has no certificate.
    NoCertificate,
    /// Its certificate is of another authority and names this cluster: another secret.
    OtherSecret,
    /// It belongs to another cluster.
    OtherCluster,
    /// Its certificate names no node of any cluster.
    ForeignCertificate,
    /// Its certificate has ended or has not begun.
    Expired,
    /// Its certificate, or what it did with it, is not right in another way.
    BadCertificate,
    /// It does not accept our certificate.
    DistrustsUs,
    /// Its certificate names another node or life than it says it is.
    Impostor,
    /// What it says was not made for this session.
    Unbound,
    /// It said too much before it showed who it is.
    TooLong,
    /// It was too slow.
    Late,
    /// It left in the middle.
    BrokenOff,
    /// It said something else than a hello.
    NoHello,
    /// Too many were in the middle of a handshake, or it came too often.
    Crowded,
    /// It was authentic and not to be let in, see the words.
    Unfit,
}

impl Reason {
    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoTls => "no_tls",
            Self::NoCertificate => "no_certificate",
            Self::OtherSecret => "other_secret",
            Self::OtherCluster => "other_cluster",
            Self::ForeignCertificate => "foreign_certificate",
            Self::Expired => "expired_certificate",
            Self::BadCertificate => "bad_certificate",
            Self::DistrustsUs => "distrusts_us",
            Self::Impostor => "impostor",
            Self::Unbound => "unbound",
            Self::TooLong => "too_long",
            Self::Late => "late",
            Self::BrokenOff => "broken_off",
            Self::NoHello => "no_hello",
            Self::Crowded => "crowded",
            Self::Unfit => "unfit",
        }
    }
}

/// Somebody is not believed: why, and in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Distrust {
    /// Why.
    pub reason: Reason,
    /// Why, in words.
    pub words: String,
}

impl Distrust {
    /// For this reason, in these words.
    pub fn new(reason: Reason, words: impl Into<String>) -> Self {
        Self {
            reason,
            words: words.into(),
        }
    }
}

/// Who a certificate that is not of our authority says it is for, so that people learn which of the mistakes was made.
/// Nothing else is made of it: anybody can write anything into a certificate of their own.
pub fn stranger(claims: Option<&Holder>, cluster: &str) -> Distrust {
    match claims {
        Some(holder) if holder.cluster == cluster => Distrust::new(
            Reason::OtherSecret,
            format!(
                "its certificate is for cluster {cluster:?} and made with another secret or authority: give every node the same"
            ),
        ),
        Some(holder) => other_cluster(&holder.cluster, cluster),
        None => Distrust::new(
            Reason::ForeignCertificate,
            "its certificate names no node of a troupe, and is of an authority that this node does not know",
        ),
    }
}

/// It belongs elsewhere.
pub fn other_cluster(theirs: &str, ours: &str) -> Distrust {
    let words = format!("its certificate is for cluster {theirs:?}, this node belongs to {ours:?}");
    Distrust::new(Reason::OtherCluster, words)
}

/// What TLS has shown of the other side of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Whom its certificate names.
    pub holder: Holder,
    /// Whom ours named when this connection was made.
    pub own: Holder,
    /// What only this session has, for the dialler's greeting and for the acceptor's.
    pub bindings: [[u8; BINDING]; 2],
}

/// Who said a greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that dialled.
    Dialler,
    /// The one that was dialled.
    Acceptor,
}

impl Proof {
    /// What a greeting of this side carries in this session.
    pub fn binding(&self, side: Side) -> Vec<u8> {
        self.bound(side).to_vec()
    }

    fn bound(&self, side: Side) -> &[u8; BINDING] {
        match side {
            Side::Dialler => &self.bindings[0],
            Side::Acceptor => &self.bindings[1],
        }
    }

    /// Whether a greeting was said by the holder of the certificate, in this session. `incarnation` is `None` for a greeting
    /// that claims none, as that of a dial outside of any session does.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn vouches(
        &self,
        side: Side,
        id: NodeId,
        incarnation: Option<Incarnation>,
        name: &str,
        binding: &[u8],
    ) -> Result<(), Distrust> {
        if binding != self.bound(side) {
            let words = "its greeting was not made for this session: replayed or relayed";
            return Err(Distrust::new(Reason::Unbound, words));
        }
        let fits = match &self.holder.subject {
            Subject::Life(named, life) => *named == id && incarnation.is_none_or(|i| i == *life),
            Subject::Name(named) => named == name,
            Subject::Any => true,
        };
        if fits {
            return Ok(());
        }
        let life = incarnation.map_or(String::new(), |i| format!(" in incarnation {}", i.0));
        let words = format!(
            "it says that it is {name:?}, id {id}{life}, and its certificate is for {}",
            self.holder
        );
        Err(Distrust::new(Reason::Impostor, words))
    }

    /// Whether our own certificate still named another life than the one that we would now speak for: this connection is
    /// of no use for a session, and the next one will be.
    pub fn is_outlived(&self, now: Incarnation) -> bool {
        matches!(self.own.subject, Subject::Life(_, named) if named != now)
    }
}

/// How often callers and called were refused, by reason, for as long as the process lives. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<BTreeMap<Reason, u64>>>);

impl Refusals {
    /// One more; answers how many there are of this reason.
    pub fn count(&self, reason: Reason) -> u64 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(reason).or_default();
        *count += 1;
        *count
    }

    /// All that were counted.
    pub fn all(&self) -> BTreeMap<Reason, u64> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proof(subject: Subject) -> Proof {
        let holder = |subject| Holder {
            cluster: "demo".to_owned(),
            subject,
        };
        Proof {
            holder: holder(subject),
            own: holder(Subject::Life(NodeId(1), Incarnation(3))),
            bindings: [[7; BINDING], [8; BINDING]],
        }
    }

    #[test]
    fn what_a_certificate_names_is_read_as_it_was_written() {
        for subject in [
            Subject::Life(NodeId(7), Incarnation(3)),
            Subject::Name("node-a".to_owned()),
            Subject::Any,
        ] {
            let holder = proof(subject).holder;
            assert_eq!(Holder::parse(&holder.to_string()), Some(holder));
        }
        for other in [
            "",
            "https://demo",
            "troupe://",
            "troupe://a b",
            "troupe://demo/",
            "troupe://demo/node/7",
            "troupe://demo/node/x/1",
            "troupe://demo/name/a/b",
            "troupe://demo/name/",
            "troupe://demo/rank/a",
        ] {
            assert_eq!(Holder::parse(other), None, "{other}");
        }
    }

    /// Row by row: whom the certificate names, who says hello, and whether that is believed.
    #[test]
    fn a_certificate_vouches_for_whom_it_names_and_for_nobody_else() {
        let life = Subject::Life(NodeId(7), Incarnation(3));
        let named = Subject::Name("node-a".to_owned());
        let rows: &[(&Subject, u128, Option<i64>, &str, bool)] = &[
            (&life, 7, Some(3), "any-name", true),
            (&life, 7, None, "any-name", true),
            (&life, 8, Some(3), "any-name", false),
            (&life, 8, None, "any-name", false),
            (&life, 7, Some(4), "any-name", false),
            (&named, 9, Some(1), "node-a", true),
            (&named, 9, Some(1), "node-b", false),
            (&Subject::Any, 9, Some(1), "node-b", true),
        ];
        for (subject, id, incarnation, name, believed) in rows {
            let told = proof((*subject).clone()).vouches(
                Side::Dialler,
                NodeId(*id),
                incarnation.map(Incarnation),
                name,
                &[7; BINDING],
            );
            assert_eq!(told.is_ok(), *believed, "{subject:?} {id} {name}: {told:?}");
            if let Err(distrust) = told {
                assert_eq!(distrust.reason, Reason::Impostor);
                assert!(distrust.words.contains("troupe://demo/"), "{distrust}");
            }
        }
    }

    #[test]
    fn a_greeting_of_another_session_or_of_the_other_side_is_refused() {
        let proof = proof(Subject::Any);
        for said in [&[][..], &[8; BINDING], &[7; BINDING - 1]] {
            let told = proof.vouches(Side::Dialler, NodeId(1), None, "a", said);
            assert_eq!(told.unwrap_err().reason, Reason::Unbound, "{said:?}");
        }
    }

    #[test]
    fn a_certificate_of_a_life_before_is_of_no_use_for_a_session() {
        let proof = proof(Subject::Any);
        assert!(!proof.is_outlived(Incarnation(3)));
        assert!(proof.is_outlived(Incarnation(4)));
    }

    #[test]
    fn whoever_is_of_another_authority_is_told_which_mistake_was_made() {
        let claims = |cluster: &str| Holder {
            cluster: cluster.to_owned(),
            subject: Subject::Any,
        };
        let reason = |claims: Option<&Holder>| stranger(claims, "demo").reason;
        assert_eq!(reason(Some(&claims("demo"))), Reason::OtherSecret);
        assert_eq!(reason(Some(&claims("other"))), Reason::OtherCluster);
        assert_eq!(reason(None), Reason::ForeignCertificate);
    }

    proptest! {
        #[test]
        fn any_text_can_be_looked_at(text in ".{0,80}") {
            Holder::parse(&text);
            Holder::parse(&format!("{SCHEME}{text}"));
        }
    }
}
