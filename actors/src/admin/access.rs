//! ● Who may ask for what, told what a request says of itself.
//!
//! | asked | without tokens (loopback) | with tokens |
//! |---|---|---|
//! | `/livez`, `/readyz` | answered | answered |
//! | under a host name that is not ours (DNS rebinding) | `foreign_host` | `foreign_host` |
//! | a change, from a page of another site | `cross_origin` | `cross_origin` |
//! | the dashboard's own files | answered | answered: they ask for the token |
//! | to read | answered | by a reader and an operator; else `no_token`, `wrong_token` |
//! | a change | done | by an operator; by a reader `read_only` |
//!
//! Addresses, `localhost` and the configured names are hosts of ours: a page that was rebound to our address still names its own.

use std::net::IpAddr;

use ring::hmac;

/// Shorter ones could be guessed.
const MIN_TOKEN: usize = 32;
/// Longer ones are no tokens.
const MAX_TOKEN: usize = 512;

/// Whoever has asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// A process of this machine; there are no tokens.
    Loopback,
    /// It showed the token for reading.
    Reader,
    /// It showed the operator's token.
    Operator,
    /// It needs no name: a probe, or the dashboard's files.
    Anybody,
}

impl Who {
    /// As it stands in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Anybody => "anybody",
        }
    }
}

/// Why something is no token; the operator's to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a token must be {MIN_TOKEN} to {MAX_TOKEN} visible ASCII characters on one line, such as `troupe keygen` makes"
)]
pub struct NoToken;

/// What is kept of a token: enough to recognise it, in a time that does not depend on what is shown.
#[derive(Clone)]
pub struct Token {
    key: hmac::Key,
    tag: hmac::Tag,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// From the text of a token file; white space around it is ignored.
    ///
    /// # Errors
    /// When it could be guessed, or would not fit into a header.
    pub fn parse(text: &str) -> Result<Self, NoToken> {
        let text = text.trim();
        let fits = (MIN_TOKEN..=MAX_TOKEN).contains(&text.len());
        if !fits || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(NoToken);
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"troupe admin token");
        let tag = hmac::sign(&key, text.as_bytes());
        Ok(Self { key, tag })
    }

    fn is(&self, shown: &[u8]) -> bool {
        hmac::verify(&self.key, shown, self.tag.as_ref()).is_ok()
    }
}

/// What a request says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked<'a> {
    pub(crate) path: &'a str,
    /// Whether its method changes nothing.
    pub(crate) safe: bool,
    pub(crate) host: Option<&'a str>,
    pub(crate) origin: Option<&'a str>,
    /// `Sec-Fetch-Site`.
    pub(crate) site: Option<&'a str>,
    /// `Authorization`.
    pub(crate) authorization: Option<&'a str>,
}

/// Why it is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "{0:?} is no name of this node: ask it by its address, or list the name in admin.hosts"
    )]
    ForeignHost(String),
    #[error("this request comes from a page of another site")]
    CrossSite,
    #[error(
        "this node asks for a token: `Authorization: Bearer …`; troupe reads it from --token-file or TROUPE_TOKEN_FILE"
    )]
    NoToken,
    #[error("this is no token of this node")]
    WrongToken,
    #[error("the token that was shown is for reading only")]
    ReadOnly,
}

impl Refusal {
    /// Stable, for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::ForeignHost(_) => "foreign_host",
            Self::CrossSite => "cross_origin",
            Self::NoToken => "no_token",
            Self::WrongToken => "wrong_token",
            Self::ReadOnly => "read_only",
        }
    }
}

/// Who is let in; by default whoever reaches the address, which is then loopback.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// May do everything.
    pub operator: Option<Token>,
    /// May read everything.
    pub reader: Option<Token>,
    /// Names, beside addresses and `localhost`, under which this node is asked.
    pub hosts: Vec<String>,
}

impl Access {
    pub(crate) fn judge(&self, asked: &Asked<'_>) -> Result<Who, Refusal> {
        if ["/livez", "/readyz"].contains(&asked.path) {
            return Ok(Who::Anybody);
        }
        match asked.host {
            Some(host) if !self.is_ours(host) => {
                return Err(Refusal::ForeignHost(shortened(host)));
            }
            _ if !asked.safe && !from_here(asked) => return Err(Refusal::CrossSite),
            _ => {}
        }
        if asked.safe && is_page(asked.path) {
            return Ok(Who::Anybody);
        }
        let who = self.recognise(asked.authorization)?;
        match who {
            Who::Reader if !asked.safe => Err(Refusal::ReadOnly),
            who => Ok(who),
        }
    }

    /// Whoever showed this; without tokens nobody is asked for one.
    fn recognise(&self, authorization: Option<&str>) -> Result<Who, Refusal> {
        if self.operator.is_none() && self.reader.is_none() {
            return Ok(Who::Loopback);
        }
        let shown = authorization.and_then(|text| text.split_once(' '));
        let shown = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let (_, shown) = shown.ok_or(Refusal::NoToken)?;
        let is = |token: &Option<Token>| {
            let shown = shown.trim().as_bytes();
            token.as_ref().is_some_and(|token| token.is(shown))
        };
        // Both are looked at, whichever it is.
        match (is(&self.operator), is(&self.reader)) {
            (true, _) => Ok(Who::Operator),
            (false, true) => Ok(Who::Reader),
            (false, false) => Err(Refusal::WrongToken),
        }
    }

    fn is_ours(&self, host: &str) -> bool {
        let name = without_port(host).trim_end_matches('.');
        let address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let known = |known: &String| known.eq_ignore_ascii_case(name);
        address || name.eq_ignore_ascii_case("localhost") || self.hosts.iter().any(known)
    }
}

/// The dashboard: the same for everybody, it shows nothing before it has asked. Its files are at the top: below, a name of
/// somebody's choice may end as theirs do.
fn is_page(path: &str) -> bool {
    let Some(file) = path.strip_prefix('/').filter(|file| !file.contains('/')) else {
        return false;
    };
    file.is_empty() || file == "openapi.json" || file.ends_with(".js") || file.ends_with(".css")
}

fn from_here(asked: &Asked<'_>) -> bool {
    let site = asked.site;
    if site.is_some_and(|site| !["same-origin", "none"].contains(&site)) {
        return false;
    }
    match (asked.origin, asked.host) {
        (None, _) => true,
        (Some(origin), Some(host)) => origin.split_once("://").is_some_and(|(_, o)| o == host),
        (Some(_), None) => false,
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn shortened(host: &str) -> String {
    host.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATOR: &str = "operator-operator-operator-operator";
    const READER: &str = "reader-reader-reader-reader-reader-";

    fn tokens() -> Access {
        Access {
            operator: Token::parse(OPERATOR).ok(),
            reader: Token::parse(&format!(" {READER}\n")).ok(),
            hosts: vec!["node-a".to_owned()],
        }
    }

    fn code(access: &Access, asked: Asked<'_>) -> &'static str {
        let judged = access.judge(&asked);
        judged.map_or_else(|refusal| refusal.code(), Who::as_str)
    }

    #[test]
    fn each_token_opens_what_it_is_for_and_nothing_else() {
        let (operator, reader) = (format!("Bearer {OPERATOR}"), format!("bearer {READER}"));
        let wrong = format!("Bearer {READER}x");
        let rows = [
            ("/v1/status", true, Some(&operator), "operator"),
            ("/v1/status", true, Some(&reader), "reader"),
            ("/v1/status", true, Some(&wrong), "wrong_token"),
            ("/v1/status", true, None, "no_token"),
            ("/metrics", true, None, "no_token"),
            ("/metrics", true, Some(&reader), "reader"),
            ("/v1/tasks", false, Some(&operator), "operator"),
            ("/v1/tasks", false, Some(&reader), "read_only"),
            ("/v1/tasks", false, None, "no_token"),
            ("/no/such/route", true, None, "no_token"),
            ("/v1/why/node/x.js", true, None, "no_token"),
            ("/app.js", true, None, "anybody"),
            ("/app.js", false, None, "no_token"),
            ("/", true, None, "anybody"),
            ("/livez", true, None, "anybody"),
            ("/readyz", true, None, "anybody"),
        ];
        for (path, safe, authorization, wanted) in rows {
            let asked = Asked {
                path,
                safe,
                authorization: authorization.map(String::as_str),
                ..Asked::default()
            };
            assert_eq!(code(&tokens(), asked), wanted, "{path} {authorization:?}");
        }
        let basic = Asked {
            path: "/v1/status",
            safe: true,
            authorization: Some("Basic b3A6b3A="),
            ..Asked::default()
        };
        assert_eq!(code(&tokens(), basic), "no_token");
        let anybody = Asked {
            path: "/v1/tasks",
            ..Asked::default()
        };
        assert_eq!(code(&Access::default(), anybody), "loopback");
    }

    #[test]
    fn a_name_that_is_not_ours_is_refused_and_an_address_is_not() {
        for (host, ours) in [
            ("127.0.0.1:22223", true),
            ("10.0.0.7", true),
            ("[::1]:22223", true),
            ("localhost:22223", true),
            ("LOCALHOST", true),
            ("node-a:22223", true),
            ("node-a.:22223", true),
            ("evil.example:22223", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("", false),
            ("?", false),
        ] {
            let asked = Asked {
                path: "/v1/status",
                safe: true,
                host: Some(host),
                ..Asked::default()
            };
            let access = Access {
                hosts: tokens().hosts,
                ..Access::default()
            };
            let wanted = if ours { "loopback" } else { "foreign_host" };
            assert_eq!(code(&access, asked), wanted, "{host:?}");
            let probe = Asked {
                path: "/livez",
                ..asked
            };
            assert_eq!(code(&access, probe), "anybody");
        }
    }

    #[test]
    fn a_page_of_another_site_may_change_nothing() {
        let host = Some("127.0.0.1:22223");
        for (origin, site, wanted) in [
            (None, None, "loopback"),
            (
                Some("http://127.0.0.1:22223"),
                Some("same-origin"),
                "loopback",
            ),
            (None, Some("none"), "loopback"),
            (Some("http://evil.example"), None, "cross_origin"),
            (Some("http://127.0.0.1:8080"), None, "cross_origin"),
            (Some("null"), None, "cross_origin"),
            (None, Some("cross-site"), "cross_origin"),
            (None, Some("same-site"), "cross_origin"),
        ] {
            let asked = Asked {
                path: "/v1/members/a/drain",
                host,
                origin,
                site,
                ..Asked::default()
            };
            assert_eq!(
                code(&Access::default(), asked),
                wanted,
                "{origin:?} {site:?}"
            );
        }
    }

    #[test]
    fn what_could_be_guessed_is_no_token() {
        for text in [
            "",
            "short",
            &"x".repeat(31),
            &"x".repeat(513),
            &"é".repeat(40),
            &"a b".repeat(20),
        ] {
            assert!(Token::parse(text).is_err(), "{text:?}");
        }
        assert!(Token::parse(&"5f".repeat(32)).is_ok());
    }
}
