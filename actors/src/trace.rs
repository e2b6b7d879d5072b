//! ● W3C trace context (<https://www.w3.org/TR/trace-context/>), as far as it is carried: a task keeps what came with it in its `meta`,
//! its job is given it, and its trace id stands in every log line about it. Pure.
//!
//! Nothing here makes spans: whoever submits and whoever works do that, and this is what joins them.

use std::collections::BTreeMap;

/// The key in `meta`, and the name of the header.
pub const TRACEPARENT: &str = "traceparent";
/// What vendors add; carried as it is.
pub const TRACESTATE: &str = "tracestate";
/// Longest `tracestate` that is carried: what the standard asks for at the least.
const MAX_STATE: usize = 512;

/// The trace id in a `traceparent`; `None` when it is not one.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (version, id, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, len: usize| {
        text.len() == len
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let some = |text: &str| text.bytes().any(|b| b != b'0');
    let shaped = hex(version, 2) && hex(id, 32) && hex(parent, 16) && hex(flags, 2);
    // Version 00 has four parts; later ones may have more, and ff is none.
    let complete = version != "ff" && (version != "00" || parts.next().is_none());
    (shaped && complete && some(id) && some(parent)).then_some(id)
}

/// The trace id of a task, from its `meta`.
pub fn of(meta: &BTreeMap<String, String>) -> Option<&str> {
    trace_id(meta.get(TRACEPARENT)?)
}

/// Puts the context of a request into the `meta` of a task that has none of its own. One that is malformed is ignored, as the
/// standard says.
pub fn adopt(meta: &mut BTreeMap<String, String>, parent: Option<&str>, state: Option<&str>) {
    let Some(parent) = parent.map(str::trim).filter(|p| trace_id(p).is_some()) else {
        return;
    };
    if meta.contains_key(TRACEPARENT) {
        return;
    }
    meta.insert(TRACEPARENT.to_owned(), parent.to_owned());
    if let Some(state) = state.filter(|s| !s.is_empty() && s.len() <= MAX_STATE) {
        meta.insert(TRACESTATE.to_owned(), state.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn only_what_the_standard_calls_one_has_a_trace_id() {
        assert_eq!(trace_id(GOOD), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        let later = format!("01{}-more", &GOOD[2..]);
        assert!(trace_id(&later).is_some());
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert_eq!(trace_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_task_keeps_its_own_context_and_takes_the_requests_otherwise() {
        let mut meta = BTreeMap::new();
        adopt(&mut meta, Some("rubbish"), None);
        assert!(meta.is_empty());
        adopt(&mut meta, Some(GOOD), Some("vendor=1"));
        assert_eq!(of(&meta), trace_id(GOOD));
        assert_eq!(meta[TRACESTATE], "vendor=1");
        let other = GOOD.replace("4bf9", "5bf9");
        adopt(&mut meta, Some(&other), None);
        assert_eq!(of(&meta), trace_id(GOOD));
    }
}
