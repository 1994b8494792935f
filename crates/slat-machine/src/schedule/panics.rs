//! Panics of tasks: kept for the finding, with their places, instead of being printed.
//!
//! Only the hook that the whole process has learns where a panic happened. So one is set, once, that
//! keeps what the tasks of its thread say and passes everything else on to the hook before it.

use core::any::Any;
use core::cell::RefCell;
use std::panic;
use std::sync::Once;

use super::in_task;

thread_local! {
    static FIRST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on, panics of this thread's tasks are kept. What was kept before is forgotten.
pub(super) fn record() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !in_task() {
                return print(panic);
            }
            let text = panic.payload_as_str().unwrap_or("with no text");
            let place = panic.location().map(|place| format!(" at {place}"));
            let message = format!("{text}{}", place.unwrap_or_default());
            // The first is the cause; what panics while unwinding is its consequence.
            FIRST.with_borrow_mut(|first| {
                first.get_or_insert(message);
            });
        }));
    });
    FIRST.set(None);
}

/// What the task that ended with `panic` said first, and where.
pub(super) fn take_message(panic: &(dyn Any + Send)) -> String {
    FIRST.take().unwrap_or_else(|| text_of(panic))
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "with a value that is no text".to_owned())
}
