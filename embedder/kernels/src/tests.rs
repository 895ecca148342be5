//! Every set of instructions against sums that are written as a convolution is defined.

use std::ops::Range;

use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::{
    Clamp, Damaged, Dense, DenseI8, Depthwise, DepthwiseI8, Integers, Isa, Layout, Outputs, Reader, Rounding,
    Window, Writer, quantize,
};

/// Values in -1..1.
fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// The oracle, in `f64`: input and output channels last, weights `[outputs, inputs / group, height, width]`.
struct Naive<'a> {
    channels: [usize; 2],
    group: usize,
    window: &'a Window,
    weights: &'a [f32],
    bias: &'a [f32],
    clamp: Clamp,
}

impl Naive<'_> {
    fn run(&self, image: [usize; 2], input: &[f32], residual: Option<&[f32]>) -> Vec<f32> {
        let [inputs, outputs] = self.channels;
        let [height, width] = self.window.kernel;
        let size = self.window.output(image).unwrap();
        let (per_group, outputs_a_group) = (inputs / self.group, outputs / self.group);
        let mut output = Vec::new();
        for place in 0..size[0] * size[1] * outputs {
            let (pixel, channel) = (place / outputs, place % outputs);
            let corner = [pixel / size[1] * self.window.stride[0], pixel % size[1] * self.window.stride[1]];
            let mut sum = f64::from(self.bias[channel]);
            for tap in 0..height * width * per_group {
                let (depth, y, x) = (tap / (height * width), tap / width % height, tap % width);
                let at = [corner[0] + y, corner[1] + x];
                let [Some(y), Some(x)] = [0, 1].map(|axis: usize| {
                    at[axis].checked_sub(self.window.before[axis]).filter(|at| *at < image[axis])
                }) else {
                    continue;
                };
                let from = channel / outputs_a_group * per_group + depth;
                let weight = self.weights[channel * height * width * per_group + tap];
                sum += f64::from(input[(y * image[1] + x) * inputs + from]) * f64::from(weight);
            }
            sum += residual.map_or(0.0, |residual| f64::from(residual[place]));
            output.push(sum.clamp(f64::from(self.clamp.low), f64::from(self.clamp.high)) as f32);
        }
        output
    }
}

/// Sums of `terms` products of values below 1, rounded after each: the error grows as their number at most.
fn check_near(isa: Isa, found: &[f32], expected: &[f32], terms: usize) -> Result<(), TestCaseError> {
    let tolerance = f32::EPSILON * (terms + 8) as f32;
    prop_assert_eq!(found.len(), expected.len());
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        prop_assert!(
            (found - expected).abs() <= tolerance,
            "{}: {} is {}, not {}",
            isa.name(),
            place,
            found,
            expected
        );
    }
    Ok(())
}

/// A kernel that was written and read again; whatever is shorter is none.
fn again<K>(write: impl Fn(&mut Writer), read: impl Fn(&mut Reader<'_>) -> Result<K, Damaged>) -> K {
    let mut to = Writer::new();
    write(&mut to);
    let bytes = to.take();
    for length in [0, 1, 8, 40, bytes.len() / 2, bytes.len() - 64, bytes.len() - 1] {
        assert!(read(&mut Reader::new(&bytes[..length])).is_err(), "{length} of {} bytes", bytes.len());
    }
    let mut from = Reader::new(&bytes);
    let kernel = read(&mut from).unwrap();
    assert_eq!(from.left(), 0);
    kernel
}

prop_compose! {
    /// Windows of any kind on images that they fit into.
    fn windows()(
        kernel in [1_usize..=5, 1_usize..=5],
        stride in [1_usize..=3, 1_usize..=3],
        before in [0_usize..=3, 0_usize..=3],
        after in [0_usize..=3, 0_usize..=3],
        more in [0_usize..=20, 0_usize..=20],
    ) -> (Window, [usize; 2]) {
        let image = [0, 1].map(|axis: usize| {
            (kernel[axis].saturating_sub(before[axis] + after[axis]) + more[axis]).max(1)
        });
        (Window { kernel, stride, before, after }, image)
    }
}

/// Rows of an output in two parts, each with the values that it has; one may have none.
fn parts(rows: usize, line: usize, seed: u64) -> [(Range<usize>, Range<usize>); 2] {
    let at = seed as usize % (rows + 1);
    [0..at, at..rows].map(|rows| (rows.clone(), rows.start * line..rows.end * line))
}

fn clamps() -> impl Strategy<Value = Clamp> {
    prop_oneof![Just(Clamp::NONE), Just(Clamp { low: 0.0, high: 6.0 }), Just(Clamp { low: -0.25, high: 0.5 })]
}

fn planes(image: [usize; 2], channels: usize, input: &[f32]) -> Vec<f32> {
    let pixels = image[0] * image[1];
    (0..input.len()).map(|at| input[at % pixels * channels + at / pixels]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn dense_convolutions_are_what_they_are_defined_to_be(
        (window, image) in windows(), channels in [1_usize..=40, 1_usize..=70], planar: bool, with_residual: bool,
        clamp in clamps(), seed: u64,
    ) {
        let [inputs, outputs] = channels;
        let taps = window.kernel[0] * window.kernel[1];
        let size = window.output(image).unwrap();
        let (input, weights) = (random(image[0] * image[1] * inputs, seed), random(outputs * inputs * taps, seed ^ 1));
        let (bias, residual) = (random(outputs, seed ^ 2), random(size[0] * size[1] * outputs, seed ^ 3));
        let residual = with_residual.then_some(&residual[..]);
        let naive = Naive { channels, group: 1, window: &window, weights: &weights, bias: &bias, clamp };
        let expected = naive.run(image, &input, residual);
        let (layout, input) = if planar {
            (Layout::Planes, planes(image, inputs, &input))
        } else {
            (Layout::ChannelsLast, input)
        };
        for isa in Isa::available() {
            let dense = Dense::new(isa, channels, window.clone(), layout, (&weights, Some(&bias)), clamp);
            let dense = again(|to| dense.write(to), Dense::read);
            let mut output = vec![f32::NAN; expected.len()];
            dense.run(image, &input, residual, &mut output);
            check_near(isa, &output, &expected, inputs * taps)?;
            let mut by_parts = vec![f32::NAN; expected.len()];
            for (rows, at) in parts(size[0], size[1] * outputs, seed) {
                let residual = residual.map(|residual| &residual[at.clone()]);
                dense.run_rows(rows, image, &input, residual, &mut by_parts[at]);
            }
            prop_assert_eq!(by_parts, output, "{}", isa.name());
        }
    }

    #[test]
    fn products_are_what_they_are_defined_to_be(
        channels in [1_usize..=200, 1_usize..=200], rows in 1_usize..=90, with_residual: bool, clamp in clamps(), seed: u64,
    ) {
        let [inputs, outputs] = channels;
        let (input, weights) = (random(rows * inputs, seed), random(outputs * inputs, seed ^ 1));
        let (bias, residual) = (random(outputs, seed ^ 2), random(rows * outputs, seed ^ 3));
        let residual = with_residual.then_some(&residual[..]);
        let naive = Naive { channels, group: 1, window: &Window::POINT, weights: &weights, bias: &bias, clamp };
        let expected = naive.run([rows, 1], &input, residual);
        for isa in Isa::available() {
            let dense =
                Dense::new(isa, channels, Window::POINT, Layout::ChannelsLast, (&weights, Some(&bias)), clamp);
            let mut output = vec![f32::NAN; expected.len()];
            dense.run([rows, 1], &input, residual, &mut output);
            check_near(isa, &output, &expected, inputs)?;
            let mut by_parts = vec![f32::NAN; expected.len()];
            for (rows_of, at) in parts(rows, outputs, seed) {
                let residual = residual.map(|residual| &residual[at.clone()]);
                dense.run_rows(rows_of, [rows, 1], &input, residual, &mut by_parts[at]);
            }
            prop_assert_eq!(by_parts, output, "{}", isa.name());
        }
    }

    #[test]
    fn depthwise_convolutions_are_what_they_are_defined_to_be(
        (window, image) in windows(), square in prop::option::of((prop::sample::select(vec![3_usize, 5]), 1_usize..=2)),
        more in [0_usize..=36, 0_usize..=36], channels in 1_usize..=70, clamp in clamps(), seed: u64,
    ) {
        // Half of them are those that have a kernel of their own, with planes and, where these would be too large, without.
        let (window, image) = match square {
            None => (window, image),
            Some((side, stride)) => {
                let image = [0, 1].map(|axis| {
                    (side + more[axis]).saturating_sub(window.before[axis] + window.after[axis]).max(1)
                });
                (Window { kernel: [side; 2], stride: [stride; 2], ..window }, image)
            }
        };
        prop_assume!(window.output(image).is_some());
        let taps = window.kernel[0] * window.kernel[1];
        let (input, weights) = (random(image[0] * image[1] * channels, seed), random(channels * taps, seed ^ 1));
        let bias = random(channels, seed ^ 2);
        let channels_of = [channels; 2];
        let naive = Naive { channels: channels_of, group: channels, window: &window, weights: &weights, bias: &bias, clamp };
        let expected = naive.run(image, &input, None);
        for isa in Isa::available() {
            let depthwise = Depthwise::new(isa, channels, window.clone(), (&weights, Some(&bias)), clamp);
            let depthwise = again(|to| depthwise.write(to), Depthwise::read);
            let mut output = vec![f32::NAN; expected.len()];
            depthwise.run(image, &input, &mut output);
            check_near(isa, &output, &expected, taps)?;
            let mut by_parts = vec![f32::NAN; expected.len()];
            let size = window.output(image).unwrap();
            for (rows, at) in parts(size[0], size[1] * channels, seed) {
                depthwise.run_rows(rows, image, &input, &mut by_parts[at]);
            }
            prop_assert_eq!(by_parts, output, "{}", isa.name());
        }
    }
}

/// A convolution of bytes: weights, steps and bias of a shape, at random.
struct Drawn {
    weights: Vec<i8>,
    steps: Vec<f32>,
    bias: Vec<i32>,
    zero_point: u8,
    input: Vec<u8>,
    residual: Vec<f32>,
    rounding: Rounding,
}

impl Drawn {
    fn new(pixels: usize, channels: [usize; 2], weights: usize, outputs: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let depth = (weights / channels[1]) as f32;
        Self {
            // Also the greatest and the least, all together, which overflow what is too small for them.
            weights: match rng.random_range(0..4) {
                0 => vec![127; weights],
                1 => vec![-127; weights],
                _ => (0..weights).map(|_| rng.random_range(-127..=127)).collect(),
            },
            steps: (0..channels[1]).map(|_| rng.random_range(0.5..1.0) / 2000.0 / depth).collect(),
            bias: (0..channels[1]).map(|_| rng.random_range(-10_000..10_000)).collect(),
            zero_point: [0, 128, 255, rng.random()][rng.random_range(0..4)],
            input: match rng.random_range(0..4) {
                0 => vec![255; pixels * channels[0]],
                1 => vec![0; pixels * channels[0]],
                _ => (0..pixels * channels[0]).map(|_| rng.random()).collect(),
            },
            residual: random(outputs, seed ^ 3),
            rounding: Rounding { step: rng.random_range(0.01..0.05), zero_point: rng.random() },
        }
    }

    fn integers(&self) -> Integers<'_> {
        Integers { weights: &self.weights, steps: &self.steps, bias: &self.bias, zero_point: self.zero_point }
    }

    /// What bytes stand for: sums of bytes are exact in `f64`.
    fn expected(&self, naive: &Naive<'_>, image: [usize; 2], with_residual: bool) -> Vec<f32> {
        let [_, outputs] = naive.channels;
        let weights: Vec<f32> = self.weights.iter().map(|weight| f32::from(*weight)).collect();
        let bias: Vec<f32> = self.bias.iter().map(|bias| *bias as f32).collect();
        let input: Vec<f32> =
            self.input.iter().map(|byte| f32::from(*byte) - f32::from(self.zero_point)).collect();
        let sums =
            Naive { weights: &weights, bias: &bias, clamp: Clamp::NONE, ..*naive }.run(image, &input, None);
        let real = |(place, sum): (usize, f32)| {
            let residual = if with_residual { self.residual[place] } else { 0.0 };
            (sum * self.steps[place % outputs] + residual).clamp(naive.clamp.low, naive.clamp.high)
        };
        sums.into_iter().enumerate().map(real).collect()
    }

    fn bytes(&self, expected: &[f32]) -> Vec<u8> {
        let zero = f32::from(self.rounding.zero_point);
        expected
            .iter()
            .map(|x| ((x / self.rounding.step).round_ties_even() + zero).clamp(0.0, 255.0) as u8)
            .collect()
    }

    /// `run` makes these rows, and these values, of an output of `size`.
    fn check(
        &self,
        isa: Isa,
        expected: &[f32],
        (size, seed): ([usize; 2], u64),
        run: impl Fn((Range<usize>, Range<usize>), &[u8], Outputs<'_>),
    ) -> Result<(), TestCaseError> {
        let input: Vec<u8> = self.input.iter().map(|byte| byte ^ isa.flip()).collect();
        let (mut real, mut bytes) = (vec![f32::NAN; expected.len()], vec![0; expected.len()]);
        let all = || (0..size[0], 0..expected.len());
        run(all(), &input, Outputs { real: Some(&mut real), bytes: Some(&mut bytes) });
        let mut alone = vec![0; expected.len()];
        run(all(), &input, Outputs { real: None, bytes: Some(&mut alone) });
        prop_assert_eq!(&alone, &bytes);
        // Whoever wants nothing gets nothing.
        run(all(), &input, Outputs::default());
        let (mut real_by_parts, mut bytes_by_parts) =
            (vec![f32::NAN; expected.len()], vec![0; expected.len()]);
        for (rows, at) in parts(size[0], expected.len() / size[0], seed) {
            let (real, bytes) = (&mut real_by_parts[at.clone()], &mut bytes_by_parts[at.clone()]);
            run((rows, at), &input, Outputs { real: Some(real), bytes: Some(bytes) });
        }
        prop_assert_eq!(&real_by_parts, &real);
        prop_assert_eq!(&bytes_by_parts, &bytes);
        let wanted = self.bytes(expected);
        for (place, ((real, byte), (expected, wanted))) in
            real.iter().zip(&bytes).zip(expected.iter().zip(&wanted)).enumerate()
        {
            // Sums are exact; their products with the steps are rounded twice.
            let name = isa.name();
            prop_assert!((real - expected).abs() <= 1e-5, "{name}: {place} is {real}, not {expected}");
            prop_assert!(
                (byte ^ isa.flip()).abs_diff(*wanted) <= 1,
                "{name}: {place} is {byte}, not {wanted}"
            );
        }
        let different =
            bytes.iter().zip(&wanted).filter(|(byte, wanted)| **byte ^ isa.flip() != **wanted).count();
        prop_assert!(
            different <= 1 + bytes.len() / 100,
            "{}: {different} of {} differ",
            isa.name(),
            bytes.len()
        );
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn dense_convolutions_of_bytes_are_what_they_are_defined_to_be(
        (window, image) in windows(), point: bool, channels in [1_usize..=48, 1_usize..=70], eights: bool,
        with_residual: bool, clamp in clamps(), seed: u64,
    ) {
        let window = if point { Window::POINT } else { window };
        let channels = if eights { [channels[0].next_multiple_of(8), channels[1]] } else { channels };
        let size = window.output(image).unwrap();
        let taps = window.kernel[0] * window.kernel[1];
        let outputs = size[0] * size[1] * channels[1];
        let drawn = Drawn::new(image[0] * image[1], channels, channels[0] * channels[1] * taps, outputs, seed);
        let naive = Naive { channels, group: 1, window: &window, weights: &[], bias: &[], clamp };
        let expected = drawn.expected(&naive, image, with_residual);
        for isa in Isa::available() {
            let dense = DenseI8::new(isa, channels, window.clone(), drawn.integers(), clamp, Some(drawn.rounding));
            let dense = again(|to| dense.write(to), DenseI8::read);
            drawn.check(isa, &expected, (size, seed), |(rows, at), input, outputs| {
                let residual = with_residual.then_some(&drawn.residual[at]);
                dense.run_rows(rows, image, input, residual, outputs);
            })?;
        }
    }

    #[test]
    fn depthwise_convolutions_of_bytes_are_what_they_are_defined_to_be(
        (window, image) in windows(), square in prop::option::of((prop::sample::select(vec![3_usize, 5]), 1_usize..=2)),
        more in [0_usize..=24, 0_usize..=24], channels in 1_usize..=150, clamp in clamps(), seed: u64,
    ) {
        let (window, image) = match square {
            None => (window, image),
            Some((side, stride)) => {
                let image = [0, 1].map(|axis| {
                    (side + more[axis]).saturating_sub(window.before[axis] + window.after[axis]).max(1)
                });
                (Window { kernel: [side; 2], stride: [stride; 2], ..window }, image)
            }
        };
        prop_assume!(window.output(image).is_some());
        let size = window.output(image).unwrap();
        let outputs = size[0] * size[1] * channels;
        let weights = channels * window.kernel[0] * window.kernel[1];
        let drawn = Drawn::new(image[0] * image[1], [channels; 2], weights, outputs, seed);
        let naive = Naive { channels: [channels; 2], group: channels, window: &window, weights: &[], bias: &[], clamp };
        let expected = drawn.expected(&naive, image, false);
        for isa in Isa::available() {
            let depthwise =
                DepthwiseI8::new(isa, channels, window.clone(), drawn.integers(), clamp, Some(drawn.rounding));
            let depthwise = again(|to| depthwise.write(to), DepthwiseI8::read);
            drawn.check(isa, &expected, (size, seed), |(rows, _), input, outputs| {
                depthwise.run_rows(rows, image, input, outputs);
            })?;
        }
    }

    #[test]
    fn bytes_are_rounded_as_onnx_says(
        channels in 1_usize..=5, pixels in 0_usize..=100, planar: bool, step in 0.001_f32..0.1, zero_point: u8, seed: u64,
    ) {
        let mut real = random(channels * pixels, seed);
        // Halves, which go to the even neighbour.
        real.iter_mut().step_by(3).enumerate().for_each(|(place, x)| *x = (place as f32 + 0.5) * step);
        real.iter_mut().skip(1).step_by(13).for_each(|x| *x = f32::NAN);
        let rounding = Rounding { step, zero_point };
        let expected: Vec<u8> = real
            .iter()
            .map(|x| if x.is_nan() { 0.0 } else { (x / step).round_ties_even() })
            .map(|steps| (steps + f32::from(zero_point)).clamp(0.0, 255.0) as u8)
            .collect();
        let place = |at: usize| if planar { at % channels * pixels + at / channels } else { at };
        let layout = if planar { Layout::Planes } else { Layout::ChannelsLast };
        for isa in Isa::available() {
            let mut bytes = vec![0; real.len()];
            quantize(isa, rounding, (layout, channels), &real, &mut bytes);
            let found: Vec<u8> = bytes.iter().map(|byte| byte ^ isa.flip()).collect();
            let wanted: Vec<u8> = (0..real.len()).map(|at| expected[place(at)]).collect();
            prop_assert_eq!(found, wanted, "{}", isa.name());
        }
    }
}

#[test]
fn what_is_no_number_stays_so() {
    for isa in Isa::available() {
        let clamp = Clamp { low: 0.0, high: 6.0 };
        let dense = Dense::new(isa, [1, 1], Window::POINT, Layout::ChannelsLast, (&[1.0], None), clamp);
        let mut output = [0.0; 3];
        dense.run([3, 1], &[f32::NAN, 7.0, -1.0], None, &mut output);
        assert!(output[0].is_nan() && output[1..] == [6.0, 0.0], "{}: {output:?}", isa.name());
    }
}

/// Kernels ask for the memory of outputs beforehand where it is more than a near cache holds.
#[test]
fn outputs_of_more_than_a_megabyte_are_those_of_their_parts() {
    let (inputs, outputs, image) = (5, 83, [60, 61]);
    let (input, weights) = (random(image[0] * image[1] * inputs, 1), random(inputs * outputs, 2));
    for isa in Isa::available() {
        let dense = Dense::new(
            isa,
            [inputs, outputs],
            Window::POINT,
            Layout::ChannelsLast,
            (&weights, None),
            Clamp::NONE,
        );
        let mut all = vec![f32::NAN; image[0] * image[1] * outputs];
        assert!(all.len() * size_of::<f32>() > 1 << 20);
        dense.run(image, &input, None, &mut all);
        let mut part = vec![f32::NAN; image[1] * outputs];
        for (row, expected) in all.chunks_exact(part.len()).enumerate() {
            dense.run_rows(row..row + 1, image, &input, None, &mut part);
            assert_eq!(part, expected, "{}, row {row}", isa.name());
        }
    }
}

#[test]
fn a_kernel_that_does_not_fit_has_no_output() {
    let window = Window { kernel: [3, 3], stride: [1, 1], before: [0, 0], after: [0, 1] };
    assert_eq!(window.output([3, 2]), Some([1, 1]));
    assert_eq!(window.output([2, 9]), None);
    assert_eq!(Window { stride: [0, 1], ..window }.output([9, 9]), None);
}

#[test]
fn what_this_processor_has_is_tested() {
    let tested: Vec<Isa> = Isa::available().collect();
    assert!(tested.contains(&Isa::Portable) && tested.contains(&Isa::detect()), "{tested:?}");
}

/// `make test-arm` looks for its name.
#[cfg(target_arch = "aarch64")]
#[test]
fn neon_is_tested_with_the_dot_product_and_without() {
    let tested: Vec<Isa> = Isa::available().collect();
    assert!(tested.contains(&Isa::Neon), "{tested:?}");
    let dot = std::arch::is_aarch64_feature_detected!("dotprod");
    assert_eq!(tested.contains(&Isa::NeonDot), dot, "{tested:?}");
}
