//! The embedder beside ONNX Runtime: what `make bench-embed` runs, see `embedder/bench/run.sh`.
//!
//! `bench_embed speed` measures in one process, engines taking turns on the same tensor, one thread each. `bench_embed infer` runs
//! one engine so many times, for a tool that counts its instructions from outside.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use glimpse_embedder::{
    Colours, Embedder, EmbedderOptions, Frame, ModelMetadata, Network, PlanCache, Preprocessing,
    Preprocessor, RgbImage, Threads, decode_photo, onnxruntime, read_metadata,
};
use serde_json::json;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let mut options = BTreeMap::new();
    while let Some(name) = arguments.next() {
        options.insert(name, arguments.next().ok_or("a value for each option")?);
    }
    let get = |name: &str| options.get(name).cloned().ok_or_else(|| format!("{name} is missing"));
    match command.as_str() {
        "speed" => speed(&Speed {
            f32: get("--f32")?.into(),
            int8: get("--int8")?.into(),
            library: get("--onnxruntime")?.into(),
            photo: get("--photo")?.into(),
            large: get("--large")?.into(),
            photos: get("--photos")?.into(),
            turns: get("--turns")?.parse()?,
        }),
        "profile" => {
            let model: PathBuf = get("--model")?.into();
            let metadata = read_metadata(&model)?;
            let network = load(&get("--engine")?, &model, &metadata)?;
            println!("{}", network.profile(&vec![0.1; metadata.preprocessing.tensor_len()], 20)?);
            Ok(())
        }
        "photos" => photos(Path::new(&get("--from")?), Path::new(&get("--out")?)),
        "infer" => {
            if let Ok(library) = get("--onnxruntime") {
                onnxruntime::load(&PathBuf::from(library))?;
            }
            infer(&get("--engine")?, get("--model")?.into(), get("--times")?.parse()?)
        }
        _ => Err("bench_embed speed|infer, with options; see embedder/bench/run.sh".into()),
    }
}

struct Speed {
    f32: PathBuf,
    int8: PathBuf,
    library: PathBuf,
    photo: PathBuf,
    large: PathBuf,
    photos: PathBuf,
    turns: usize,
}

/// One engine with one network.
struct Runner {
    name: &'static str,
    network: Network,
    times: Vec<Duration>,
}

fn load(engine: &str, model: &Path, metadata: &ModelMetadata) -> Result<Network, Failure> {
    let (width, height) = (metadata.preprocessing.width, metadata.preprocessing.height);
    Ok(match engine {
        "ours" => Network::load(model, width, height)?,
        "tract" => Network::load_with(model, width, height, &EmbedderOptions::engine_alone())?,
        "onnxruntime" => Network::load_in_onnxruntime(model, width, height)?,
        _ => return Err("engines are ours, tract and onnxruntime".into()),
    })
}

/// Time that this process has had on processors, all threads together.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let start = cpu_time();
    let result = run();
    (result, cpu_time().saturating_sub(start))
}

fn speed(speed: &Speed) -> Result<(), Failure> {
    onnxruntime::load(&speed.library)?;
    let metadata = read_metadata(&speed.f32)?;
    let jpeg = std::fs::read(&speed.photo)?;
    let photo = decode_photo(&jpeg)?;
    let tensor = metadata.preprocessing.tensor(&photo);
    let mut runners = Vec::new();
    for (name, engine, model) in [
        ("f32_ours", "ours", &speed.f32),
        ("f32_tract", "tract", &speed.f32),
        ("f32_onnxruntime", "onnxruntime", &speed.f32),
        ("int8_ours", "ours", &speed.int8),
        ("int8_tract", "tract", &speed.int8),
        ("int8_onnxruntime", "onnxruntime", &speed.int8),
    ] {
        runners.push(Runner { name, network: load(engine, model, &metadata)?, times: Vec::new() });
    }
    let embedder = Embedder::load(&speed.f32)?;
    let (mut decoding, mut resizing, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..speed.turns + 3 {
        for runner in &mut runners {
            let (output, time) = timed(|| runner.network.run(&tensor));
            output?;
            // The first turns fill caches.
            if turn >= 3 {
                runner.times.push(time);
            }
        }
        let (photo, decoded) = timed(|| decode_photo(&jpeg));
        let photo = photo?;
        let (tensor, resized) = timed(|| metadata.preprocessing.tensor(&photo));
        let (embedding, ran) = timed(|| embedder.embed_tensor(&tensor));
        embedding?;
        if turn >= 3 {
            decoding.push(decoded);
            resizing.push(resized);
            whole.push(decoded + resized + ran);
        }
    }
    let median = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e3
    };
    let milliseconds: BTreeMap<&str, f64> =
        runners.iter().map(|runner| (runner.name, median(&runner.times))).collect();
    // A ratio for each turn, so that what disturbs both disturbs neither.
    let ratio = |ours: &str, theirs: &str| {
        let of = |name: &str| runners.iter().find(|runner| runner.name == name).map(|runner| &runner.times);
        let (Some(ours), Some(theirs)) = (of(ours), of(theirs)) else { return f64::NAN };
        let mut ratios: Vec<f64> =
            ours.iter().zip(theirs).map(|(ours, theirs)| ours.as_secs_f64() / theirs.as_secs_f64()).collect();
        ratios.sort_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    };
    let whole_of = |jpeg: &[u8]| -> Result<[f64; 2], Failure> {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..5 {
            let (photo, decoded) = timed(|| decode_photo(jpeg));
            let photo = photo?;
            times[0].push(decoded);
            times[1].push(timed(|| metadata.preprocessing.tensor(&photo)).1);
        }
        Ok(times.map(|times| median(&times)))
    };
    let large = whole_of(&std::fs::read(&speed.large)?)?;
    let wall = |threads: Threads| -> Result<f64, Failure> {
        let options = EmbedderOptions { threads, ..EmbedderOptions::default() };
        let embedder = Embedder::load_with(&speed.f32, &options)?;
        let mut times = Vec::new();
        for turn in 0..speed.turns + 3 {
            let start = Instant::now();
            embedder.embed_tensor(&tensor)?;
            if turn >= 3 {
                times.push(start.elapsed());
            }
        }
        Ok(median(&times))
    };
    let by_threads = [wall(Threads::ONE)?, wall(Threads::All)?];
    let plans = std::env::temp_dir().join(format!("bench-embed-plans-{}", std::process::id()));
    let cache = PlanCache::new(plans.clone());
    let mut loading: BTreeMap<&str, f64> = BTreeMap::new();
    for (name, model) in [("f32", &speed.f32), ("int8", &speed.int8)] {
        let (mut built, mut kept) = (Vec::new(), Vec::new());
        let options = EmbedderOptions::default();
        // This one is kept.
        Embedder::load_cached(model, &options, &cache)?;
        for _ in 0..9 {
            let start = Instant::now();
            Embedder::load(model)?;
            built.push(start.elapsed());
            let start = Instant::now();
            Embedder::load_cached(model, &options, &cache)?;
            kept.push(start.elapsed());
        }
        loading.insert(name, median(&built));
        loading.insert(
            if name == "f32" { "f32 from a kept plan" } else { "int8 from a kept plan" },
            median(&kept),
        );
    }
    std::fs::remove_dir_all(&plans)?;
    let together = batches(&speed.f32, &tensor, speed.turns)?;
    let (cosine, worst, photos) = agreement(&embedder, &Embedder::load(&speed.int8)?, &speed.photos)?;
    let report = json!({
        "machine": machine(),
        "turns": speed.turns,
        "instructions": EmbedderOptions::default().isa.name(),
        "cpu_ms": milliseconds,
        "f32_ratio_to_onnxruntime": ratio("f32_ours", "f32_onnxruntime"),
        "f32_tract_ratio_to_onnxruntime": ratio("f32_tract", "f32_onnxruntime"),
        "int8_ratio_to_onnxruntime": ratio("int8_ours", "int8_onnxruntime"),
        "int8_tract_ratio_to_onnxruntime": ratio("int8_tract", "int8_onnxruntime"),
        "photo": [photo.width(), photo.height()],
        "decode_ms": median(&decoding),
        "resize_ms": median(&resizing),
        "whole_ms": median(&whole),
        "frame_ms": frames(metadata.preprocessing, &photo, speed.turns)?,
        "load_ms": loading,
        "batch_ms_a_photo": together,
        "wall_ms_one_thread": by_threads[0],
        "wall_ms_all_threads": by_threads[1],
        "large_decode_ms": large[0],
        "large_resize_ms": large[1],
        "int8_cosine_to_f32": cosine,
        "int8_cosine_to_f32_worst": worst,
        "int8_photos": photos,
        "preprocess_share": (median(&decoding) + median(&resizing)) / median(&whole),
    });
    println!("{report:#}");
    Ok(())
}

/// Milliseconds of one core for each photo, of so many that go through the network together.
fn batches(model: &Path, tensor: &[f32], turns: usize) -> Result<BTreeMap<usize, f64>, Failure> {
    let sizes = [1, 2, 4, 8];
    let mut embedders = Vec::new();
    for size in sizes {
        let batch = NonZeroUsize::new(size).ok_or("a batch of none")?;
        let options = EmbedderOptions { batch, ..EmbedderOptions::default() };
        embedders.push((size, Embedder::load_with(model, &options)?, Vec::new()));
    }
    let tensors = vec![tensor.to_vec(); 8];
    for _ in 0..turns.div_ceil(8) {
        for (_, embedder, times) in &mut embedders {
            let (embedded, time) = timed(|| embedder.embed_tensors(&tensors));
            embedded.into_iter().collect::<Result<Vec<_>, _>>()?;
            times.push(time);
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e3 / 8.0
    };
    Ok(embedders.into_iter().map(|(size, _, times)| (size, median(times))).collect())
}

/// Milliseconds from a camera's frame to the network's input: each format as it is, and YUYV by way of a copy in RGB.
fn frames(
    preprocessing: Preprocessing,
    photo: &RgbImage,
    turns: usize,
) -> Result<BTreeMap<&'static str, f64>, Failure> {
    let (width, height) = (photo.width() & !1, photo.height() & !1);
    // Colours do not matter for time: luma is the photo's green, chroma its blue and red.
    let (mut yuyv, mut luma, mut chroma) = (Vec::new(), Vec::new(), Vec::new());
    for (y, x) in (0..height).flat_map(|y| (0..width).step_by(2).map(move |x| (y, x))) {
        let ([r, g, b], [_, next, _]) = (photo.get_pixel(x, y).0, photo.get_pixel(x + 1, y).0);
        yuyv.extend([g, b, next, r]);
        luma.extend([g, next]);
        if y % 2 == 0 {
            chroma.extend([b, r]);
        }
    }
    luma.extend(chroma);
    let yuyv = Frame::yuyv([width, height], 2 * width as usize, &yuyv, Colours::CAMERA)?;
    let nv12 = Frame::nv12([width, height], width as usize, &luma, Colours::CAMERA)?;
    let mut preprocessor = Preprocessor::new(preprocessing);
    let mut tensor = vec![0.0; preprocessing.tensor_len()];
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for _ in 0..turns {
        for (name, frame) in [("rgb", Frame::from(photo)), ("yuyv", yuyv), ("nv12", nv12)] {
            let ((), time) = timed(|| preprocessor.tensor_into(&frame, &mut tensor));
            times.entry(name).or_default().push(time);
        }
        let ((), time) = timed(|| {
            let copy = yuyv.to_rgb();
            preprocessor.tensor_into(&Frame::from(&copy), &mut tensor);
        });
        times.entry("yuyv by way of RGB").or_default().push(time);
    }
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e3
    };
    Ok(times.into_iter().map(|(name, times)| (name, median(times))).collect())
}

/// The processor's name, and how many cores there are.
fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|name| name.1);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {cores} cores", name.unwrap_or("unknown processor"))
}

/// All JPEGs under a folder, in the order of their names.
fn jpegs(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(jpegs(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "jpg") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Mean and least cosine of two networks' embeddings of the same photos, and how many these are.
fn agreement(one: &Embedder, other: &Embedder, photos: &Path) -> Result<(f64, f64, usize), Failure> {
    let mut cosines = Vec::new();
    for path in jpegs(photos)? {
        let photo = decode_photo(&std::fs::read(path)?)?;
        let (a, b) = (one.embed(&photo)?, other.embed(&photo)?);
        cosines.push(a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>());
    }
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    Ok((mean, cosines.iter().copied().fold(1.0, f64::min), cosines.len()))
}

/// A photo as a camera gives it, 640 x 480, and one of twelve megapixels, both from the first photo of a folder.
fn photos(from: &Path, out: &Path) -> Result<(), Failure> {
    let first = jpegs(from)?.into_iter().next().ok_or("no photo")?;
    let photo = decode_photo(&std::fs::read(first)?)?;
    for (name, width, height) in [("camera.jpg", 640, 480), ("large.jpg", 4000, 3000)] {
        let resized = image::imageops::resize(&photo, width, height, image::imageops::FilterType::CatmullRom);
        let mut file = std::io::BufWriter::new(std::fs::File::create(out.join(name))?);
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut file, 90).encode_image(&resized)?;
    }
    Ok(())
}

fn infer(engine: &str, model: PathBuf, times: usize) -> Result<(), Failure> {
    let metadata = read_metadata(&model)?;
    let network = load(engine, &model, &metadata)?;
    let tensor: Vec<f32> =
        (0..metadata.preprocessing.tensor_len()).map(|i| ((i * 37 % 255) as f32 - 127.0) / 128.0).collect();
    let mut last = Vec::new();
    for _ in 0..times {
        last = network.run(&tensor)?;
    }
    println!("{:?}", &last.get(..4));
    Ok(())
}
