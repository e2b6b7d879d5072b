//! Catching a panic with its place: what the guard needs of the standard library's panic machinery.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::{Arc, Once};

/// A panic that was caught.
#[derive(Clone, Debug)]
pub(super) struct Caught {
    /// Message and place.
    pub(super) message: String,
    /// The calls that led there, when the hook is installed. Names are looked up when it is first shown, not here: taking it costs
    /// microseconds, the names a fifth of a second.
    pub(super) trace: Option<Arc<Backtrace>>,
}

thread_local! {
    /// The panic this thread is in, from the hook to whoever catches it.
    static LAST_PANIC: RefCell<Option<Caught>> = const { RefCell::new(None) };
    /// Whether a guard is going to catch, so that the hook stays silent: the supervisor logs it, once.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Makes panics of supervised actors carry file and line, and not print by themselves: the supervisor logs them once.
///
/// All other panics go on to the hook that was there before. To be called once at start; more often changes nothing.
/// Without it everything works, but a failure is its message alone and the standard hook prints it a second time.
pub fn install_panic_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                return previous(info);
            }
            let caught = Caught {
                message: with_place(info),
                trace: Some(Arc::new(Backtrace::force_capture())),
            };
            LAST_PANIC.with_borrow_mut(|last| *last = Some(caught));
        }));
    });
}

fn with_place(info: &PanicHookInfo<'_>) -> String {
    let message = message_of(info.payload());
    match info.location() {
        Some(place) => format!("{message}, at {}:{}", place.file(), place.line()),
        None => message,
    }
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    if let Some(message) = payload.downcast_ref::<&str>() {
        (*message).to_owned()
    } else if let Some(message) = payload.downcast_ref::<String>() {
        message.clone()
    } else {
        "a value that is no text".to_owned()
    }
}

/// Runs `f`; a panic becomes its message and its trace.
///
/// Whatever `f` touched must be thrown away after a panic; that is what makes asserting unwind safety honest.
pub(super) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, Caught> {
    let outer = GUARDED.replace(true);
    LAST_PANIC.with_borrow_mut(|last| *last = None);
    let outcome = panic::catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(outer);
    outcome.map_err(|payload| {
        let caught = LAST_PANIC
            .with_borrow_mut(Option::take)
            .unwrap_or_else(|| Caught {
                message: message_of(&*payload),
                trace: None,
            });
        // A payload may panic in its own drop; a leaked one cannot.
        std::mem::forget(payload);
        caught
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caught_panic_names_its_message_and_place() {
        install_panic_hook();
        install_panic_hook();
        let Caught {
            message: caught,
            trace,
        } = guarded(|| panic!("no {}", "luck")).unwrap_err();
        assert!(trace.is_some_and(|trace| trace.to_string().contains("panics::")));
        assert!(
            caught.starts_with("no luck, at ") && caught.contains("panics.rs:"),
            "{caught}"
        );
        let caught = guarded(|| panic::panic_any(7)).unwrap_err().message;
        assert!(
            caught.starts_with("a value that is no text, at "),
            "{caught}"
        );
        assert_eq!(guarded(|| 7).unwrap(), 7);
    }
}
