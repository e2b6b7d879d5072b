//! Catching a panic with its place: what the guard needs of the standard library's panic machinery.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

thread_local! {
    /// Message and place of the panic this thread is in, from the hook to whoever catches it.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
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
            LAST_PANIC.with_borrow_mut(|last| *last = Some(with_place(info)));
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

/// Runs `f`; a panic becomes its message.
///
/// Whatever `f` touched must be thrown away after a panic; that is what makes asserting unwind safety honest.
pub(super) fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    let outer = GUARDED.replace(true);
    LAST_PANIC.with_borrow_mut(|last| *last = None);
    let outcome = panic::catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(outer);
    outcome.map_err(|payload| {
        let message = LAST_PANIC
            .with_borrow_mut(Option::take)
            .unwrap_or_else(|| message_of(&*payload));
        // A payload may panic in its own drop; a leaked one cannot.
        std::mem::forget(payload);
        message
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caught_panic_names_its_message_and_place() {
        install_panic_hook();
        install_panic_hook();
        let caught = guarded(|| panic!("no {}", "luck")).unwrap_err();
        assert!(
            caught.starts_with("no luck, at ") && caught.contains("panics.rs:"),
            "{caught}"
        );
        let caught = guarded(|| panic::panic_any(7)).unwrap_err();
        assert!(
            caught.starts_with("a value that is no text, at "),
            "{caught}"
        );
        assert_eq!(guarded(|| 7), Ok(7));
    }
}
