//! Takes what production code logs on this thread: a logger that hands every event with its values to a sink.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Once;

/// Takes the event's name and its values.
pub type Sink = Box<dyn FnMut(String, BTreeMap<String, String>)>;

thread_local! {
    static SINK: RefCell<Option<Sink>> = const { RefCell::new(None) };
}

struct Capture;

/// From now on events logged on this thread go to `sink`; `None` ends that. Lines without an event name are not kept.
pub fn capture(sink: Option<Sink>) {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // Another logger means another test binary's choice: then nothing is captured, and every check fails loudly.
        if log::set_logger(&Capture).is_ok() {
            log::set_max_level(log::LevelFilter::Debug);
        }
    });
    SINK.set(sink);
}

impl log::Log for Capture {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut values = Values::default();
        if record.key_values().visit(&mut values).is_err() {
            return;
        }
        let Some(event) = values.0.remove("event") else {
            return;
        };
        SINK.with_borrow_mut(|sink| {
            if let Some(sink) = sink {
                sink(event, values.0);
            }
        });
    }

    fn flush(&self) {}
}

#[derive(Default)]
struct Values(BTreeMap<String, String>);

impl<'kvs> log::kv::VisitSource<'kvs> for Values {
    fn visit_pair(
        &mut self,
        key: log::kv::Key<'kvs>,
        value: log::kv::Value<'kvs>,
    ) -> Result<(), log::kv::Error> {
        let mut text = String::new();
        write!(text, "{value}")?;
        self.0.insert(key.to_string(), text);
        Ok(())
    }
}
