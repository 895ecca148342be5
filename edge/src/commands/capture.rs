//! `glimpse-edge capture`: one photo, and what it is worth; for aiming a camera and focusing it.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use glimpse_embedder::RgbImage;
use glimpse_protocol::device::{self, CameraFormat, CameraSize, CameraSource, Device};
use serde::Serialize;

use crate::linux::camera::{Photo, Source, Wanted};
use crate::linux::output::printable;
use crate::ports::Capture;
use crate::vision::Quality;

/// Flags of `glimpse-edge capture`.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// The camera: v4l2:/dev/videoN, rpicam, folder:DIR or video:FILE
    #[arg(long, value_name = "CAMERA")]
    pub camera: CameraSource,
    /// How large the photo should be
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value_t = Device::CAMERA_SIZE_DEFAULT)]
    pub camera_size: CameraSize,
    /// How a camera of v4l2 sends it: nv12, yuyv or mjpeg [default: as takes the least work]
    #[arg(long, value_name = "FORMAT")]
    pub camera_format: Option<CameraFormat>,
    /// How sharp it has to be, to be called good
    #[arg(long, value_name = "SHARPNESS", value_parser = device::sharpness_of_text, default_value_t = Device::SHARPNESS_MIN_LIVE)]
    pub sharpness_min: f32,
    /// File for the photo, .jpg or .png [default: it is not written]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Prints JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Told<'a> {
    photo: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    camera: Option<String>,
    width: u32,
    height: u32,
    format: &'static str,
    sharpness: Option<f32>,
    mean: u8,
    black: f32,
    white: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

/// Takes a photo, says what it is like, and writes it; status 1 for one that `run` would pass over.
///
/// # Errors
/// A camera that gives none, and a file that cannot be written.
pub fn run(args: &CaptureArgs) -> anyhow::Result<ExitCode> {
    args.out.as_deref().map(check_name).transpose()?;
    let wanted = Wanted { size: args.camera_size, format: args.camera_format };
    let mut source = Source::new(&args.camera, wanted, true);
    let photo = match source.photo()? {
        Capture::Photo(photo) => photo,
        Capture::NotYet | Capture::End => anyhow::bail!("{} has no photo", args.camera),
    };
    let mut pixels = Vec::new();
    let grey = photo.picture.grey(&mut pixels).context("the photo has no pixels")?;
    let quality = Quality::of(&grey);
    let fault = quality.fault(args.sharpness_min);
    let [width, height] = photo.picture.size();
    let told = Told {
        photo: &photo.name,
        camera: source.describe(),
        width,
        height,
        format: photo.picture.format(),
        sharpness: quality.sharpness,
        mean: quality.mean,
        black: quality.black,
        white: quality.white,
        fault: fault.map(|fault| fault.to_string()),
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&told)?)?;
    } else {
        write!(out, "{}", table(&told))?;
    }
    if let Some(path) = &args.out {
        write_photo(path, &photo)?;
    }
    Ok(if fault.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn table(told: &Told<'_>) -> String {
    let camera = told.camera.iter().map(|camera| ("camera", printable(camera)));
    let sharpness = told.sharpness.map_or_else(
        || "cannot be told: there is too little contrast".to_owned(),
        |sharpness| format!("{sharpness:.2}"),
    );
    let percent = |share: f32| 100.0 * share;
    let exposure = format!(
        "{} of 255, {:.1} % black, {:.1} % white",
        told.mean,
        percent(told.black),
        percent(told.white)
    );
    let rows = [
        ("size", format!("{}x{}, {}", told.width, told.height, told.format)),
        ("sharpness", sharpness),
        ("exposure", exposure),
        ("verdict", told.fault.clone().unwrap_or_else(|| "good".to_owned())),
    ];
    let rows = std::iter::once(("photo", printable(told.photo))).chain(camera).chain(rows);
    rows.map(|(name, value)| format!("{name:<10} {value}\n")).collect()
}

fn check_name(path: &Path) -> anyhow::Result<()> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let is_known = ["jpg", "jpeg", "png"].iter().any(|known| extension.eq_ignore_ascii_case(known));
    ensure!(is_known, "{} is neither a .jpg nor a .png: a photo is written as one of them", path.display());
    Ok(())
}

/// Whole or not at all: somebody may look at the file while the next photo is taken.
fn write_photo(path: &Path, photo: &Photo) -> anyhow::Result<()> {
    let image: RgbImage = photo.picture.to_rgb();
    let name = path.file_name().context("the photo's file needs a name")?;
    let mut hidden = std::ffi::OsString::from(".new-");
    hidden.push(name);
    let new = path.with_file_name(hidden);
    let written = image.save(&new).map_err(anyhow::Error::from);
    let written = written.and_then(|()| fs::rename(&new, path).map_err(anyhow::Error::from));
    if written.is_err() {
        // What is left of it, if anything.
        let _ = fs::remove_file(&new);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(camera: &str, out: Option<PathBuf>) -> CaptureArgs {
        CaptureArgs {
            camera: camera.parse().unwrap(),
            camera_size: Device::CAMERA_SIZE_DEFAULT,
            camera_format: None,
            sharpness_min: 0.5,
            out,
            json: false,
        }
    }

    #[test]
    fn a_photo_is_written_as_its_name_says_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let photos = dir.path().join("photos");
        fs::create_dir(&photos).unwrap();
        let image = RgbImage::from_fn(64, 48, |x, y| {
            [(x * 4) as u8, if (x ^ y) & 4 == 0 { 30 } else { 200 }, 90].into()
        });
        image.save(photos.join("a.png")).unwrap();
        let camera = format!("folder:{}", photos.display());
        for (name, magic) in [("b.png", &b"\x89PNG"[..]), ("b.jpg", b"\xff\xd8\xff")] {
            let out = dir.path().join(name);
            assert_eq!(run(&args(&camera, Some(out.clone()))).unwrap(), ExitCode::SUCCESS);
            assert!(fs::read(&out).unwrap().starts_with(magic));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        let error = run(&args(&camera, Some(dir.path().join("b.gif")))).unwrap_err();
        assert!(error.to_string().contains("b.gif"), "{error}");
        let error = run(&args(&camera, Some(dir.path().join("no/such/b.png")))).unwrap_err();
        assert!(error.to_string().contains("no/such/b.png"), "{error}");
    }

    #[test]
    fn a_black_photo_is_a_failure_and_so_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let camera = format!("folder:{}", dir.path().display());
        let error = run(&args(&camera, None)).unwrap_err();
        assert!(error.to_string().contains("has no photo"), "{error}");
        RgbImage::new(64, 48).save(dir.path().join("a.png")).unwrap();
        assert_eq!(run(&args(&camera, None)).unwrap(), ExitCode::FAILURE);
    }

    #[test]
    fn the_table_says_what_to_do() {
        let told = Told {
            photo: "video0 #1",
            camera: Some("HD Webcam, MJPEG".to_owned()),
            width: 1280,
            height: 720,
            format: "RGB",
            sharpness: Some(0.213),
            mean: 101,
            black: 0.012,
            white: 0.0,
            fault: Some("blurred".to_owned()),
        };
        assert_eq!(
            table(&told),
            "photo      video0 #1\ncamera     HD Webcam, MJPEG\nsize       1280x720, RGB\nsharpness  0.21\n\
             exposure   101 of 255, 1.2 % black, 0.0 % white\nverdict    blurred\n"
        );
    }
}
