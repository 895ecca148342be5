//! How often each device may ask: a bucket of tokens a device, refilled at a steady rate.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use glimpse_protocol::DeviceId;

/// Seconds of silence that a burst makes up for.
const BURST_S: f64 = 4.0;

/// Devices that are kept in mind, at most: more than a broker of ours takes.
const DEVICES_MAX: usize = 65_536;

/// The rates of all devices.
#[derive(Default)]
pub(crate) struct RateLimits {
    buckets: HashMap<DeviceId, Bucket>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn refilled(self, per_second: f64, now: Instant) -> Self {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * per_second;
        Self { tokens: (self.tokens + gained).min(capacity(per_second)), at: now }
    }
}

fn capacity(per_second: f64) -> f64 {
    (per_second * BURST_S).max(1.0)
}

impl RateLimits {
    /// Counts a query of a device that may ask so many a second on average, and four seconds' worth at once; or says when it
    /// may ask again.
    pub(crate) fn admit(&mut self, device: &DeviceId, per_second: f64, now: Instant) -> Result<(), Duration> {
        let full = Bucket { tokens: capacity(per_second), at: now };
        let bucket = self.buckets.get(device).map_or(full, |bucket| bucket.refilled(per_second, now));
        if bucket.tokens < 1.0 {
            self.buckets.insert(device.clone(), bucket);
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / per_second));
        }
        if !self.buckets.contains_key(device) && self.buckets.len() >= DEVICES_MAX {
            self.forget_the_silent(per_second, now);
        }
        self.buckets.insert(device.clone(), Bucket { tokens: bucket.tokens - 1.0, ..bucket });
        Ok(())
    }

    /// A full bucket says no more than none. Where all are in use their devices begin anew: who invents so many names asks no
    /// more often by it than by inventing others.
    fn forget_the_silent(&mut self, per_second: f64, now: Instant) {
        self.buckets.retain(|_, bucket| bucket.refilled(per_second, now).tokens < capacity(per_second));
        if self.buckets.len() >= DEVICES_MAX {
            self.buckets.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_asks_too_often_is_told_when_to_ask_again() {
        let (device, other) = (DeviceId::new("a").unwrap(), DeviceId::new("b").unwrap());
        let mut limits = RateLimits::default();
        let start = Instant::now();
        assert_eq!((0..100).filter(|_| limits.admit(&device, 5.0, start).is_ok()).count(), 20);
        let wait = limits.admit(&device, 5.0, start).unwrap_err();
        assert!((0.19..0.21).contains(&wait.as_secs_f64()), "{wait:?}");
        assert!(limits.admit(&other, 5.0, start).is_ok(), "each has its own");
        assert!(limits.admit(&device, 5.0, start + wait).is_ok());
        assert!(limits.admit(&device, 5.0, start + wait).is_err());
        let rested = start + Duration::from_mins(1);
        assert_eq!((0..100).filter(|_| limits.admit(&device, 5.0, rested).is_ok()).count(), 20);
    }

    #[test]
    fn no_more_devices_are_kept_in_mind_than_the_bound() {
        let mut limits = RateLimits::default();
        let start = Instant::now();
        for number in 0..2 * DEVICES_MAX {
            let device = DeviceId::new(&format!("d{number}")).unwrap();
            assert!(limits.admit(&device, 0.01, start).is_ok());
        }
        assert!(limits.buckets.len() <= DEVICES_MAX);
    }
}
