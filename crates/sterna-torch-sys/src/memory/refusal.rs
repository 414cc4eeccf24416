//! Where this thread is in its work, and the last allocation that there was no room for.

use std::{
    cell::RefCell,
    fmt::Write as _,
    marker::PhantomData,
    sync::{Mutex, PoisonError},
};

use super::{ByKind, CURRENT, MemoryKind};

/// An allocation that there was no room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The GPU; `None` is the host.
    pub device: Option<usize>,
    /// Bytes that were asked for.
    pub asked: u64,
    /// What they were to be for.
    pub kind: MemoryKind,
    /// What tensors held.
    pub live: ByKind,
    /// What the allocator had taken from the system beyond them, in blocks that wait for their next tensor, bytes.
    pub cached: u64,
    /// The parts of the work that were under way, the outermost first, such as `backward, block backward 3, post`; empty where
    /// nobody said ([`place`]).
    pub place: String,
}

impl Refusal {
    pub(super) fn new(device: Option<usize>, asked: u64, live: ByKind, cached: u64) -> Self {
        Self { device, asked, kind: CURRENT.get(), live, cached, place: place_text() }
    }
}

/// Says what part of its work this thread begins, until the result is dropped; `index` is its number, where there are several.
/// Places nest. They are read when an allocation fails.
#[must_use = "the place is left when this is dropped"]
pub fn place(name: &'static str, index: Option<usize>) -> Place {
    PLACES.with_borrow_mut(|places| places.push((name, index)));
    Place { _of_thread: PhantomData }
}

/// A part of a thread's work that is under way ([`place`]).
#[derive(Debug)]
pub struct Place {
    /// It belongs to the thread that made it.
    _of_thread: PhantomData<*const ()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        PLACES.with_borrow_mut(Vec::pop);
    }
}

/// The last allocation of this process that there was no room for, once.
pub fn take_refusal() -> Option<Refusal> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).take()
}

pub(super) fn note(refusal: Refusal) {
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
}

thread_local! {
    static PLACES: RefCell<Vec<(&'static str, Option<usize>)>> = const { RefCell::new(Vec::new()) };
}

static LAST: Mutex<Option<Refusal>> = Mutex::new(None);

fn place_text() -> String {
    PLACES.with_borrow(|places| {
        let mut text = String::new();
        for (name, index) in places {
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{comma}{name}");
            if let Some(index) = index {
                let _ = write!(text, " {index}");
            }
        }
        text
    })
}
