//! Plans against the same steps done one by one, each with room of its own.

use alloc::sync::Arc;
use alloc::vec::Vec;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::vec;

use glimpse_kernels::{Clamp, Dense, DenseI8, Depthwise, Integers, Isa, Layout, Memory, Rounding, Window};
use proptest::prelude::*;

use crate::{Function, Kernel, Operation, Plan, PlanBuilder, PlanError, Shape, Step, Value, Workers};

/// Numbers in -1..1 that look like nothing in particular.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A value by its definition: the number at each place.
#[derive(Clone)]
struct Naive {
    shape: Shape,
    values: Vec<f32>,
}

impl Naive {
    fn make(shape: Shape, at: impl Fn([usize; 4]) -> f32) -> Self {
        let [a, b, c, d] = shape.0;
        let place = |n: usize| [n / (b * c * d), n / (c * d) % b, n / d % c, n % d];
        Self { shape, values: (0..a * b * c * d).map(|n| at(place(n))).collect() }
    }

    /// The number at a place; sides of one stand for any.
    fn at(&self, place: [usize; 4]) -> f32 {
        let [_, b, c, d] = self.shape.0;
        let [w, x, y, z]: [usize; 4] = core::array::from_fn(|side| place[side] % self.shape.0[side]);
        self.values[((w * b + x) * c + y) * d + z]
    }
}

/// Puts the step that `choice` chooses, on values chosen likewise.
fn grow(builder: &mut PlanBuilder, known: &mut Vec<(Value, Naive)>, choice: u64) {
    let pick = |shift: u32| (choice >> shift) as usize;
    let (input, of) = known[pick(8) % known.len()].clone();
    let function = |x: f32| match pick(4) % 4 {
        0 => (Function::Square, x * x),
        1 => (Function::Scale(-0.5), x * -0.5),
        2 => (Function::Reciprocal, 1.0 / x),
        _ => (Function::Power(2.0), libm::powf(x, 2.0)),
    };
    let (shape, naive) = match choice % 6 {
        0 => (of.shape, Naive::make(of.shape, |place| function(of.at(place)).1)),
        1 => {
            // With sides of one wherever the bits say so, so that they fit.
            let ones =
                core::array::from_fn(
                    |side| {
                        if pick(16 + side as u32) & 1 == 1 { 1 } else { of.shape.0[side] }
                    },
                );
            let other = Naive::make(Shape(ones), |place| place.iter().sum::<usize>() as f32 - 1.5);
            let value = builder.constant(other.shape, other.values.clone()).unwrap();
            let (operation, of_two): (_, fn(f32, f32) -> f32) = match pick(4) % 4 {
                0 => (Operation::Add, |a, b| a + b),
                1 => (Operation::Multiply, |a, b| a * b),
                2 => (Operation::Max, f32::max),
                _ => (Operation::Min, f32::min),
            };
            let naive = Naive::make(of.shape, |place| of_two(of.at(place), other.at(place)));
            let output = builder.real(of.shape);
            let (left, right) = if pick(20) & 1 == 1 { (value, input) } else { (input, value) };
            builder.push(Step::Zip { operation, left, right, output }).unwrap();
            known.push((output, naive));
            return;
        }
        2 => {
            let axes: [bool; 4] = core::array::from_fn(|side| pick(16 + side as u32) & 1 == 1);
            let shape = Shape(core::array::from_fn(|side| if axes[side] { 1 } else { of.shape.0[side] }));
            let mut sums = Naive::make(shape, |_| 0.0);
            let [_, b, c, d] = shape.0;
            Naive::make(of.shape, |place| of.at(place));
            for n in 0..of.values.len() {
                let [_, bb, cc, dd] = of.shape.0;
                let place = [n / (bb * cc * dd), n / (cc * dd) % bb, n / dd % cc, n % dd];
                let to: [usize; 4] = core::array::from_fn(|side| if axes[side] { 0 } else { place[side] });
                sums.values[((to[0] * b + to[1]) * c + to[2]) * d + to[3]] += of.values[n];
            }
            let output = builder.real(shape);
            builder.push(Step::Sum { axes, input, output }).unwrap();
            known.push((output, sums));
            return;
        }
        3 => {
            let start: [usize; 4] = core::array::from_fn(|side| pick(16 + side as u32) % of.shape.0[side]);
            let shape = Shape(core::array::from_fn(|side| of.shape.0[side] - start[side]));
            let naive =
                Naive::make(shape, |place| of.at(core::array::from_fn(|side| place[side] + start[side])));
            let output = builder.real(shape);
            builder.push(Step::Slice { start, input, output }).unwrap();
            known.push((output, naive));
            return;
        }
        4 => {
            let mut order = [0, 1, 2, 3];
            order.rotate_left(pick(16) % 4);
            order.swap(pick(18) % 4, pick(20) % 4);
            let shape = Shape(order.map(|side| of.shape.0[side]));
            let naive = Naive::make(shape, |place| {
                let mut from = [0; 4];
                (0..4).for_each(|side| from[order[side]] = place[side]);
                of.at(from)
            });
            let output = builder.real(shape);
            builder.push(Step::Permute { order, input, output }).unwrap();
            known.push((output, naive));
            return;
        }
        _ => {
            let shape = Shape([1, 1, 1, of.values.len()]);
            let value = builder.reshaped(input, shape).unwrap();
            known.push((value, Naive { shape, values: of.values }));
            return;
        }
    };
    let output = builder.real(shape);
    builder.push(Step::Map { function: function(1.0).0, input, output }).unwrap();
    known.push((output, naive));
}

/// As [`crate::Alone`], but in shares.
struct Shares(usize);

impl Workers for Shares {
    fn count(&self) -> usize {
        self.0
    }

    fn share<T: Send>(&self, shares: Vec<T>, run: impl Fn(T) + Send + Sync) {
        assert!(shares.len() > 1 && shares.len() <= self.0);
        shares.into_iter().rev().for_each(run);
    }
}

fn run(plan: &Plan, tensor: &[f32]) -> Vec<f32> {
    let mut output = vec![f32::NAN; plan.output_len()];
    let mut workspace = plan.workspace();
    // The second time there is something in the buffers.
    plan.run(&mut workspace, tensor, &mut output);
    plan.run(&mut workspace, tensor, &mut output);
    output
}

fn same(found: &[f32], expected: &[f32]) -> bool {
    let near =
        |a: f32, b: f32| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-4 * b.abs().max(1.0);
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| near(*a, *b))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn values_are_kept_as_long_as_somebody_reads_them(
        sides in [1_usize..5, 1_usize..6, 1_usize..6], choices in prop::collection::vec(any::<u64>(), 1..20), seed: u64,
    ) {
        let tensor = numbers(sides.iter().product(), seed);
        let mut builder = PlanBuilder::new(sides);
        let shape = Shape([1, sides[0], sides[1], sides[2]]);
        let mut known = vec![(builder.input(), Naive { shape, values: tensor.clone() })];
        for choice in &choices {
            grow(&mut builder, &mut known, *choice);
        }
        // All of them together, so that each is read once more at the end.
        let mut total = (builder.input(), 0.0);
        for (number, (value, naive)) in known.iter().enumerate() {
            let sum = builder.real(Shape([1; 4]));
            builder.push(Step::Sum { axes: [true; 4], input: *value, output: sum }).unwrap();
            let all: f32 = naive.values.iter().sum();
            let both = builder.real(Shape([1; 4]));
            let left = if number == 0 { sum } else { total.0 };
            let operation = if number == 0 { Operation::Max } else { Operation::Add };
            builder.push(Step::Zip { operation, left, right: sum, output: both }).unwrap();
            total = (both, total.1 + all);
        }
        let plan = builder.finish(total.0).unwrap();
        let found = run(&plan, &tensor);
        // Sums of large and small numbers are near only as a whole.
        let scale: f32 = known.iter().flat_map(|(_, naive)| &naive.values).map(|x| x.abs()).sum();
        prop_assert!(
            found[0] == total.1 || !total.1.is_finite() || (found[0] - total.1).abs() <= 1e-4 * scale.max(1.0),
            "{} is not {}", found[0], total.1
        );
        let again = Plan::read(&plan.write()).unwrap();
        prop_assert!(same(&run(&again, &tensor), &found));
    }

    #[test]
    fn whatever_bytes_say_is_refused_or_can_be_run(at: usize, to: u8, cut in prop::option::of(any::<usize>())) {
        let (plan, tensor) = convolutions(Isa::Portable);
        let mut bytes = plan.write();
        let at = at % bytes.len();
        bytes[at] = to;
        if let Some(cut) = cut {
            bytes.truncate(cut % bytes.len());
            prop_assert!(Plan::read(&bytes).is_err());
        } else if let Ok(plan) = Plan::read(&bytes) && plan.input() == [3, 9, 7] {
            let ran = catch_unwind(AssertUnwindSafe(|| run(&plan, &tensor)));
            prop_assert!(ran.is_ok(), "byte {} as {}", at, to);
        }
    }
}

/// A network of every kind of convolution, and its input.
fn convolutions(isa: Isa) -> (Plan, Vec<f32>) {
    let image = [9, 7];
    let mut builder = PlanBuilder::new([3, 9, 7]);
    let window = Window { kernel: [3, 3], stride: [2, 1], before: [1, 1], after: [0, 1] };
    let size = window.output(image).unwrap();
    let dense = Dense::new(
        isa,
        [3, 10],
        window.clone(),
        Layout::Planes,
        (&numbers(270, 1), Some(&numbers(10, 2))),
        Clamp { low: 0.0, high: 6.0 },
    );
    let shape = Shape([1, size[0], size[1], 10]);
    let stem = builder.real(shape);
    let input = builder.input();
    let step = |kernel, image, input, residual, real, bytes| Step::Convolution {
        kernel: Arc::new(kernel),
        image,
        input,
        residual,
        real,
        bytes,
    };
    builder.push(step(Kernel::Dense(dense), image, input, None, Some(stem), None)).unwrap();
    let same = Window { kernel: [3, 3], stride: [1, 1], before: [1, 1], after: [1, 1] };
    let depthwise = Depthwise::new(isa, 10, same, (&numbers(90, 3), None), Clamp::NONE);
    let wide = builder.real(shape);
    builder.push(step(Kernel::Depthwise(depthwise), size, stem, None, Some(wide), None)).unwrap();
    let rounding = Rounding { step: 0.02, zero_point: 100 };
    let bytes = builder.bytes(shape);
    let layout = Layout::ChannelsLast;
    builder.push(Step::Round { isa, rounding, layout, input: wide, output: bytes }).unwrap();
    let weights: Vec<i8> = numbers(100, 4).iter().map(|x| (x * 127.0) as i8).collect();
    let (steps, bias) = (vec![0.0002; 10], vec![3; 10]);
    let integers = Integers { weights: &weights, steps: &steps, bias: &bias, zero_point: 100 };
    let small = DenseI8::new(isa, [10, 10], Window::POINT, integers, Clamp::NONE, Some(rounding));
    let (real, rounded) = (builder.real(shape), builder.bytes(shape));
    builder.push(step(Kernel::DenseI8(small), size, bytes, Some(stem), Some(real), Some(rounded))).unwrap();
    let back = builder.real(shape);
    builder.push(Step::Unround { isa, rounding, input: rounded, output: back }).unwrap();
    let sum = builder.real(shape);
    builder.push(Step::Zip { operation: Operation::Add, left: back, right: real, output: sum }).unwrap();
    (builder.finish(sum).unwrap(), numbers(3 * 9 * 7, 5))
}

#[test]
fn a_plan_that_was_written_gives_the_same_numbers_by_however_many_workers() {
    for isa in Isa::available() {
        let (plan, tensor) = convolutions(isa);
        let expected = run(&plan, &tensor);
        assert!(expected.iter().any(|x| *x != expected[0]) && expected.iter().all(|x| x.is_finite()));
        let bytes = plan.write();
        let again = Plan::read(&bytes).unwrap();
        assert_eq!(run(&again, &tensor), expected);
        // With weights where they are, and where boundaries are not those that they want.
        for beyond in [0, 4, 1] {
            let mut memory = vec![0; bytes.len() + 128];
            let place = memory.as_ptr().align_offset(64) + beyond;
            memory[place..][..bytes.len()].copy_from_slice(&bytes);
            let there = Plan::read_within(&Memory::new(memory), place..place + bytes.len()).unwrap();
            assert_eq!(run(&there, &tensor), expected, "{beyond} bytes beyond a boundary");
        }
        let (mut workspace, mut output, mut seen) = (plan.workspace(), expected.clone(), Vec::new());
        output.fill(f32::NAN);
        plan.run_with(&Shares(3), &mut workspace, &tensor, &mut output, |step| seen.push(step));
        assert_eq!(output, expected);
        assert_eq!(seen, (0..=plan.steps().len()).collect::<Vec<_>>());
    }
}

/// Raise the letter of the file's magic with whatever changes this, so that nobody reads old files as new ones.
#[test]
fn files_of_one_letter_have_one_form() {
    let bytes = convolutions(Isa::Portable).0.write();
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!((&bytes[..8], bytes.len(), sum), (&b"GLPLAN-C"[..], 3997, 16_086_084_743_202_160_662));
}

#[test]
fn steps_that_do_not_fit_are_refused_with_their_number() {
    let mut builder = PlanBuilder::new([1, 2, 2]);
    let (image, small) = (builder.input(), builder.real(Shape([1; 4])));
    let refused = |builder: &mut PlanBuilder, step, reason: &str| {
        let PlanError { step: number, reason: found } = builder.push(step).unwrap_err();
        assert_eq!((number, found), (Some(0), reason));
    };
    let function = Function::Sqrt;
    refused(&mut builder, Step::Map { function, input: image, output: small }, "its shapes do not fit");
    let map = |input, output| Step::Map { function, input, output };
    refused(&mut builder, map(small, image), "it reads a value that is not written yet");
    refused(&mut builder, map(image, image), "it writes a value that is there already");
    let huge = builder.real(Shape([1, 1 << 20, 1 << 20, 1]));
    refused(&mut builder, map(image, huge), "a value is too large");
    let start = [0, 0, 2, 0];
    refused(&mut builder, Step::Slice { start, input: image, output: small }, "its shapes do not fit");
    assert!(builder.constant(Shape([1, 1, 1, 2]), vec![1.0]).is_err());
    assert!(builder.reshaped(image, Shape([1, 1, 1, 5])).is_err());
    assert_eq!(builder.finish(small).unwrap_err().reason, "what it gives is not written by any step");
}
