//! Waiting longer after each failure, and not all devices at the same moment.
//!
//! The jitter needs no cryptography, only that two devices differ: [`Jitter`] is SplitMix64 (Steele, Lea and Flood,
//! OOPSLA 2014), eight bytes of state, seeded by whoever owns a source of randomness.

use core::time::Duration;

/// A small seeded generator for jitter; not for secrets or query ids.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// The same seed gives the same sequence; take another seed on each device.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// `base` stretched by a random factor from 1 to 1.5 (`ACK_RANDOM_FACTOR` of RFC 7252, section 4.8).
    pub fn stretch(&mut self, base: Duration) -> Duration {
        let share = (self.next() >> 32) as u32;
        let nanos = base.as_nanos().min(u128::from(u64::MAX)) as u64;
        let extra = (u128::from(nanos / 2) * u128::from(share)) >> 32;
        base.saturating_add(Duration::from_nanos(extra as u64))
    }
}

/// `first` doubled `doublings` times, at most `longest`.
pub fn doubled(first: Duration, doublings: u32, longest: Duration) -> Duration {
    first.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX)).min(longest)
}

/// The waits between attempts to reach something that is away.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
    jitter: Jitter,
}

impl Backoff {
    /// Waits `first` after the first failure, twice as long after each further one, at most `longest`; each wait is
    /// then stretched by the jitter.
    pub const fn new(first: Duration, longest: Duration, jitter: Jitter) -> Self {
        Self { first, longest, failures: 0, jitter }
    }

    /// How long to wait after one more failure.
    pub fn after_failure(&mut self) -> Duration {
        let wait = doubled(self.first, self.failures, self.longest);
        self.failures = self.failures.saturating_add(1);
        self.jitter.stretch(wait)
    }

    /// Begins anew, after a success.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn stretching_adds_at_most_half(seed in any::<u64>(), nanos in any::<u64>()) {
            let base = Duration::from_nanos(nanos);
            let stretched = Jitter::new(seed).stretch(base);
            prop_assert!(stretched >= base && stretched <= base + base / 2);
        }
    }

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_success() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, 8 * second, Jitter::new(7));
        for expected in [1, 2, 4, 8, 8, 8] {
            let wait = backoff.after_failure();
            assert!(wait >= expected * second && wait <= expected * second * 3 / 2, "{expected}: {wait:?}");
        }
        backoff.reset();
        assert!(backoff.after_failure() <= second * 3 / 2);
    }

    #[test]
    fn extremes_do_not_overflow() {
        assert_eq!(doubled(Duration::MAX, u32::MAX, Duration::MAX), Duration::MAX);
        let mut jitter = Jitter::new(0);
        assert_eq!(jitter.stretch(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn two_devices_wait_differently() {
        let wait = |seed| Jitter::new(seed).stretch(Duration::from_secs(10));
        assert_ne!(wait(1), wait(2));
        assert_eq!(wait(1), wait(1));
    }
}
