//! Real numbers to integers: an affine map for activations, one scale a channel for weights.

use super::Range;

/// Largest magnitude of an int8 weight. -128 is left out, so that the range is symmetric.
const WEIGHT_MAX: f32 = 127.0;
/// Largest magnitude of an int32 bias: half of the accumulator, the products have the other half.
const BIAS_MAX: f64 = (1 << 30) as f64;

/// How uint8 stands for real numbers: `real = scale * (integer - zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    scale: f32,
    zero_point: u8,
}

impl Affine {
    /// The finest map that reaches both ends of the range. Zero is made part of the range and is exact, because borders
    /// are padded with it.
    pub fn covering(range: Range) -> Self {
        let (min, max) = (f64::from(range.min().min(0.0)), f64::from(range.max().max(0.0)));
        let span = max - min;
        if span <= 0.0 {
            return Self { scale: 1.0, zero_point: 0 };
        }
        let mut scale = ((span / 255.0) as f32).max(f32::MIN_POSITIVE);
        let zero_point = (-min / f64::from(scale)).round().clamp(0.0, 255.0) as u8;
        // A clip before the rounding is redundant where the largest integer does not exceed its bound, and engines drop
        // it; one unit in the last place must not keep them from it.
        if zero_point == 0 && scale > f32::MIN_POSITIVE && scale * 255.0 > range.max() {
            scale = scale.next_down();
        }
        Self { scale, zero_point }
    }

    /// The step between two integers, positive and finite.
    pub const fn scale(self) -> f32 {
        self.scale
    }

    /// The integer that stands for zero.
    pub const fn zero_point(self) -> u8 {
        self.zero_point
    }

    /// The nearest integer, ties to even, as ONNX has it; values beyond the range become its ends, NaN becomes zero.
    pub fn quantize(self, value: f32) -> u8 {
        let value = if value.is_nan() { 0.0 } else { value };
        ((value / self.scale).round_ties_even() + f32::from(self.zero_point)).clamp(0.0, 255.0) as u8
    }

    /// What an integer stands for.
    pub fn dequantize(self, integer: u8) -> f32 {
        self.scale * (f32::from(integer) - f32::from(self.zero_point))
    }
}

/// Where the channels of weights are. Row-major `[outer, channels, inner]`: all that share the middle index share a
/// scale. `outer` is 1 for all but `[inputs, channels]` matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) channels: usize,
    pub(super) inner: usize,
    /// Neighbours that read the same input channel: the elements of a convolution's kernel.
    pub(super) kernel: usize,
    /// Groups of a convolution.
    pub(super) groups: usize,
}

impl Layout {
    /// The output channel of an element.
    fn channel(self, index: usize) -> usize {
        index / self.inner % self.channels
    }

    /// The input channel that an element is multiplied with.
    fn input_channel(self, index: usize) -> usize {
        if self.inner == 1 && self.kernel == 1 && self.groups == 1 {
            return index / self.channels;
        }
        let inputs = self.inner / self.kernel;
        let group = self.channel(index) / (self.channels / self.groups);
        group * inputs + index % self.inner / self.kernel
    }

    /// How many input channels `count` weights read.
    pub(super) fn input_channels(self, count: usize) -> usize {
        count.checked_sub(1).map_or(0, |last| self.input_channel(last) + 1)
    }
}

/// One scale a channel: the largest magnitude becomes 127.
///
/// A dead channel has no magnitude, and its bias alone decides: where `bias` is given with the scale of the input, no
/// channel's scale is so small that its bias leaves int32.
pub(super) fn weight_scales(weights: &[f32], layout: Layout, bias: Option<(&[f32], f32)>) -> Vec<f32> {
    let mut largest = vec![0.0_f32; layout.channels];
    for (index, weight) in weights.iter().enumerate() {
        let largest = &mut largest[layout.channel(index)];
        *largest = largest.max(weight.abs());
    }
    let scale = |(channel, largest): (usize, f32)| {
        let floor = bias.and_then(|(bias, input_scale)| Some(bias_floor(*bias.get(channel)?, input_scale)));
        let scale = (largest / WEIGHT_MAX).max(floor.unwrap_or(0.0));
        if scale > 0.0 { scale.max(f32::MIN_POSITIVE) } else { 1.0 }
    };
    largest.into_iter().enumerate().map(scale).collect()
}

/// The weight scale below which the bias leaves int32.
fn bias_floor(bias: f32, input_scale: f32) -> f32 {
    (f64::from(bias.abs()) / (f64::from(input_scale) * BIAS_MAX)).min(f64::from(f32::MAX)) as f32
}

/// The weights in units of their channel's scale.
///
/// Each is rounded to the nearest integer, and then as few as possible to the other side, until the sum over a kernel is
/// within half a step of what it was: neighbouring pixels are alike, so that the sum is what most of an image sees (Guo et
/// al., "SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation", ICLR 2022, section 3.3).
pub(super) fn quantize_weights(weights: &[f32], layout: Layout, scales: &[f32]) -> Vec<i8> {
    let steps = weights.iter().enumerate().map(|(index, weight)| weight / scales[layout.channel(index)]);
    let steps: Vec<f32> = steps.collect();
    let mut rounded: Vec<f32> =
        steps.iter().map(|steps| steps.round_ties_even().clamp(-WEIGHT_MAX, WEIGHT_MAX)).collect();
    if layout.kernel > 1 {
        for (steps, rounded) in steps.chunks(layout.kernel).zip(rounded.chunks_mut(layout.kernel)) {
            keep_sum(steps, rounded);
        }
    }
    rounded.into_iter().map(|integer| integer as i8).collect()
}

/// Moves integers by one, those nearest to a tie first, until their sum is within a half of the sum of `steps`.
fn keep_sum(steps: &[f32], rounded: &mut [f32]) {
    let mut excess: f32 = rounded.iter().zip(steps).map(|(rounded, steps)| rounded - steps).sum();
    // Rounding put each within a half, so that half of the elements are enough.
    for _ in 0..steps.len() {
        if excess.abs() <= 0.5 {
            return;
        }
        let move_by = -excess.signum();
        let movable = (0..steps.len()).filter(|index| (rounded[*index] + move_by).abs() <= WEIGHT_MAX);
        let gain = |index: &usize| (steps[*index] - rounded[*index]) * move_by;
        let Some(best) = movable.max_by(|a, b| gain(a).total_cmp(&gain(b))) else { return };
        rounded[best] += move_by;
        excess += move_by;
    }
}

/// By how much rounded weights change the mean result of each channel, where the inputs have these means. Borders count
/// as if they were inside.
pub(super) fn mean_shift(
    (weights, integers): (&[f32], &[i8]),
    layout: Layout,
    scales: &[f32],
    input_means: &[f32],
) -> Vec<f64> {
    let mut shift = vec![0.0; layout.channels];
    for (index, (weight, integer)) in weights.iter().zip(integers).enumerate() {
        let channel = layout.channel(index);
        let error = f64::from(scales[channel]) * f64::from(*integer) - f64::from(*weight);
        shift[channel] += error * f64::from(input_means[layout.input_channel(index)]);
    }
    shift
}

/// Scale of each channel's bias, and the bias in units of it. `None` where the scale is too small for an f32.
pub(super) fn quantize_bias(bias: &[f32], input_scale: f32, scales: &[f32]) -> Option<(Vec<f32>, Vec<i32>)> {
    let steps: Vec<f32> = scales.iter().map(|scale| scale * input_scale).collect();
    if steps.iter().any(|step| !step.is_normal()) {
        return None;
    }
    // A float beyond int32 becomes its end.
    let quantize = |(bias, step): (&f32, &f32)| (f64::from(*bias) / f64::from(*step)).round() as i32;
    let integers = bias.iter().zip(&steps).map(quantize).collect();
    Some((steps, integers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affine(min: f32, max: f32) -> Affine {
        Affine::covering(Range::new(min, max).unwrap())
    }

    #[test]
    fn a_range_becomes_the_scale_and_zero_point_that_were_computed_by_hand() {
        // 255 steps of 0.02 from -1.1 to 4.0; zero is 55 steps up.
        let map = affine(-1.1, 4.0);
        assert_eq!((map.scale(), map.zero_point()), (0.02, 55));
        // 0.031 is 1.55 steps: two. Beyond the ends: the ends.
        assert_eq!([-9.0, -1.1, 0.0, 0.031, 4.0, 9.0].map(|x| map.quantize(x)), [0, 0, 55, 57, 255, 255]);
        assert_eq!([map.dequantize(0), map.dequantize(55)], [-1.1, 0.0]);
        // Ties go to the even step: 0.5 to 0, 1.5 to 2, 2.5 to 2.
        let unit = affine(0.0, 255.0);
        assert_eq!([0.5, 1.5, 2.5].map(|x| unit.quantize(x)), [0, 2, 2]);
        assert_eq!(unit.quantize(f32::NAN), 0);
    }

    #[test]
    fn zero_is_exact_whatever_the_range() {
        for (min, max) in
            [(0.0, 6.0), (2.0, 6.0), (-6.0, -2.0), (-0.37, 2.9), (0.0, 0.0), (-1e38, 3e38), (0.0, 1e-42)]
        {
            let map = affine(min, max);
            assert!(map.scale().is_normal(), "{min} {max}: {map:?}");
            assert_eq!(map.dequantize(map.quantize(0.0)), 0.0, "{min} {max}: {map:?}");
        }
    }

    #[test]
    fn the_largest_integer_never_exceeds_the_bound_of_a_clip() {
        for bound in [6.0, 1.0, 3.7, 0.013, 12.34, 255.0] {
            let map = affine(0.0, bound);
            assert!(map.scale() * 255.0 <= bound, "{bound}");
            assert!(map.scale() * 255.0 > bound * 0.999_999, "{bound}");
        }
    }

    #[test]
    fn each_channel_has_the_scale_of_its_largest_weight() {
        // Channels outermost, as in Conv: [2, 3].
        let rows = Layout { channels: 2, inner: 3, kernel: 1, groups: 1 };
        let weights = [1.27, -0.634, 0.0, -2.54, 0.03, 0.01];
        let scales = weight_scales(&weights, rows, None);
        assert_eq!(scales, [0.01, 0.02]);
        assert_eq!(quantize_weights(&weights, rows, &scales), [127, -63, 0, -127, 2, 0]);
        // Channels innermost, as in MatMul: [3, 2].
        let columns = Layout { channels: 2, inner: 1, kernel: 1, groups: 1 };
        // The first column holds 1.27, 0.0 and 0.03, the second -0.634, -2.54 and 0.01.
        let scales = weight_scales(&weights, columns, None);
        assert_eq!(scales, [0.01, 0.02]);
        assert_eq!(quantize_weights(&weights, columns, &scales), [127, -32, 0, -127, 3, 0]);
    }

    #[test]
    fn a_bias_counts_in_products_of_the_two_scales() {
        let (steps, integers) = quantize_bias(&[1.0, -0.3], 0.5, &[0.01, 0.02]).unwrap();
        assert_eq!(steps, [0.005, 0.01]);
        assert_eq!(integers, [200, -30]);
        assert_eq!(quantize_bias(&[1.0], 1e-30, &[1e-30]), None, "no f32 is so small");
    }

    #[test]
    fn a_dead_channel_keeps_its_bias_and_no_bias_leaves_int32() {
        let layout = Layout { channels: 3, inner: 2, kernel: 2, groups: 1 };
        let weights = [0.0, 0.0, 1e-20, 0.0, 0.0, 0.0];
        let bias = [0.7, -3.0, 0.0];
        let scales = weight_scales(&weights, layout, Some((&bias, 0.02)));
        assert!(scales.iter().all(|scale| scale.is_normal()), "{scales:?}");
        let (steps, integers) = quantize_bias(&bias, 0.02, &scales).unwrap();
        for ((step, integer), bias) in steps.iter().zip(&integers).zip(bias) {
            let kept = f64::from(*step) * f64::from(*integer);
            assert!((kept - f64::from(bias)).abs() <= 1e-6 * f64::from(bias.abs()), "{kept} for {bias}");
            assert!(integer.abs() <= (1 << 30) + 1000, "{integer}");
        }
        assert_eq!(quantize_weights(&weights, layout, &scales), [0; 6]);
    }
}
