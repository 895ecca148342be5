//! How often a device may do something that costs: wake, take a photo, send.
//!
//! A battery or a link that is paid by the megabyte allows so much in a time, whatever happens before the camera. A
//! [`Duty`] is a token bucket, kept as one moment: when the next token would come if all had been spent evenly (the
//! cell rate algorithm of ATM). It has no time of its own, allocates nothing and never sleeps: [`Duty::next`] says
//! when, and whoever asks waits.

use core::time::Duration;

/// At most so many in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duty {
    /// The time that one costs; zero: as many as one likes.
    pause: Duration,
    /// How far ahead of its time one may be: room for a burst.
    ahead: Duration,
    /// When one would be on time.
    due: Duration,
}

impl Duty {
    /// As often as one likes.
    pub const UNLIMITED: Self = Self::every(Duration::ZERO);

    /// One, and then none for `pause`.
    pub const fn every(pause: Duration) -> Self {
        Self { pause, ahead: Duration::ZERO, due: Duration::ZERO }
    }

    /// At most `count` in any minute, evenly; none is as many as one likes.
    pub const fn per_minute(count: u32) -> Self {
        match Duration::from_mins(1).checked_div(count) {
            // A nanosecond more, since division rounds down and a minute must not hold one more.
            Some(pause) => Self::every(pause.saturating_add(Duration::from_nanos(1))),
            None => Self::UNLIMITED,
        }
    }

    /// Up to `count` at once after a rest; in any time that many more than the pause alone would allow, less one.
    #[must_use]
    pub const fn with_burst(mut self, count: u32) -> Self {
        self.ahead = self.pause.saturating_mul(count.saturating_sub(1));
        self
    }

    /// When the next may be; a moment that is past: now.
    pub const fn next(&self) -> Duration {
        self.due.saturating_sub(self.ahead)
    }

    /// Whether one may be now.
    pub fn allows(&self, now: Duration) -> bool {
        now >= self.next()
    }

    /// One is, now.
    pub fn spend(&mut self, now: Duration) {
        self.due = self.due.max(now).saturating_add(self.pause);
    }
}

impl Default for Duty {
    fn default() -> Self {
        Self::UNLIMITED
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn a_pause_is_kept_and_a_rest_does_not_add_up() {
        let second = Duration::from_secs(1);
        let mut duty = Duty::every(10 * second);
        assert!(duty.allows(Duration::ZERO));
        duty.spend(5 * second);
        assert!(!duty.allows(14 * second) && duty.next() == 15 * second && duty.allows(15 * second));
        duty.spend(100 * second);
        assert!(!duty.allows(109 * second), "the rest before is spent");
    }

    #[test]
    fn a_burst_is_allowed_once_and_earned_again() {
        let second = Duration::from_secs(1);
        let mut duty = Duty::every(10 * second).with_burst(3);
        let mut at_once = |now| {
            let mut count = 0;
            while duty.allows(now) {
                duty.spend(now);
                count += 1;
            }
            count
        };
        assert_eq!(at_once(second), 3);
        assert_eq!((at_once(10 * second), at_once(11 * second), at_once(31 * second)), (0, 1, 2));
        assert_eq!(at_once(1000 * second), 3);
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        for mut duty in [Duty::UNLIMITED, Duty::per_minute(0), Duty::every(Duration::ZERO).with_burst(9)] {
            for _ in 0..1000 {
                assert!(duty.allows(Duration::ZERO));
                duty.spend(Duration::ZERO);
            }
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut duty = Duty::every(Duration::MAX).with_burst(u32::MAX);
        duty.spend(Duration::MAX);
        assert_eq!((duty.next(), duty.allows(Duration::ZERO)), (Duration::ZERO, true));
        let mut duty = Duty::every(Duration::MAX);
        duty.spend(Duration::MAX);
        assert_eq!(duty.next(), Duration::MAX);
    }

    proptest! {
        #[test]
        fn no_minute_has_more_than_allowed(count in 1..200_u32, burst in 1..5_u32, asks in proptest::collection::vec(0..3000_u64, 1..400)) {
            let mut duty = Duty::per_minute(count).with_burst(burst);
            let (mut now, mut done) = (Duration::ZERO, Vec::new());
            for wait in asks {
                now += Duration::from_millis(wait);
                if duty.allows(now) {
                    duty.spend(now);
                    done.push(now);
                }
                prop_assert!(duty.next() <= now + MINUTE + Duration::from_nanos(1), "nobody waits for longer");
            }
            for (place, start) in done.iter().enumerate() {
                let within = done[place..].iter().take_while(|at| **at < *start + MINUTE).count();
                prop_assert!(within <= (count + burst - 1) as usize, "{within} in a minute");
            }
        }
    }
}
