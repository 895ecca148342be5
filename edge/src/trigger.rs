//! When a photo is taken: small state machines that are asked, and told what happened.
//!
//! A trigger holds no camera and waits for nothing. Whoever drives it asks what it wishes for, does that, and asks again. A
//! new kind of trigger is one more implementation of [`Trigger`]: a button's says [`Wish::Photo`] once it was pressed, and
//! else [`Wish::Wait`] for as long as a press may go unnoticed.

use core::time::Duration;

use crate::vision::{Grey, Motion};

/// What a trigger wants now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// A photo.
    Photo,
    /// To see what the camera sees; it is then told by [`Trigger::see`], and decides.
    Look,
    /// To be asked again after this, or earlier.
    Wait(Duration),
}

/// When a photo is taken. Times are of one clock, that never goes back.
pub trait Trigger {
    /// What it wants now.
    fn wish(&mut self, now: Duration) -> Wish;

    /// Shows it what it wished to see; whether that is to be the photo.
    fn see(&mut self, now: Duration, picture: &Grey<'_>) -> bool {
        let _ = (now, picture);
        false
    }

    /// A photo was taken, or given up for this time.
    fn taken(&mut self, now: Duration);
}

/// A photo whenever there can be one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Always;

impl Trigger for Always {
    fn wish(&mut self, _: Duration) -> Wish {
        Wish::Photo
    }

    fn taken(&mut self, _: Duration) {}
}

/// A photo at once, and one each time that an interval has passed. What could not be taken in time is left out: there are
/// never two in a row to catch up.
#[derive(Debug, Clone, Copy)]
pub struct Interval {
    every: Duration,
    due: Duration,
}

impl Interval {
    /// One photo `every` so often.
    pub const fn new(every: Duration) -> Self {
        Self { every, due: Duration::ZERO }
    }
}

impl Trigger for Interval {
    fn wish(&mut self, now: Duration) -> Wish {
        match self.due.checked_sub(now) {
            Some(left) if !left.is_zero() => Wish::Wait(left),
            _ => Wish::Photo,
        }
    }

    fn taken(&mut self, now: Duration) {
        // On the beat while it can be kept, and from now on where it cannot.
        let next = self.due.saturating_add(self.every);
        self.due = if next > now && self.due <= now && self.due > Duration::ZERO {
            next
        } else {
            now.saturating_add(self.every)
        };
    }
}

/// A photo when something begins to move, and further ones as long as it does.
#[derive(Debug, Clone, Default)]
pub struct OnMotion {
    motion: Motion,
    look_at: Duration,
    next_at: Duration,
}

impl OnMotion {
    /// How often it looks. Somebody who walks through a room is in it for longer.
    pub const LOOKS: Duration = Duration::from_millis(200);

    /// The least time between two photos.
    pub const PAUSE: Duration = Duration::from_secs(3);

    /// One that has seen nothing yet.
    pub const fn new() -> Self {
        Self { motion: Motion::new(), look_at: Duration::ZERO, next_at: Duration::ZERO }
    }
}

impl Trigger for OnMotion {
    fn wish(&mut self, now: Duration) -> Wish {
        match self.look_at.checked_sub(now) {
            Some(left) if !left.is_zero() => Wish::Wait(left),
            _ => Wish::Look,
        }
    }

    fn see(&mut self, now: Duration, picture: &Grey<'_>) -> bool {
        self.look_at = now.saturating_add(Self::LOOKS);
        let moves = self.motion.see(now, picture);
        moves && now >= self.next_at
    }

    fn taken(&mut self, now: Duration) {
        self.next_at = now.saturating_add(Self::PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn always_is_always() {
        Always.taken(SECOND);
        assert_eq!(Always.wish(SECOND), Wish::Photo);
    }

    #[test]
    fn an_interval_begins_at_once_and_keeps_its_beat() {
        let mut interval = Interval::new(10 * SECOND);
        assert_eq!(interval.wish(SECOND), Wish::Photo);
        assert_eq!(interval.wish(SECOND), Wish::Photo, "until it is taken");
        interval.taken(2 * SECOND);
        assert_eq!(interval.wish(5 * SECOND), Wish::Wait(7 * SECOND));
        assert_eq!(interval.wish(12 * SECOND), Wish::Photo);
        interval.taken(13 * SECOND);
        assert_eq!(interval.wish(13 * SECOND), Wish::Wait(9 * SECOND), "the beat is kept");
        interval.taken(60 * SECOND);
        assert_eq!(interval.wish(60 * SECOND), Wish::Wait(10 * SECOND), "what was missed is left out");
    }

    proptest! {
        #[test]
        fn photos_of_an_interval_are_never_more_than_its_time_allows(
            every in 100..20_000_u64,
            steps in proptest::collection::vec(1..30_000_u64, 1..100),
        ) {
            let mut interval = Interval::new(Duration::from_millis(every));
            let (mut now, mut taken) = (0, 0);
            for step in steps {
                now += step;
                if interval.wish(Duration::from_millis(now)) == Wish::Photo {
                    interval.taken(Duration::from_millis(now));
                    taken += 1;
                }
                prop_assert!(taken <= now / every + 1);
            }
        }
    }

    #[test]
    fn motion_gives_a_photo_at_once_and_then_one_a_pause() {
        let mut trigger = OnMotion::new();
        let mut photos = std::vec::Vec::new();
        // Still for two seconds, then something that stays for eight.
        for step in 0..50_u32 {
            let now = OnMotion::LOOKS * step;
            assert_eq!(trigger.wish(now), Wish::Look);
            let mut pixels = [50; 64 * 48];
            if step >= 10 {
                pixels.as_chunks_mut::<64>().0.iter_mut().take(20).for_each(|row| row[..20].fill(200));
            }
            if trigger.see(now, &Grey::new([64, 48], &pixels).unwrap()) {
                trigger.taken(now);
                photos.push(now.as_millis());
            }
            assert!(matches!(trigger.wish(now), Wish::Wait(_)));
        }
        assert_eq!(photos, [2000, 5000, 8000]);
    }
}
