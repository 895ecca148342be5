//! What a camera's frames cost in memory, once buffers are as large as they get, and a network that was kept.

use std::fs;
use std::path::Path;

use allocation_counter::{AllocationInfo, measure};
use glimpse_embedder::{Colours, Embedder, EmbedderOptions, Frame, PlanCache, Preprocessing, Preprocessor};

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

/// Its weights stay in the file that they were kept in: what a network is run in is less than they are, and is all that it takes.
#[test]
fn a_kept_network_costs_no_memory_for_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let cache = PlanCache::new(folder.path().to_owned());
    for name in ["query.onnx", "query-int8.onnx"] {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo").join(name);
        let load = || Embedder::load_cached(&model, &EmbedderOptions::default(), &cache).unwrap();
        let run_in = Embedder::portable_model(&model).unwrap().memory_bytes() as i64;
        let weights = fs::metadata(&model).unwrap().len() as i64;
        load();
        let mut embedder = None;
        let cost = measure(|| embedder = Some(load()));
        assert!(
            cost.bytes_current < run_in + weights / 4,
            "{name}: {} bytes are kept; it is run in {run_in}, and its weights have {weights}",
            cost.bytes_current
        );
        // And no copy of them on the way, but for the network's own file, by which the kept one is known.
        assert!(
            (cost.bytes_max as i64) < weights + weights / 4 + run_in,
            "{name}: {} bytes at a time",
            cost.bytes_max
        );
    }
}
