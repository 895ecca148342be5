//! Small grey pictures, made by averaging.

/// The longest side of a picture that is judged, in pixels. It is about what query networks look at: a blur that is
/// gone at this size is gone for them too.
pub const SIDE: usize = 256;

/// A grey picture, `[height, width]`, 0 black to 255 white.
#[derive(Debug, Clone, Copy)]
pub struct Grey<'a> {
    width: usize,
    height: usize,
    pixels: &'a [u8],
}

impl<'a> Grey<'a> {
    /// `None` where there are not as many pixels as the sides say, or none at all.
    pub fn new([width, height]: [usize; 2], pixels: &'a [u8]) -> Option<Self> {
        let is_whole = !pixels.is_empty() && width.checked_mul(height) == Some(pixels.len());
        is_whole.then_some(Self { width, height, pixels })
    }

    /// Width and height, at least 1.
    pub const fn size(&self) -> [usize; 2] {
        [self.width, self.height]
    }

    /// All pixels, row after row.
    pub const fn pixels(&self) -> &'a [u8] {
        self.pixels
    }

    /// The rows, from the top.
    pub fn rows(&self) -> impl Iterator<Item = &'a [u8]> + Clone + use<'a> {
        self.pixels.chunks_exact(self.width)
    }

    /// The average level.
    pub fn mean(&self) -> u8 {
        let sum: u64 = self.pixels.iter().map(|level| u64::from(*level)).sum();
        (sum / self.pixels.len() as u64) as u8
    }

    /// Averages over a grid of `W` times `H` fields, row after row. Fields of a picture with fewer pixels share them.
    pub fn fields<const W: usize, const H: usize>(&self) -> [[u8; W]; H] {
        let span = |place: usize, fields: usize, side: usize| {
            let begin = place * side / fields;
            begin..((place + 1) * side / fields).max(begin + 1)
        };
        core::array::from_fn(|y| {
            core::array::from_fn(|x| {
                let columns = span(x, W, self.width);
                let rows =
                    self.rows().skip(span(y, H, self.height).start).take(span(y, H, self.height).len());
                let levels = rows.flat_map(|row| row.get(columns.clone()).unwrap_or_default());
                let (sum, count) = levels.fold((0, 0), |(sum, n), level| (sum + u32::from(*level), n + 1));
                (sum / u32::max(count, 1)) as u8
            })
        })
    }
}

/// The size at which a picture is judged: its longer side at most [`SIDE`], never enlarged.
pub fn small([width, height]: [u32; 2]) -> [usize; 2] {
    let longest = width.max(height) as usize;
    [width, height].map(|side| match side as usize {
        side if longest <= SIDE => side,
        side => (side * SIDE / longest).max(1),
    })
}

/// Averages a picture of `size`, of which `row` gives the levels of one row, into [`small`] pixels. Levels that a row
/// lacks are black.
///
/// # Panics
/// Where `into` has another length than those sides need.
pub fn shrink<R: Iterator<Item = u8>>(size: [u32; 2], mut row: impl FnMut(usize) -> R, into: &mut [u8]) {
    let [width, height] = size.map(|side| side as usize);
    let [to_width, to_height] = small(size);
    assert_eq!(into.len(), to_width * to_height, "the sides of `small`");
    let begin = |place: usize, to: usize, side: usize| place * side / to.max(1);
    for (y, line) in into.chunks_exact_mut(to_width.max(1)).enumerate() {
        let rows = begin(y, to_height, height)..begin(y + 1, to_height, height);
        let mut sums = [0_u32; SIDE];
        for from in rows.clone() {
            let mut levels = row(from);
            for (x, sum) in sums.iter_mut().enumerate().take(to_width) {
                let count = begin(x + 1, to_width, width) - begin(x, to_width, width);
                *sum += levels.by_ref().take(count).map(u32::from).sum::<u32>();
            }
        }
        for (x, (to, sum)) in line.iter_mut().zip(sums).enumerate() {
            let count = rows.len() * (begin(x + 1, to_width, width) - begin(x, to_width, width));
            *to = (sum / (count as u32).max(1)) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    #[test]
    fn pictures_keep_their_shape_and_are_never_enlarged() {
        for (size, expected) in [
            ([1280, 720], [256, 144]),
            ([720, 1280], [144, 256]),
            ([256, 256], [256, 256]),
            ([100, 50], [100, 50]),
            ([16384, 1], [256, 1]),
            ([1, 1], [1, 1]),
        ] {
            assert_eq!(small(size), expected, "{size:?}");
        }
    }

    #[test]
    fn only_whole_pictures_are_pictures() {
        assert!(Grey::new([2, 2], &[0; 4]).is_some());
        assert!(Grey::new([2, 2], &[0; 5]).is_none());
        assert!(Grey::new([0, 0], &[]).is_none());
        assert!(Grey::new([usize::MAX, 2], &[0; 4]).is_none());
    }

    #[test]
    fn fields_are_averages_and_small_pictures_have_them_too() {
        let picture = Grey::new([4, 2], &[0, 2, 10, 10, 4, 2, 20, 20]).unwrap();
        assert_eq!(picture.fields::<2, 1>(), [[2, 15]]);
        assert_eq!(Grey::new([1, 1], &[7]).unwrap().fields::<3, 2>(), [[7; 3]; 2]);
    }

    proptest! {
        #[test]
        fn shrinking_keeps_a_flat_picture_flat(width in 1..700_u32, height in 1..700_u32, level: u8) {
            let [to_width, to_height] = small([width, height]);
            let mut into = vec![0; to_width * to_height];
            shrink([width, height], |_| core::iter::repeat_n(level, width as usize), &mut into);
            prop_assert!(into.iter().all(|found| *found == level));
        }

        #[test]
        fn shrinking_keeps_the_mean(width in 1..600_u32, height in 1..400_u32, seed: u64) {
            let level = |x: usize, y: usize| {
                ((x as u64 * 7 + y as u64 * 13).wrapping_mul(seed | 1) >> 7) as u8
            };
            let [to_width, to_height] = small([width, height]);
            let mut into = vec![0; to_width * to_height];
            shrink([width, height], |y| (0..width as usize).map(move |x| level(x, y)), &mut into);
            let whole: u64 = (0..height as usize)
                .flat_map(|y| (0..width as usize).map(move |x| u64::from(level(x, y))))
                .sum();
            let mean = whole as f64 / f64::from(width * height);
            let found = into.iter().map(|level| f64::from(*level)).sum::<f64>() / into.len() as f64;
            // Rounding down takes at most one level; fields differ by one row and column in their weights.
            prop_assert!((found - mean).abs() < 16.0, "{found} against {mean}");
        }
    }
}
