//! Where templates are compiled and rendered: on a thread that may be given up.
//!
//! Fuel counts instructions, but one instruction can join texts of gigabytes or compare lists that hold each other a billion
//! times over, and what a template nests is dropped level by level. So the work runs on a thread of its own with room for
//! what its fuel can nest, and whoever waits for it watches the clock and the memory of the process. Past a limit the waiting
//! ends with an error. A thread cannot be stopped; it goes on until the process ends, which that error brings about.

use std::cell::RefCell;
use std::sync::mpsc::{RecvTimeoutError, SendError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::panics::{ReaderPanicked, catch_panic};

/// What a template may take.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Rendering a long conversation takes milliseconds.
    time: Duration,
    /// How much the process may grow meanwhile, in bytes. Other threads render at the same time, and none needs this.
    growth: u64,
}

/// The limits of every template.
pub(super) const LIMITS: Limits = Limits { time: Duration::from_secs(30), growth: 1 << 30 };

/// How often the process is looked at.
const INTERVAL: Duration = Duration::from_millis(20);
/// When it is looked at first.
const FIRST_INTERVAL: Duration = Duration::from_millis(1);

/// Stack of a thread that is kept, in bytes: enough for chats of some hundred kilobytes.
const KEPT_STACK: usize = 1 << 30;

/// Why a template was given up.
#[derive(Debug, thiserror::Error)]
pub enum Overrun {
    /// It takes too long.
    #[error("it runs for more than `{} s`", limit.as_secs())]
    Time {
        /// What it may take.
        limit: Duration,
    },
    /// It takes too much memory.
    #[error("it takes more than `{} MiB` of memory", limit_bytes >> 20)]
    Memory {
        /// What it may take.
        limit_bytes: u64,
    },
    /// The template engine failed.
    #[error(transparent)]
    Panicked(#[from] ReaderPanicked),
    /// The system gives no thread to run it on.
    #[error("cannot start a thread for it: {0}")]
    Thread(#[from] std::io::Error),
}

/// Runs `work` on a thread with a stack of `stack_bytes`, which take up memory only as far as they are used.
pub(super) fn run<T: Send + 'static>(
    stack_bytes: usize,
    limits: Limits,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::result::Result<T, Overrun> {
    only(run_each(stack_bytes, limits, vec![work], |work| work()))
}

/// The outcome of the one thing that was asked for.
pub(super) fn only<T>(mut outcomes: Vec<T>) -> T {
    outcomes.pop().expect("the first has an outcome")
}

/// Runs `work` on each of `inputs` in turn, all in one go on such a thread: to hand something to another thread and to wait for it takes
/// longer than rendering a short chat. Each has all of `limits`; what follows one that was given up is not run and has no outcome.
pub(super) fn run_each<I: Send + 'static, T: Send + 'static>(
    stack_bytes: usize,
    limits: Limits,
    inputs: Vec<I>,
    mut work: impl FnMut(I) -> T + Send + 'static,
) -> Vec<std::result::Result<T, Overrun>> {
    let outcomes = Arc::new(Mutex::new(Vec::with_capacity(inputs.len())));
    let (sender, is_done) = channel();
    let job = {
        let outcomes = Arc::clone(&outcomes);
        move || {
            for input in inputs {
                let outcome = catch_panic(|| work(input)).map_err(Overrun::from);
                lock(&outcomes).push(outcome);
            }
            // Nobody waits any longer if this fails.
            let _ = sender.send(());
        }
    };
    if let Err(error) = on_other_thread(stack_bytes, Box::new(job)) {
        return vec![Err(error.into())];
    }
    let mut num_done = 0;
    let mut start = Instant::now();
    let mut resident_at_start = None;
    let given_up = loop {
        // What is done at once costs no look at the process.
        let interval = if resident_at_start.is_none() { FIRST_INTERVAL } else { INTERVAL };
        match is_done.recv_timeout(interval) {
            Ok(()) => return std::mem::take(&mut lock(&outcomes)),
            Err(RecvTimeoutError::Disconnected) => {
                unreachable!("the thread sends before it ends, whether or not the work panics")
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let resident = resident_bytes();
        let num_done_now = lock(&outcomes).len();
        if num_done_now > num_done {
            (num_done, start, resident_at_start) = (num_done_now, Instant::now(), None);
        }
        let at_start = *resident_at_start.get_or_insert(resident);
        if start.elapsed() > limits.time {
            break Overrun::Time { limit: limits.time };
        }
        if resident.saturating_sub(at_start) > limits.growth {
            break Overrun::Memory { limit_bytes: limits.growth };
        }
    };
    // Its thread may be at work for a long time.
    KEPT.set(None);
    let mut outcomes = std::mem::take(&mut *lock(&outcomes));
    outcomes.push(Err(given_up));
    outcomes
}

fn lock<T>(outcomes: &Mutex<T>) -> MutexGuard<'_, T> {
    outcomes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a kept thread does.
type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    /// The thread that renders for this one: starting one takes longer than rendering a short chat.
    static KEPT: RefCell<Option<Sender<Job>>> = const { RefCell::new(None) };
}

fn on_other_thread(stack_bytes: usize, work: Job) -> std::io::Result<()> {
    let builder = thread::Builder::new().name("chat-template".to_owned());
    if stack_bytes > KEPT_STACK {
        builder.stack_size(stack_bytes).spawn(work)?;
        return Ok(());
    }
    KEPT.with_borrow_mut(|kept| {
        let work = match kept {
            Some(jobs) => match jobs.send(work) {
                Ok(()) => return Ok(()),
                Err(SendError(work)) => work,
            },
            None => work,
        };
        let (jobs, queue) = channel::<Job>();
        builder.stack_size(KEPT_STACK).spawn(move || queue.into_iter().for_each(|job| job()))?;
        // The thread waits for it.
        let _ = jobs.send(work);
        *kept = Some(jobs);
        Ok(())
    })
}

/// Memory of this process; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    const PAGE_BYTES: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * PAGE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Limits = Limits { time: Duration::from_millis(100), growth: 64 << 20 };

    #[test]
    fn work_past_a_limit_is_given_up() {
        assert_eq!(run(1 << 20, SMALL, || 7).unwrap(), 7);
        let slow = run(1 << 20, SMALL, || thread::sleep(Duration::from_secs(2)));
        assert!(matches!(slow, Err(Overrun::Time { .. })), "{slow:?}");
        let patient = Limits { time: Duration::from_mins(1), ..SMALL };
        let large = run(1 << 20, patient, || {
            let pages: Vec<u8> = vec![1; 256 << 20];
            thread::sleep(Duration::from_secs(2));
            pages.len()
        });
        assert!(matches!(large, Err(Overrun::Memory { .. })), "{large:?}");
    }

    #[test]
    fn each_has_the_limits_to_itself_and_none_follows_one_that_is_given_up() {
        let sleep = |millis| thread::sleep(Duration::from_millis(millis));
        let outcomes = run_each(1 << 20, SMALL, vec![50, 50, 50, 2000, 0], sleep);
        assert_eq!(outcomes.len(), 4);
        assert!(outcomes[..3].iter().all(Result::is_ok), "{outcomes:?}");
        assert!(matches!(outcomes[3], Err(Overrun::Time { .. })), "{outcomes:?}");
        let halves = run_each(1 << 20, LIMITS, vec![4, 3, 2], |n: usize| {
            assert!(n.is_multiple_of(2), "it is odd");
            n / 2
        });
        assert!(matches!(&halves[..], [Ok(2), Err(Overrun::Panicked(_)), Ok(1)]), "{halves:?}");
    }

    #[test]
    fn a_panic_is_an_error() {
        let outcome = run(1 << 20, LIMITS, || -> usize { panic!("a mistake of the engine") });
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("a mistake of the engine"), "{error}");
    }
}
