//! What a camera's frames cost in memory, once buffers are as large as they get.

use allocation_counter::{AllocationInfo, measure};
use glimpse_embedder::{Colours, Frame, Preprocessing, Preprocessor};

const SIZE: [u32; 2] = [640, 480];

/// The network's input.
const SIDE: u32 = 224;

fn steady(frame: &Frame<'_>) -> AllocationInfo {
    let preprocessing = Preprocessing { width: SIDE, height: SIDE, mean: [0.5; 3], std: [0.5; 3] };
    let mut preprocessor = Preprocessor::new(preprocessing);
    let mut tensor = vec![0.0; preprocessing.tensor_len()];
    for _ in 0..2 {
        preprocessor.tensor_into(frame, &mut tensor);
    }
    measure(|| preprocessor.tensor_into(frame, &mut tensor))
}

/// No buffer of pixels is made anew, and nothing is kept. What is left are the tables of weights of the resizer, which it makes for each
/// of its passes: a row of weights for each row and column of the input, however large the frame is made of them.
#[test]
fn a_frame_after_the_first_costs_tables_and_no_pixels() {
    let (pixels, input) = ((SIZE[0] * SIZE[1]) as usize, SIDE as usize);
    let bytes: Vec<u8> = (0..2 * pixels).map(|i| (i * 31 % 251) as u8).collect();
    let rgb = glimpse_embedder::RgbImage::from_fn(SIZE[0], SIZE[1], |x, y| image::Rgb([x as u8, y as u8, 7]));
    for (name, passes, frame) in [
        ("RGB", 2, Frame::from(&rgb)),
        ("YUYV", 4, Frame::yuyv(SIZE, 2 * SIZE[0] as usize, &bytes, Colours::CAMERA).unwrap()),
        ("NV12", 4, Frame::nv12(SIZE, SIZE[0] as usize, &bytes, Colours::CAMERA).unwrap()),
    ] {
        let cost = steady(&frame);
        // A row has 7 weights here, in up to three forms of at most 8 bytes, and where it begins.
        let tables = passes * input * (3 * 7 * 8 + 64);
        assert!(
            cost.bytes_total as usize <= tables,
            "{name}: {} bytes, and tables of {tables}",
            cost.bytes_total
        );
        assert!((cost.bytes_max as usize) < pixels / 4, "{name}: {} bytes at a time", cost.bytes_max);
        assert_eq!(cost.bytes_current, 0, "{name}: something is kept");
    }
    let same = glimpse_embedder::RgbImage::new(SIDE, SIDE);
    let cost = steady(&Frame::from(&same));
    assert_eq!(cost.count_total, 0, "a photo of the input's size allocates nothing");
}
