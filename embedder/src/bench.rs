//! How fast a network embeds here: what the `bench` commands print.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;
use thiserror::Error;

use crate::{EmbedError, Embedder, PhotoError, Profile, RgbImage, decode_photo, test_photo};

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The photo has no pixels.
    #[error("the photo cannot be measured with")]
    Photo(#[from] PhotoError),
    /// The network gives no embedding.
    #[error("the network cannot be measured")]
    Embed(#[from] EmbedError),
    /// There is no profile.
    #[error("the network cannot be profiled: {0}")]
    Profile(String),
}

/// Time of each step from a photo to its embedding, one photo after the other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Width and height of the photo, in pixels.
    pub photo: [u32; 2],
    /// Width and height of the network's input, in pixels.
    pub input: [u32; 2],
    /// The instructions of our own operators.
    pub instructions: &'static str,
    /// Threads that run the network together.
    pub threads: usize,
    /// How often each was measured.
    pub runs: usize,
    /// JPEG or PNG to pixels; `None` where the photo came as pixels.
    pub decode: Option<Percentiles>,
    /// Pixels to the network's input.
    pub preprocess: Percentiles,
    /// The network.
    pub network: Percentiles,
    /// All together.
    pub whole: Percentiles,
    /// Where the network's time goes, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
}

/// Of many times, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half are shorter.
    pub p50_us: f64,
    /// All but one of a hundred are shorter.
    pub p99_us: f64,
}

impl Percentiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |share: f64| {
            let place = (times.len() as f64 * share) as usize;
            times.get(place.min(times.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        Self { p50_us: at(0.5), p99_us: at(0.99) }
    }
}

/// Photos before those that are measured.
pub const WARM_UP: usize = 2;

/// Measures `runs` photos, after some that are not counted: the bytes of a JPEG or PNG, or without them a test photo.
///
/// # Errors
/// [`BenchError`].
pub fn measure(
    embedder: &Embedder,
    photo: Option<&[u8]>,
    runs: usize,
    with_profile: bool,
) -> Result<Measured, BenchError> {
    let drawn = test_photo(0);
    let preprocessing = embedder.metadata().preprocessing;
    let (mut decode, mut preprocess, mut network, mut whole) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut size = drawn.dimensions();
    let mut tensor = Vec::new();
    for run in 0..runs.max(1) + WARM_UP {
        let start = Instant::now();
        let decoded: Option<RgbImage> = photo.map(decode_photo).transpose()?;
        let pixels = decoded.as_ref().unwrap_or(&drawn);
        size = pixels.dimensions();
        let at_decoded = Instant::now();
        tensor = preprocessing.tensor(pixels);
        let at_tensor = Instant::now();
        embedder.embed_tensor(&tensor)?;
        let end = Instant::now();
        if run >= WARM_UP {
            decode.push(at_decoded - start);
            preprocess.push(at_tensor - at_decoded);
            network.push(end - at_tensor);
            whole.push(end - start);
        }
    }
    let profile = with_profile.then(|| embedder.network().profile(&tensor, runs)).transpose();
    Ok(Measured {
        photo: size.into(),
        input: [preprocessing.width, preprocessing.height],
        instructions: embedder.network().instructions(),
        threads: embedder.network().threads(),
        runs: whole.len(),
        decode: photo.map(|_| Percentiles::of(decode)),
        preprocess: Percentiles::of(preprocess),
        network: Percentiles::of(network),
        whole: Percentiles::of(whole),
        profile: profile.map_err(BenchError::Profile)?,
    })
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([width, height], [to_width, to_height]) = (self.photo, self.input);
        writeln!(
            f,
            "a photo of {width}x{height} to an input of {to_width}x{to_height}; own operators: {}; threads: {}; {} runs",
            self.instructions, self.threads, self.runs
        )?;
        writeln!(f, "{:12} {:>10} {:>10}", "step", "p50 ms", "p99 ms")?;
        let steps = [
            ("decode", self.decode),
            ("preprocess", Some(self.preprocess)),
            ("network", Some(self.network)),
            ("whole", Some(self.whole)),
        ];
        for (number, (step, times)) in steps.into_iter().filter_map(|(step, t)| Some((step, t?))).enumerate()
        {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "{step:12} {:10.2} {:10.2}", times.p50_us / 1e3, times.p99_us / 1e3)?;
        }
        self.profile.as_ref().map_or(Ok(()), |profile| write!(f, "\n\n{profile}"))
    }
}
