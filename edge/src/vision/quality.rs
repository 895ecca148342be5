//! How sharp and how bright a picture is, and what to do about bad ones.
//!
//! Sharpness is the variance of the picture's Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy",
//! ICPR 2000, section 2; `LAP4` in the comparison by Pertuz, Puig and Garcia, Pattern Recognition 46(5), 2013, appendix
//! A.9), divided by the variance of the picture itself, since else it would be low in fog and high in sunshine: both are
//! squares of the contrast. It is given in hundredths: a good photo has 2 to 100, and one without focus or with shake below
//! 0.5 (`docs/edge.md` has what was measured).

use core::fmt;

use super::Grey;

/// Levels up to which a pixel shows nothing: black.
const BLACK: u8 = 12;

/// Levels from which a pixel shows nothing: white.
const WHITE: u8 = 250;

/// The share of pixels that show nothing in a picture that shows nothing. An object on a black or white ground leaves more.
const CLIPPED: f32 = 0.97;

/// The variance below which a picture has too little contrast to tell whether it is sharp: an even wall, with noise of two
/// levels.
const CONTRAST: f64 = 8.0;

/// What is known of a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Larger is sharper; `None` where there is too little contrast to tell.
    pub sharpness: Option<f32>,
    /// The average level, 0 to 255.
    pub mean: u8,
    /// The share of black pixels.
    pub black: f32,
    /// The share of white pixels.
    pub white: f32,
}

/// What is wrong with a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Nearly all of it is black.
    Dark,
    /// Nearly all of it is white.
    Bright,
    /// It is less sharp than it has to be.
    Blurred {
        /// How sharp it is.
        sharpness: f32,
        /// How sharp it has to be.
        least: f32,
    },
}

impl Fault {
    /// Whether it is the same, whatever the numbers.
    const fn is_like(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Dark, Self::Dark)
                | (Self::Bright, Self::Bright)
                | (Self::Blurred { .. }, Self::Blurred { .. })
        )
    }
}

/// What is wrong, and what to do about it.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dark => f.write_str("black: is the lens covered, or the light off?"),
            Self::Bright => f.write_str("white: does a lamp or the sun shine into the lens?"),
            Self::Blurred { sharpness, least } => write!(
                f,
                "blurred (sharpness {sharpness:.2}, and sharpness_min is {least}): clean and focus the lens, see that the camera does \
                 not shake and has light enough, or lower sharpness_min"
            ),
        }
    }
}

impl Quality {
    /// Looks at a picture.
    pub fn of(picture: &Grey<'_>) -> Self {
        let pixels = picture.pixels();
        let share = |of: fn(u8) -> bool| {
            pixels.iter().filter(|level| of(**level)).count() as f32 / pixels.len() as f32
        };
        Self {
            sharpness: sharpness(picture),
            mean: picture.mean(),
            black: share(|level| level <= BLACK),
            white: share(|level| level >= WHITE),
        }
    }

    /// What is wrong with it, where something is; a `sharpness_min` of 0 takes blurred ones.
    pub fn fault(&self, sharpness_min: f32) -> Option<Fault> {
        if self.black >= CLIPPED {
            return Some(Fault::Dark);
        }
        if self.white >= CLIPPED {
            return Some(Fault::Bright);
        }
        let sharpness = self.sharpness.filter(|sharpness| *sharpness < sharpness_min)?;
        Some(Fault::Blurred { sharpness, least: sharpness_min })
    }
}

/// Numbers that are summed up for a variance, exactly.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    count: u64,
    sum: i64,
    squares: u64,
}

impl Sums {
    fn add(&mut self, x: i32) {
        self.count += 1;
        self.sum += i64::from(x);
        self.squares += u64::from(x.unsigned_abs()).pow(2);
    }

    fn variance(&self) -> f64 {
        let count = self.count as f64;
        let mean = self.sum as f64 / count;
        (self.squares as f64 / count - mean * mean).max(0.0)
    }
}

fn sharpness(picture: &Grey<'_>) -> Option<f32> {
    let (mut laplacian, mut levels) = (Sums::default(), Sums::default());
    let rows = picture.rows();
    for ((above, row), below) in rows.clone().zip(rows.clone().skip(1)).zip(rows.skip(2)) {
        let neighbours = above.iter().zip(below).skip(1);
        for (line, (up, down)) in row.array_windows().zip(neighbours) {
            let [left, here, right] = line.map(i32::from);
            laplacian.add(left + right + i32::from(*up) + i32::from(*down) - 4 * here);
            levels.add(here);
        }
    }
    let contrast = levels.variance();
    (levels.count > 0 && contrast >= CONTRAST).then(|| (100.0 * laplacian.variance() / contrast) as f32)
}

/// What to do with a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is good.
    Take,
    /// It is bad: try the next one at once.
    Again,
    /// It is bad, as were those before it: wait for the trigger.
    GiveUp,
}

/// Something to tell, once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum News {
    /// Pictures are bad, for this reason now.
    Bad(Fault),
    /// They are good again, after so many bad ones.
    Good(u64),
}

/// Keeps bad pictures out, and tells of them when that begins and ends and not with each.
#[derive(Debug, Clone)]
pub struct Screen {
    sharpness_min: f32,
    tries: u8,
    bad: u8,
    skipped: u64,
    since_good: u64,
    told: Option<Fault>,
    news: Option<News>,
}

impl Screen {
    /// How many pictures are looked at for one photo.
    pub const TRIES: u8 = 10;

    /// Wants pictures of this sharpness, and tries [`TRIES`](Self::TRIES) times.
    pub const fn new(sharpness_min: f32) -> Self {
        let (tries, bad, skipped, since_good) = (Self::TRIES, 0, 0, 0);
        Self { sharpness_min, tries, bad, skipped, since_good, told: None, news: None }
    }

    /// What to do with this picture.
    pub fn judge(&mut self, quality: &Quality) -> Verdict {
        let Some(fault) = quality.fault(self.sharpness_min) else {
            if self.told.take().is_some() {
                self.news = Some(News::Good(self.since_good));
            }
            (self.bad, self.since_good) = (0, 0);
            return Verdict::Take;
        };
        self.skipped += 1;
        self.since_good += 1;
        self.bad += 1;
        if self.bad < self.tries {
            return Verdict::Again;
        }
        self.bad = 0;
        if !self.told.is_some_and(|told| told.is_like(fault)) {
            self.news = Some(News::Bad(fault));
            self.told = Some(fault);
        }
        Verdict::GiveUp
    }

    /// What is to be told, once.
    pub const fn news(&mut self) -> Option<News> {
        self.news.take()
    }

    /// Bad pictures so far.
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    const SIZE: [usize; 2] = [120, 90];

    /// Boxes of all sizes and levels, one over the other: like a photo it has detail of every size.
    fn scene(seed: u64, contrast: f32) -> Vec<u8> {
        let mut state = seed;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut pixels = vec![128.0; SIZE[0] * SIZE[1]];
        for place in 0..80 {
            let side = 60 / (1 + place / 8);
            let (x, y) = (random(SIZE[0]), random(SIZE[1]));
            let (width, height, level) = (1 + random(side), 1 + random(side), random(256) as f32);
            for row in y..(y + height).min(SIZE[1]) {
                pixels[row * SIZE[0]..][x..(x + width).min(SIZE[0])].fill(level);
            }
        }
        pixels.iter().map(|level| (128.0 + (level - 128.0) * contrast) as u8).collect()
    }

    /// Averages over `2 radius + 1` pixels across and down, twice: nearly a Gaussian.
    fn blurred(pixels: &[u8], radius: usize) -> Vec<u8> {
        let mut from = pixels.to_vec();
        for step in [1, SIZE[0], 1, SIZE[0]] {
            let along = if step == 1 { SIZE[0] } else { SIZE[1] };
            from = (0..from.len())
                .map(|place| {
                    let at = place / step % along;
                    let near = at.saturating_sub(radius)..=(at + radius).min(along - 1);
                    let (count, base) = (near.clone().count(), place - at * step);
                    let sum: u32 = near.map(|other| u32::from(from[base + other * step])).sum();
                    (sum as f32 / count as f32).round() as u8
                })
                .collect();
        }
        from
    }

    fn quality(pixels: &[u8]) -> Quality {
        Quality::of(&Grey::new(SIZE, pixels).unwrap())
    }

    proptest! {
        #[test]
        fn blur_lowers_sharpness_and_contrast_does_not(seed: u64) {
            let photo = scene(seed, 1.0);
            let sharp = quality(&photo).sharpness.unwrap();
            let mut last = sharp;
            for radius in 1..4 {
                let found = quality(&blurred(&photo, radius)).sharpness.unwrap();
                prop_assert!(found < last * 0.8, "radius {radius}: {found} after {last}");
                last = found;
            }
            let faint = quality(&scene(seed, 0.4)).sharpness.unwrap();
            prop_assert!((faint / sharp - 1.0).abs() < 0.05, "{faint} against {sharp}");
        }

        #[test]
        fn any_picture_has_finite_numbers(
            width in 1..20_usize,
            height in 1..20_usize,
            seed in proptest::collection::vec(any::<u8>(), 400),
        ) {
            let found = Quality::of(&Grey::new([width, height], &seed[..width * height]).unwrap());
            prop_assert!(found.sharpness.is_none_or(|x| x.is_finite() && x >= 0.0));
            prop_assert!((0.0..=1.0).contains(&found.black) && (0.0..=1.0).contains(&found.white));
        }
    }

    #[test]
    fn the_formula_is_the_one_of_the_literature() {
        // Stripes one pixel wide, of 0 and 200: the Laplacian is 400 or -400, the variance 400^2, and that of the levels 100^2.
        let stripes: Vec<u8> =
            (0..SIZE[0] * SIZE[1]).map(|place| if place % 2 == 0 { 0 } else { 200 }).collect();
        assert_eq!(quality(&stripes).sharpness, Some(1600.0));
        // A slope has no curvature at all.
        let slope: Vec<u8> = (0..SIZE[0] * SIZE[1]).map(|place| (place % SIZE[0] * 2) as u8).collect();
        assert_eq!(quality(&slope).sharpness, Some(0.0));
        assert_eq!(quality(&[99; 120 * 90]).sharpness, None, "an even wall is neither sharp nor blurred");
        assert_eq!(Quality::of(&Grey::new([2, 2], &[0, 200, 0, 200]).unwrap()).sharpness, None);
    }

    #[test]
    fn black_white_and_blurred_pictures_have_faults_and_others_none() {
        let photo = scene(7, 1.0);
        let lamp = |ground: u8, level: u8| {
            let mut pixels = vec![ground; SIZE[0] * SIZE[1]];
            pixels[..600].fill(level);
            pixels
        };
        assert_eq!(quality(&photo).fault(1.0), None);
        assert_eq!(quality(&[3; 120 * 90]).fault(0.0), Some(Fault::Dark));
        assert_eq!(quality(&[10; 120 * 90]).fault(0.0), Some(Fault::Dark));
        assert_eq!(quality(&[254; 120 * 90]).fault(0.0), Some(Fault::Bright));
        assert_eq!(quality(&lamp(0, 255)).fault(1.0), None, "an object before a black ground");
        assert_eq!(quality(&lamp(255, 20)).fault(1.0), None, "and before a white one");
        let shaken = blurred(&photo, 4);
        assert!(matches!(quality(&shaken).fault(1.0), Some(Fault::Blurred { .. })), "{:?}", quality(&shaken));
        assert_eq!(quality(&shaken).fault(0.0), None);
    }

    #[test]
    fn bad_pictures_are_tried_again_and_told_of_once() {
        let quality = |black, sharpness| Quality { sharpness: Some(sharpness), mean: 9, black, white: 0.0 };
        let (good, dark, soft) = (quality(0.2, 9.0), quality(1.0, 9.0), quality(0.2, 0.5));
        let mut screen = Screen::new(1.0);
        assert_eq!((screen.judge(&good), screen.news()), (Verdict::Take, None));
        for _ in 1..Screen::TRIES {
            assert_eq!((screen.judge(&dark), screen.news()), (Verdict::Again, None));
        }
        assert_eq!((screen.judge(&dark), screen.news()), (Verdict::GiveUp, Some(News::Bad(Fault::Dark))));
        for _ in 0..10 * Screen::TRIES {
            screen.judge(&dark);
            assert_eq!(screen.news(), None);
        }
        assert_eq!((screen.judge(&good), screen.news()), (Verdict::Take, Some(News::Good(110))));
        assert_eq!(screen.judge(&soft), Verdict::Again);
        assert_eq!((screen.judge(&good), screen.news()), (Verdict::Take, None), "one bad one is no news");
        assert_eq!(screen.skipped(), 111);
    }
}
