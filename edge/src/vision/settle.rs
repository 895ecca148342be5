//! When a camera's automatic exposure has found its way.
//!
//! A camera that was just started gives dark or glaring pictures until its exposure has adapted. How long that takes it
//! does not tell; that the brightness stays as it is, tells it.

use core::time::Duration;

/// Levels by which a steady picture may still differ from the one before.
const STEADY_LEVELS: u8 = 2;

/// As many steady pictures in a row are enough.
const STEADY_PICTURES: u8 = 3;

/// The most pictures that are passed over: a second at the rate of most cameras.
pub const PICTURES_MAX: u8 = 30;

/// The longest that it may take.
pub const TIME_MAX: Duration = Duration::from_secs(2);

/// Passes pictures over until their brightness is steady.
#[derive(Debug, Clone, Default)]
pub struct Settle {
    begun: Option<Duration>,
    last: Option<u8>,
    steady: u8,
    seen: u8,
}

impl Settle {
    /// Whether the picture of this mean level, that came at `now`, is the first good one; not asked again after that.
    pub fn is_settled(&mut self, now: Duration, mean: u8) -> bool {
        let begun = *self.begun.get_or_insert(now);
        let is_steady = self.last.is_some_and(|last| last.abs_diff(mean) <= STEADY_LEVELS);
        self.steady = if is_steady { self.steady.saturating_add(1) } else { 0 };
        self.last = Some(mean);
        self.seen = self.seen.saturating_add(1);
        self.steady >= STEADY_PICTURES || self.seen > PICTURES_MAX || now.saturating_sub(begun) >= TIME_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// The place of the first good picture, at 30 pictures a second.
    fn first_good(levels: impl IntoIterator<Item = u8>) -> Option<usize> {
        let mut settle = Settle::default();
        let at = |place: usize| Duration::from_millis(33) * place as u32;
        levels.into_iter().enumerate().position(|(place, level)| settle.is_settled(at(place), level))
    }

    #[test]
    fn a_steady_camera_costs_three_pictures_and_a_rising_one_waits() {
        assert_eq!(first_good([100; 9]), Some(3));
        assert_eq!(first_good([0, 10, 40, 80, 110, 112, 111, 112, 112]), Some(7));
    }

    proptest! {
        #[test]
        fn it_ends_whatever_the_camera_shows(levels in proptest::collection::vec(any::<u8>(), 40..50)) {
            prop_assert!(first_good(levels).unwrap() <= usize::from(PICTURES_MAX));
        }
    }

    #[test]
    fn a_slow_camera_is_waited_for_two_seconds() {
        let mut settle = Settle::default();
        let settled: Vec<bool> =
            (0..4).map(|second| settle.is_settled(Duration::from_secs(second), second as u8 * 50)).collect();
        assert_eq!(settled, [false, false, true, true]);
    }
}
