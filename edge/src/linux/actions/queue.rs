//! Outcomes on their way to one worker: bounded, and the oldest go for new ones.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Outcomes that wait, at most.
pub(super) const ITEMS_MAX: usize = 1024;

/// What they may take together, in bytes.
const BYTES_MAX: usize = 2 << 20;

/// An outcome as it is told.
#[derive(Debug)]
pub(super) struct Told {
    /// The query's id: whoever hears of it twice knows by this.
    pub(super) key: String,
    /// A line of `--json`.
    pub(super) json: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Arc<Told>>,
    bytes: usize,
    /// Since the worker took one last.
    dropped: u64,
    /// The worker has one in hand.
    is_busy: bool,
    is_closed: bool,
    is_abandoned: bool,
}

/// The queue; clones are the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Told when the worker has nothing to do.
    on_idle: OnceLock<OnIdle>,
}

/// Hears that a worker has nothing to do.
pub(super) type OnIdle = Box<dyn Fn() + Send + Sync>;

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never waits; drops the oldest where there is no room.
    pub(super) fn push(&self, told: Arc<Told>) {
        let mut state = self.state();
        state.bytes += told.json.len();
        state.items.push_back(told);
        while state.items.len() > ITEMS_MAX || (state.bytes > BYTES_MAX && state.items.len() > 1) {
            if let Some(oldest) = state.items.pop_front() {
                state.bytes -= oldest.json.len();
                state.dropped += 1;
            }
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// The next one, and how many were dropped before it; `None` at the end. What was taken before counts as done.
    pub(super) fn next(&self) -> Option<(Arc<Told>, u64)> {
        let mut state = self.state();
        state.is_busy = false;
        if state.items.is_empty()
            && let Some(told) = self.0.on_idle.get()
        {
            drop(state);
            told();
            state = self.state();
        }
        loop {
            if let Some(told) = state.items.pop_front() {
                state.bytes -= told.json.len();
                state.is_busy = true;
                return Some((told, std::mem::take(&mut state.dropped)));
            }
            if state.is_closed {
                self.0.changed.notify_all();
                return None;
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Calls `told` each time that the worker has nothing to do; the first to say so is the one.
    pub(super) fn on_idle(&self, told: OnIdle) {
        let _ = self.0.on_idle.set(told);
    }

    /// Whether something waits, or is in hand.
    pub(super) fn is_busy(&self) -> bool {
        let state = self.state();
        state.is_busy || !state.items.is_empty()
    }

    pub(super) fn is_behind(&self) -> bool {
        let state = self.state();
        state.items.len() >= ITEMS_MAX / 2 || state.bytes >= BYTES_MAX / 2
    }

    /// Nothing more comes.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.0.changed.notify_all();
    }

    /// Nothing more is to be done. Returns how many are not.
    pub(super) fn abandon(&self) -> usize {
        let mut state = self.state();
        let left = state.items.len() + usize::from(state.is_busy);
        state.items.clear();
        (state.bytes, state.is_closed, state.is_abandoned) = (0, true, true);
        drop(state);
        self.0.changed.notify_all();
        left
    }

    /// Whether the worker is to leave what it has in hand.
    pub(super) fn is_abandoned(&self) -> bool {
        self.state().is_abandoned
    }

    /// Waits until the worker has done everything, at most so long; whether it has.
    pub(super) fn wait_done(&self, wait: Duration) -> bool {
        let give_up = Instant::now() + wait;
        let mut state = self.state();
        while state.is_busy || !state.items.is_empty() {
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits so long, or until it is abandoned; whether it is not.
    pub(super) fn rest(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        let mut state = self.state();
        while !state.is_abandoned {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(number: usize, bytes: usize) -> Arc<Told> {
        Arc::new(Told { key: number.to_string(), json: vec![b'x'; bytes] })
    }

    fn next(queue: &Queue) -> Option<(String, u64)> {
        queue.next().map(|(told, dropped)| (told.key.clone(), dropped))
    }

    #[test]
    fn the_oldest_go_for_new_ones_and_are_counted_once() {
        let queue = Queue::default();
        for number in 0..ITEMS_MAX + 3 {
            queue.push(told(number, 1));
        }
        assert!(queue.is_behind());
        assert_eq!(next(&queue), Some(("3".to_owned(), 3)));
        assert_eq!(next(&queue), Some(("4".to_owned(), 0)));
    }

    #[test]
    fn bytes_are_bounded_too_and_the_newest_always_has_room() {
        let queue = Queue::default();
        for number in 0..3 {
            queue.push(told(number, BYTES_MAX / 2));
        }
        queue.push(told(3, BYTES_MAX + 1));
        assert_eq!(next(&queue), Some(("3".to_owned(), 3)));
        assert_eq!(queue.state().bytes, 0);
    }

    #[test]
    fn a_queue_is_done_when_what_was_taken_is() {
        let queue = Queue::default();
        queue.push(told(1, 1));
        assert!(next(&queue).is_some());
        queue.close();
        assert!(!queue.wait_done(Duration::ZERO), "one is in hand");
        assert_eq!(next(&queue), None);
        assert!(queue.wait_done(Duration::ZERO));
        queue.push(told(2, 1));
        assert_eq!((queue.abandon(), queue.rest(Duration::from_hours(1))), (1, false));
    }
}
