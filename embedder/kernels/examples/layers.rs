//! Time of each convolution of EfficientNet-Lite0 at 224 px, in f32 and int8:
//! `cargo run --release -p glimpse-kernels --example layers [ISA [RUNS [f32|int8 [LAYER]]]]`. Each layer runs as often as the network has it, so that
//! a tool that counts instructions from outside sees whole networks.

use std::time::Instant;

use glimpse_kernels::{
    Clamp, Dense, DenseI8, Depthwise, DepthwiseI8, Integers, Isa, Layout, Outputs, Rounding, Window,
};

fn main() {
    let isa = std::env::args().nth(1).map_or_else(Isa::detect, |name| {
        Isa::ALL.into_iter().find(|isa| isa.name() == name).unwrap_or_else(Isa::detect)
    });
    let runs = std::env::args().nth(2).and_then(|runs| runs.parse().ok()).unwrap_or(40);
    let only = std::env::args().nth(3);
    let runs_of = |kind| if only.as_deref().is_none_or(|only| only == kind) { runs } else { 0 };
    let layer: Option<usize> = std::env::args().nth(4).and_then(|layer| layer.parse().ok());
    println!("{}", isa.name());
    let mut total = [0.0; 2];
    // Kernel, stride, channels of input and output, side of the input, how often.
    for (kernel, stride, inputs, outputs, side, times) in [
        (3, 2, 3, 32, 224, 1),
        (1, 1, 32, 16, 112, 1),
        (1, 1, 16, 96, 112, 1),
        (1, 1, 96, 24, 56, 1),
        (1, 1, 24, 144, 56, 2),
        (1, 1, 144, 24, 56, 1),
        (1, 1, 144, 40, 28, 1),
        (1, 1, 40, 240, 28, 2),
        (1, 1, 240, 40, 28, 1),
        (1, 1, 240, 80, 14, 1),
        (1, 1, 80, 480, 14, 3),
        (1, 1, 480, 80, 14, 2),
        (1, 1, 480, 112, 14, 1),
        (1, 1, 112, 672, 14, 3),
        (1, 1, 672, 112, 14, 2),
        (1, 1, 672, 192, 7, 1),
        (1, 1, 192, 1152, 7, 4),
        (1, 1, 1152, 192, 7, 3),
        (1, 1, 1152, 320, 7, 1),
        (1, 1, 320, 1280, 7, 1),
        (3, 1, 32, 0, 112, 1),
        (3, 2, 96, 0, 112, 1),
        (3, 1, 144, 0, 56, 1),
        (5, 2, 144, 0, 56, 1),
        (5, 1, 240, 0, 28, 1),
        (3, 2, 240, 0, 28, 1),
        (3, 1, 480, 0, 14, 2),
        (5, 1, 480, 0, 14, 1),
        (5, 1, 672, 0, 14, 2),
        (5, 2, 672, 0, 14, 1),
        (5, 1, 1152, 0, 7, 3),
        (3, 1, 1152, 0, 7, 1),
    ]
    .into_iter()
    .enumerate()
    .filter_map(|(place, shape)| layer.is_none_or(|layer| layer == place).then_some(shape))
    {
        let pads = if stride == 1 { [kernel / 2, kernel / 2] } else { [kernel / 2 - 1, kernel / 2] };
        let window =
            Window { kernel: [kernel; 2], stride: [stride; 2], before: [pads[0]; 2], after: [pads[1]; 2] };
        let [height, width] = window.output([side; 2]).expect("it fits");
        let depthwise = outputs == 0;
        let (depth, outputs) = if depthwise { (1, inputs) } else { (inputs, outputs) };
        let multiply_adds = height * width * outputs * depth * kernel * kernel;
        let clamp = Clamp { low: 0.0, high: 6.0 };

        let (input, mut output) = (vec![0.5; side * side * inputs], vec![0.0; height * width * outputs]);
        let weights = vec![0.1; outputs * depth * kernel * kernel];
        let real = if depthwise {
            let convolution = Depthwise::new(isa, inputs, window.clone(), (&weights, None), clamp);
            best(runs_of("f32") * times, || convolution.run([side; 2], &input, &mut output))
        } else {
            let layout = if inputs == 3 { Layout::Planes } else { Layout::ChannelsLast };
            let convolution =
                Dense::new(isa, [inputs, outputs], window.clone(), layout, (&weights, None), clamp);
            best(runs_of("f32") * times, || convolution.run([side; 2], &input, None, &mut output))
        };

        let (input, mut output) = (vec![100; side * side * inputs], vec![0; height * width * outputs]);
        let (weights, steps, bias) = (vec![3; weights.len()], vec![0.01; outputs], vec![0; outputs]);
        let integers = Integers { weights: &weights, steps: &steps, bias: &bias, zero_point: 3 };
        let rounding = Some(Rounding { step: 0.02, zero_point: 0 });
        let bytes = if depthwise {
            let convolution = DepthwiseI8::new(isa, inputs, window, integers, clamp, rounding);
            let run = || convolution.run([side; 2], &input, Outputs { real: None, bytes: Some(&mut output) });
            best(runs_of("int8") * times, run)
        } else {
            let convolution = DenseI8::new(isa, [inputs, outputs], window, integers, clamp, rounding);
            best(runs_of("int8") * times, || {
                convolution.run([side; 2], &input, None, Outputs { real: None, bytes: Some(&mut output) });
            })
        };
        for (sum, one) in total.iter_mut().zip([real, bytes]) {
            *sum += one * f64::from(times);
        }
        println!(
            "{:9} {kernel}x{kernel}/{stride} {inputs:4} -> {outputs:4} at {side:3}, x {times}: \
             f32 {:7.1} us, {:5.1} GMAC/s; int8 {:7.1} us, {:5.1} GMAC/s",
            if depthwise { "depthwise" } else { "dense" },
            real * 1e6,
            multiply_adds as f64 / real / 1e9,
            bytes * 1e6,
            multiply_adds as f64 / bytes / 1e9,
        );
    }
    println!("all: f32 {:.2} ms, int8 {:.2} ms", total[0] * 1e3, total[1] * 1e3);
}

/// The shortest of many runs, in seconds.
fn best(runs: u32, mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(time).fold(f64::INFINITY, f64::min)
}
