//! What waits to be sent while the server is away: a bounded queue that gives up its oldest entry for a new one,
//! and counts. A photo of now is worth more than a photo of an hour ago.

use heapless::Deque;

/// At most `N` entries, oldest first; `N` is at least 1, which the compiler checks.
#[derive(Debug, Clone, Default)]
pub struct Outbox<T, const N: usize> {
    entries: Deque<T, N>,
    dropped: u64,
}

impl<T, const N: usize> Outbox<T, N> {
    /// An empty outbox.
    pub const fn new() -> Self {
        Self { entries: Deque::new(), dropped: 0 }
    }

    /// Puts an entry last; returns the oldest one where there was no room for both.
    #[must_use = "a dropped entry needs an outcome too"]
    pub fn push(&mut self, entry: T) -> Option<T> {
        let oldest = if self.entries.is_full() { self.entries.pop_front() } else { None };
        // There is room now; `or` only keeps the entry from being lost silently should that ever be wrong.
        let dropped = oldest.or(self.entries.push_back(entry).err());
        self.dropped += u64::from(dropped.is_some());
        dropped
    }

    /// Takes the oldest entry.
    pub fn pop(&mut self) -> Option<T> {
        self.entries.pop_front()
    }

    /// The entries, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter()
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut()
    }

    /// Entries waiting.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries dropped since the beginning.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn drops_the_oldest_and_counts_it() {
        let mut outbox = Outbox::<u8, 2>::new();
        assert_eq!((outbox.push(1), outbox.push(2), outbox.push(3)), (None, None, Some(1)));
        assert_eq!((outbox.pop(), outbox.pop(), outbox.pop()), (Some(2), Some(3), None));
        assert_eq!(outbox.dropped(), 1);
    }

    proptest! {
        #[test]
        fn behaves_like_a_bounded_queue(pushes in proptest::collection::vec(any::<Option<u8>>(), 0..100)) {
            let (mut outbox, mut model) = (Outbox::<u8, 5>::new(), VecDeque::new());
            for push in pushes {
                if let Some(value) = push {
                    model.push_back(value);
                    let expected = if model.len() > 5 { model.pop_front() } else { None };
                    prop_assert_eq!(outbox.push(value), expected);
                } else {
                    prop_assert_eq!(outbox.pop(), model.pop_front());
                }
                prop_assert_eq!(outbox.len(), model.len());
            }
        }
    }
}
