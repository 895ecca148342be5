//! A video file as camera, for tests and for trying things out: Motion JPEG and YUV4MPEG2 (`.y4m`) with 4:2:0.
//!
//! Both are read here, with limits. Other videos become one of them by
//! `ffmpeg -i clip.mp4 -pix_fmt yuv420p clip.y4m`, or `-c:v mjpeg -f mjpeg clip.mjpeg`.
//!
//! A video has a time of its own. For a finite job (`--once`) that is the number of frames read, so that the job takes no
//! longer than its photos, and ends with the video. Else the video runs at its own rate, as a camera would: what comes too
//! late is left out, and behind its end it begins anew.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use glimpse_embedder::{Colours, FrameError, PhotoError};
use thiserror::Error;

use super::mjpeg::{self, StreamError};
use super::picture::{Buffer, Photo, Picture, Pool};
use crate::ports::{Capture, Error, ErrorKind};

/// Frames a second where a file does not say.
const RATE_DEFAULT: f64 = 25.0;

/// Frames a second that a file may have.
const RATES: std::ops::RangeInclusive<f64> = 0.01..=1000.0;

/// The longest side of a YUV4MPEG2 video, in pixels.
const SIDE_MAX: u32 = 4096;

/// The longest line of a YUV4MPEG2 header.
const LINE_BYTES_MAX: usize = 1024;

/// Why a video gives no frame.
#[derive(Debug, Error)]
pub enum VideoError {
    /// It cannot be opened or read.
    #[error("cannot read the video {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is of another kind.
    #[error("{path} is no video that can be read: {reason}; see docs/edge.md for how to make one")]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// One frame is damaged; the next call goes on with the next one.
    #[error("{name}: {reason}")]
    Frame {
        /// The frame.
        name: String,
        /// Why.
        reason: String,
    },
}

impl Error for VideoError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Frame { .. } => ErrorKind::Input,
            Self::Read { .. } | Self::Format { .. } => ErrorKind::Configuration,
        }
    }
}

/// A video file.
#[derive(Debug)]
pub struct VideoCamera {
    path: PathBuf,
    once: bool,
    open: Option<Open>,
    rate: f64,
    /// Frames read since the beginning, all rounds together.
    frames: u64,
    /// Frames of this round.
    round: u64,
    is_over: bool,
    pool: Pool,
}

#[derive(Debug)]
struct Open {
    stream: BufReader<File>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Mjpeg,
    Y4m { size: [u32; 2], colours: Colours },
}

impl VideoCamera {
    /// The frames of a file; `once` ends with it, and else it begins anew.
    pub fn new(path: PathBuf, once: bool) -> Self {
        let (open, rate, pool) = (None, RATE_DEFAULT, Pool::default());
        Self { path, once, open, rate, frames: 0, round: 0, is_over: false, pool }
    }

    /// The video's own time: that of the frames read so far.
    pub fn time(&self) -> Duration {
        Duration::from_secs_f64(self.frames as f64 / self.rate)
    }

    /// Whether it has come to its end.
    pub const fn is_over(&self) -> bool {
        self.is_over
    }

    /// Passes over the frames before `time`. Reads them, and decodes none.
    ///
    /// # Errors
    /// As [`photo`](Self::photo), but for damaged frames, which are passed over too.
    pub fn pass(&mut self, time: Duration) -> Result<(), VideoError> {
        let mut buffer = self.pool.empty();
        while self.time() < time && !self.is_over {
            match self.read(&mut buffer) {
                Err(VideoError::Frame { .. }) | Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Passes over the frames that should have been shown before `now`, but the last of them.
    ///
    /// # Errors
    /// As [`pass`](Self::pass).
    pub fn keep_up(&mut self, now: Duration) -> Result<(), VideoError> {
        self.pass(now.saturating_sub(Duration::from_secs_f64(1.0 / self.rate)))
    }

    /// The next frame.
    ///
    /// # Errors
    /// [`VideoError`]
    pub fn photo(&mut self) -> Result<Capture<Photo>, VideoError> {
        let mut buffer = self.pool.empty();
        let Some(kind) = self.read(&mut buffer)? else { return Ok(Capture::End) };
        let name = self.name();
        let picture = match kind {
            Kind::Mjpeg => mjpeg::decode(&buffer)
                .map(Picture::from)
                .map_err(|error: PhotoError| crate::linux::output::chain(&error)),
            Kind::Y4m { size, colours } => {
                let picture = Picture::nv12(size, size[0] as usize, buffer, colours);
                picture.map_err(|error: FrameError| error.to_string())
            }
        };
        match picture {
            Ok(picture) => Ok(Capture::Photo(Photo { name, taken_at: None, picture })),
            Err(reason) => Err(VideoError::Frame { name, reason }),
        }
    }

    fn name(&self) -> String {
        format!("{} #{}", self.path.display(), self.round)
    }

    /// Reads a frame; `None` at the end.
    fn read(&mut self, buffer: &mut Buffer) -> Result<Option<Kind>, VideoError> {
        if self.is_over {
            return Ok(None);
        }
        // The file's end, once; twice in a row it has no frames.
        for _ in 0..2 {
            let open = if let Some(open) = &mut self.open {
                open
            } else {
                let (open, rate) = Open::file(&self.path)?;
                (self.rate, self.round) = (rate, 0);
                self.open.insert(open)
            };
            let kind = open.kind;
            match open.frame(buffer) {
                Ok(true) => {
                    self.frames += 1;
                    self.round += 1;
                    return Ok(Some(kind));
                }
                Ok(false) if self.round == 0 => {
                    let reason = "there is no frame in it".to_owned();
                    return Err(VideoError::Format { path: self.path.clone(), reason });
                }
                Ok(false) if self.once => {
                    self.is_over = true;
                    return Ok(None);
                }
                Ok(false) => self.open = None,
                Err(StreamError::Read(source)) => {
                    return Err(VideoError::Read { path: self.path.clone(), source });
                }
                Err(error) => {
                    // It counts, so that a video of nothing but rubbish has an end too.
                    self.frames += 1;
                    self.round += 1;
                    let error = VideoError::Frame { name: self.name(), reason: error.to_string() };
                    // What follows is of another length, or nothing.
                    if matches!(kind, Kind::Y4m { .. }) {
                        self.is_over = self.once;
                        self.open = None;
                    }
                    return Err(error);
                }
            }
        }
        Ok(None)
    }
}

impl Open {
    fn file(path: &Path) -> Result<(Self, f64), VideoError> {
        let read = |source| VideoError::Read { path: path.to_owned(), source };
        let format = |reason| VideoError::Format { path: path.to_owned(), reason };
        // What it is gets asked before it is opened: opening a pipe would wait for its other end.
        if !std::fs::metadata(path).map_err(read)?.is_file() {
            return Err(format("it is no file".to_owned()));
        }
        let file = File::open(path).map_err(read)?;
        let mut stream = BufReader::with_capacity(1 << 16, file);
        let start = stream.fill_buf().map_err(read)?;
        match start {
            [0xff, 0xd8, ..] => Ok((Self { stream, kind: Kind::Mjpeg }, RATE_DEFAULT)),
            [b'Y', b'U', b'V', b'4', ..] => {
                let line = line(&mut stream).map_err(read)?;
                let (kind, rate) = line
                    .as_deref()
                    .map_or(Err("its first line has no end".to_owned()), header)
                    .map_err(format)?;
                Ok((Self { stream, kind }, rate))
            }
            [] => Err(format("it is empty".to_owned())),
            _ => Err(format("it begins neither as Motion JPEG nor as YUV4MPEG2".to_owned())),
        }
    }

    fn frame(&mut self, buffer: &mut Buffer) -> Result<bool, StreamError> {
        match self.kind {
            Kind::Mjpeg => mjpeg::read_frame(&mut self.stream, buffer.bytes_mut()),
            Kind::Y4m { size, .. } => self.planes(size, buffer.bytes_mut()),
        }
    }

    /// Reads planes of Y, Cb and Cr as one of Y and one of both.
    fn planes(&mut self, size: [u32; 2], frame: &mut Vec<u8>) -> Result<bool, StreamError> {
        if self.stream.fill_buf()?.is_empty() {
            return Ok(false);
        }
        match line(&mut self.stream)? {
            Some(line) if line.split(' ').next() == Some("FRAME") => {}
            _ => return Err(StreamError::Damaged),
        }
        let [width, height] = size.map(|side| side as usize);
        let (luma, chroma) = (width * height, width * height / 4);
        frame.resize(luma + 2 * chroma, 0);
        let (levels, pairs) = frame.split_at_mut(luma);
        let cut = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => StreamError::Cut,
            _ => StreamError::Read(error),
        };
        self.stream.read_exact(levels).map_err(cut)?;
        let pairs = pairs.as_chunks_mut::<2>().0;
        for half in 0..2 {
            for row in pairs.chunks_mut(width / 2) {
                let mut line = [0; SIDE_MAX as usize / 2];
                let line = line.get_mut(..row.len()).unwrap_or_default();
                self.stream.read_exact(line).map_err(cut)?;
                row.iter_mut().zip(line).for_each(|(pair, level)| pair[half] = *level);
            }
        }
        Ok(true)
    }
}

/// A line without its end; `None` where it has none.
fn line(stream: &mut BufReader<File>) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    stream.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut bytes)?;
    Ok(bytes.strip_suffix(b"\n").map(|line| String::from_utf8_lossy(line).into_owned()))
}

/// What the first line of a YUV4MPEG2 file says (`man yuv4mpeg` of mjpegtools).
fn header(line: &str) -> Result<(Kind, f64), String> {
    let mut words = line.split_ascii_whitespace();
    if words.next() != Some("YUV4MPEG2") {
        return Err("it begins neither as Motion JPEG nor as YUV4MPEG2".to_owned());
    }
    let (mut sides, mut rate, mut colours) = ([0, 0], RATE_DEFAULT, Colours::CAMERA);
    for word in words {
        let (kind, value) = word.split_at_checked(1).unwrap_or((word, ""));
        let side = || {
            let side = value
                .parse()
                .ok()
                .filter(|side: &u32| (2..=SIDE_MAX).contains(side) && side.is_multiple_of(2));
            side.ok_or_else(|| {
                format!("its sides must be even numbers of 2 to {SIDE_MAX}, and one is {value}")
            })
        };
        match kind {
            "W" => sides[0] = side()?,
            "H" => sides[1] = side()?,
            "F" => {
                let of = value
                    .split_once(':')
                    .and_then(|(n, d)| Some(n.parse::<f64>().ok()? / d.parse::<f64>().ok()?));
                // 0:0 stands for what is not known.
                rate = of.filter(|rate| RATES.contains(rate)).unwrap_or(RATE_DEFAULT);
            }
            "C" if !["420", "420jpeg", "420mpeg2", "420paldv"].contains(&value) => {
                return Err(format!("its colours are {value}, and 4:2:0 with 8 bits is needed"));
            }
            "X" if value.eq_ignore_ascii_case("COLORRANGE=FULL") => colours.full_range = true,
            _ => {}
        }
    }
    if sides.contains(&0) {
        return Err("its first line lacks width or height".to_owned());
    }
    Ok((Kind::Y4m { size: sides, colours }, rate))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::mjpeg::tests::jpeg;
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    /// A grey video of these levels, 16 x 8 at 10 frames a second.
    pub(crate) fn y4m(levels: &[u8]) -> Vec<u8> {
        let mut file = b"YUV4MPEG2 W16 H8 F10:1 Ip A1:1 C420jpeg XYSCSS=420JPEG XCOLORRANGE=FULL\n".to_vec();
        for level in levels {
            file.extend(b"FRAME\n");
            file.extend(vec![*level; 16 * 8]);
            file.extend(vec![128; 16 * 8 / 2]);
        }
        file
    }

    fn camera(bytes: &[u8], once: bool) -> (tempfile::NamedTempFile, VideoCamera) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        let camera = VideoCamera::new(file.path().into(), once);
        (file, camera)
    }

    fn all(camera: &mut VideoCamera) -> Vec<String> {
        let mut found = Vec::new();
        for _ in 0..100 {
            match camera.photo() {
                Ok(Capture::Photo(photo)) => {
                    let level = photo.picture.grey(&mut Vec::new()).unwrap().mean();
                    found.push(format!("{level}{}", &photo.name[photo.name.rfind('#').unwrap()..]));
                }
                Ok(_) => return found,
                Err(error) => {
                    found.push(format!("! {error}"));
                    if error.kind() != ErrorKind::Input {
                        return found;
                    }
                }
            }
        }
        found
    }

    #[test]
    fn the_frames_of_a_y4m_come_in_their_order_and_then_it_ends() {
        let (_file, mut camera) = camera(&y4m(&[10, 60, 200]), true);
        assert_eq!(all(&mut camera), ["10#1", "60#2", "200#3"]);
        assert_eq!(camera.time(), Duration::from_millis(300));
        assert!(camera.is_over());
        assert!(matches!(camera.photo(), Ok(Capture::End)));
    }

    #[test]
    fn without_an_end_it_begins_anew() {
        let (_file, mut camera) = camera(&y4m(&[10, 60]), false);
        let found = all(&mut camera);
        assert_eq!((found.len(), &found[1..4]), (100, &["60#2", "10#1", "60#2"].map(String::from)[..]));
    }

    #[test]
    fn planes_become_colours() {
        // Red of JPEG's colours, from the planes of its definition.
        let mut file = b"YUV4MPEG2 W4 H2 XCOLORRANGE=FULL\nFRAME Ip\n".to_vec();
        file.extend([[76; 8].as_slice(), &[85; 2], &[255; 2]].concat());
        let (_file, mut camera) = camera(&file, true);
        let Ok(Capture::Photo(photo)) = camera.photo() else { panic!("a frame") };
        let rgb = photo.picture.to_rgb();
        assert!(rgb.pixels().all(|pixel| pixel.0[0] > 250 && pixel.0[1] < 5 && pixel.0[2] < 5), "{rgb:?}");
    }

    #[test]
    fn an_mjpeg_stream_is_a_video_and_a_damaged_frame_does_not_stop_it() {
        let [a, b] = [jpeg([32, 16], 0), jpeg([32, 16], 250)];
        let mut bad = b.clone();
        let middle = bad.len() / 3;
        bad[middle..middle + 60].fill(0xff);
        let (_file, mut camera) =
            camera(&[&a[..], &[0xff, 0xd8, 0, 0], &b, &a[..a.len() - 20]].concat(), true);
        let found = all(&mut camera);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[0].ends_with("#1") && found[1].ends_with("#2: a frame is damaged"), "{found:?}");
        assert!(
            found[2].ends_with("#3") && found[3].ends_with("cut off in the middle of a frame"),
            "{found:?}"
        );
    }

    #[test]
    fn passing_goes_to_a_time_and_decodes_nothing() {
        let (_file, mut camera) = camera(&y4m(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), true);
        camera.pass(Duration::ZERO).unwrap();
        assert!(matches!(camera.photo(), Ok(Capture::Photo(photo)) if photo.name.ends_with("#1")));
        camera.pass(Duration::from_millis(500)).unwrap();
        assert!(matches!(camera.photo(), Ok(Capture::Photo(photo)) if photo.name.ends_with("#6")));
        camera.pass(Duration::from_hours(1)).unwrap();
        assert!(camera.is_over());
    }

    #[test]
    fn what_is_no_video_is_told_with_its_name() {
        for (bytes, part) in [
            (&b""[..], "is empty"),
            (b"RIFF....AVI ", "begins neither"),
            (b"YUV4MPEG2 W16 H8", "no end"),
            (b"YUV4MPEG2 W16 H8\n", "no frame in it"),
            (b"YUV4MPEG2 W16\n", "lacks width or height"),
            (b"YUV4MPEG2 W15 H8\n", "even numbers"),
            (b"YUV4MPEG2 W16 H4098\n", "even numbers"),
            (b"YUV4MPEG2 W16 H8 C444\n", "4:2:0"),
            (b"YUV4MPEG2 W16 H8 C420p10\n", "4:2:0"),
            (b"YUV4MPEG3 W16 H8\n", "begins neither"),
        ] {
            let (file, mut camera) = camera(bytes, true);
            let error = camera.photo().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Configuration, "{error}");
            let text = error.to_string();
            assert!(text.contains(part) && text.contains(file.path().to_str().unwrap()), "{text}");
        }
        let error = VideoCamera::new("/no/such/video".into(), true).photo().unwrap_err();
        assert!(error.to_string().contains("/no/such/video"), "{error}");
        assert!(VideoCamera::new("/".into(), true).photo().is_err());
    }

    #[test]
    fn a_y4m_that_is_cut_off_says_so_once() {
        let whole = y4m(&[10, 60]);
        let (_file, mut camera) = camera(&whole[..whole.len() - 50], true);
        let found = all(&mut camera);
        assert_eq!((found.len(), found[0].as_str()), (2, "10#1"), "{found:?}");
        assert!(found[1].contains("#2: it is cut off"), "{found:?}");
    }

    proptest! {
        #[test]
        fn any_file_is_survived(
            start in prop_oneof![Just(&b"YUV4MPEG2 "[..]), Just(&b"\xff\xd8\xff"[..]), Just(&b"YUV4MPEG2 W2 H2\nFRAME\n"[..])],
            bytes in proptest::collection::vec(
                prop_oneof![Just(b'W'), Just(b'H'), Just(b'2'), Just(b' '), Just(b'\n'), Just(0xff), any::<u8>()], 0..120,
            ),
            once: bool,
        ) {
            let (_file, mut camera) = camera(&[start, &bytes].concat(), once);
            all(&mut camera);
        }
    }
}
