//! Whether something moves: small grey pictures against a background that slowly becomes what is seen.
//!
//! The picture is averaged over a grid, so that noise and leaves count for little. What the whole picture has in common
//! (a cloud, a lamp, the camera's exposure) is taken off first, as the median of all differences. Motion begins when a
//! share of the fields differs, and ends at half of it, so that it does not flicker.

use core::time::Duration;

use super::Grey;

/// Fields of the grid, across and down.
const FIELDS: [usize; 2] = [32, 24];

/// Levels by which a field of something else differs. The noise of a camera, averaged over a field, is below 1.
const LEVELS: i32 = 12;

/// Fields that differ when motion begins: one in a hundred.
const BEGIN: usize = FIELDS[0] * FIELDS[1] / 100;

/// Motion ends with fewer.
const END: usize = BEGIN.div_ceil(2);

/// How slowly the background becomes what is seen.
const ADAPTS: Duration = Duration::from_secs(10);

/// How slowly while something moves, so that it does not fade while it is looked at.
const ADAPTS_MOVING: Duration = Duration::from_secs(30);

/// Levels of the background have this many bits behind the point.
const FRACTION: u32 = 16;

/// Tells motion from stillness.
#[derive(Debug, Clone)]
pub struct Motion {
    background: Option<[[i32; FIELDS[0]]; FIELDS[1]]>,
    seen_at: Duration,
    moves: bool,
}

impl Default for Motion {
    fn default() -> Self {
        Self::new()
    }
}

impl Motion {
    /// One that has seen nothing yet: its first picture is the background.
    pub const fn new() -> Self {
        Self { background: None, seen_at: Duration::ZERO, moves: false }
    }

    /// Whether something moves in the picture that was taken at `now`.
    pub fn see(&mut self, now: Duration, picture: &Grey<'_>) -> bool {
        let fields = picture.fields::<{ FIELDS[0] }, { FIELDS[1] }>();
        let Some(background) = &mut self.background else {
            self.background = Some(fields.map(|row| row.map(|level| i32::from(level) << FRACTION)));
            self.seen_at = now;
            return false;
        };
        let passed = now.saturating_sub(self.seen_at);
        self.seen_at = now;
        let seen = fields.as_flattened();
        let known = background.as_flattened_mut();
        let mut differences = [0_i32; FIELDS[0] * FIELDS[1]];
        for ((difference, level), known) in differences.iter_mut().zip(seen).zip(known.iter()) {
            *difference = (i32::from(*level) << FRACTION) - known;
        }
        let mut sorted = differences;
        let (_, common, _) = sorted.select_nth_unstable(FIELDS[0] * FIELDS[1] / 2);
        let common = *common;
        let other = differences.iter().filter(|difference| (*difference - common).abs() > LEVELS << FRACTION);
        self.moves = other.count() >= if self.moves { END } else { BEGIN };

        let slowness = if self.moves { ADAPTS_MOVING } else { ADAPTS };
        let [passed, slowness] = [passed.min(slowness), slowness].map(|time| time.as_millis() as i64);
        for (known, difference) in known.iter_mut().zip(differences) {
            *known += (i64::from(difference) * passed / slowness) as i32;
        }
        self.moves
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const SIZE: [usize; 2] = [96, 72];

    /// A textured wall with a bright square whose left edge is at `x`, where there is one.
    fn scene(x: Option<usize>, brighter: i32, noise: u64) -> Vec<u8> {
        (0..SIZE[0] * SIZE[1])
            .map(|place| {
                let (column, row) = (place % SIZE[0], place / SIZE[0]);
                let inside = x.is_some_and(|x| (x..x + 16).contains(&column) && (30..46).contains(&row));
                let wall = 60 + (column * 5 + row * 3) as i32 % 50;
                let random = (place as u64 ^ noise).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 61;
                (if inside { 220 } else { wall } + brighter + random as i32).clamp(0, 255) as u8
            })
            .collect()
    }

    fn watch(scenes: impl IntoIterator<Item = Vec<u8>>) -> Vec<bool> {
        let mut motion = Motion::new();
        let seen = |(place, pixels): (usize, Vec<u8>)| {
            motion.see(Duration::from_millis(200) * place as u32, &Grey::new(SIZE, &pixels).unwrap())
        };
        scenes.into_iter().enumerate().map(seen).collect()
    }

    #[test]
    fn something_that_comes_and_goes_is_seen_from_the_first_picture_to_the_last() {
        let scenes = (0..40).map(|n| scene((10..20).contains(&n).then_some(5 * n), 0, n as u64));
        let found = watch(scenes);
        let expected: Vec<bool> = (0..40).map(|n| (10..20).contains(&n)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_stays_becomes_the_background() {
        let found = watch((0..600).map(|n| scene((n >= 10).then_some(40), 0, n as u64)));
        assert!(found[10] && found[50], "looked at for some seconds");
        assert!(!found[599], "two minutes later it belongs there");
    }

    #[test]
    fn a_lamp_or_a_cloud_is_no_motion() {
        let found = watch((0..40).map(|n| scene(None, if n >= 20 { 40 } else { 0 }, n as u64)));
        assert_eq!(found, [false; 40]);
    }

    #[test]
    fn an_end_needs_fewer_fields_than_a_beginning() {
        // Columns of the grid, 24 fields each, of which some differ: as many as between END and BEGIN begin nothing, and end
        // nothing.
        let with = |fields: usize| {
            let mut pixels = Vec::from([100; SIZE[0] * SIZE[1]]);
            for field in 0..fields {
                for y in 3 * field..3 * field + 3 {
                    pixels[y * SIZE[0]..][..3].fill(200);
                }
            }
            pixels
        };
        let between = END + 1;
        assert!(between < BEGIN);
        let found = watch([0, between, BEGIN, between, END - 1].map(with));
        assert_eq!(found, [false, false, true, true, false]);
    }

    proptest! {
        #[test]
        fn noise_alone_is_no_motion(seeds in proptest::collection::vec(any::<u64>(), 2..30)) {
            let found = watch(seeds.iter().map(|seed| scene(None, 0, *seed)));
            prop_assert!(found.iter().all(|moves| !moves));
        }

        #[test]
        fn any_pictures_of_any_size_at_any_time_are_survived(
            pictures in proptest::collection::vec((1..40_usize, 1..40_usize, any::<u8>(), any::<u64>()), 1..10),
        ) {
            let mut motion = Motion::new();
            for (width, height, level, millis) in pictures {
                let pixels = std::vec![level; width * height];
                motion.see(Duration::from_millis(millis), &Grey::new([width, height], &pixels).unwrap());
            }
        }
    }
}
