//! What the device needs of its own disk and pins: camera, network, codebook, secrets, programs, lines.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use glimpse_embedder::test_photo;
use glimpse_protocol::device::{CameraSource, Device, GpioLine};

use super::Finding;
use crate::linux::actions;
use crate::linux::camera::{CameraError, Source, Wanted};
use crate::linux::credentials::Credentials;
use crate::linux::gpio::{self, GpioError};
use crate::linux::model::{Encoder, ModelFiles, QueryModel};
use crate::linux::output::{chain, milliseconds};
use crate::ports::{Capture, Embedder as _};
use crate::vision::Quality;

/// This program, as the kernel calls it.
const PROGRAM: &str = "glimpse-edge";

/// Two test photos that differ give embeddings whose cosine is at most this; a network of zeros or of one answer gives 1.
const COSINE_MAX: f32 = 0.9999;

/// The camera: takes a photo with it.
pub fn camera(camera: &CameraSource, wanted: Wanted, sharpness_min: f32) -> Finding {
    const CHECK: &str = "camera";
    let mut source = Source::new(camera, wanted, true);
    match source.photo() {
        Ok(Capture::Photo(photo)) => {
            let [width, height] = photo.picture.size();
            let named = source.describe().map_or_else(String::new, |name| format!(" ({name})"));
            let seen = photo.picture.grey(&mut Vec::new()).map(|grey| Quality::of(&grey));
            match seen.and_then(|seen| seen.fault(sharpness_min)).filter(|_| camera.is_live()) {
                None => Finding::ok(CHECK, format!("{camera}{named}: a photo has {width} x {height} pixels")),
                Some(fault) => Finding::warning(
                    CHECK,
                    format!("{camera}{named}: a photo of {width} x {height} pixels, and it is {fault}"),
                    "aim, light and focus it with `glimpse-edge capture`, or lower sharpness_min",
                ),
            }
        }
        Ok(Capture::NotYet | Capture::End) => Finding::warning(
            CHECK,
            format!("{camera} holds no photo yet"),
            "put photos there: .jpg, .jpeg or .png; the device takes them as they come",
        ),
        Err(CameraError::V4l2(ref error)) if let Some(path) = error.busy() => {
            in_use(CHECK, camera, path, &users_of(Path::new("/"), path))
        }
        Err(CameraError::Rpicam(ref error)) if error.is_busy() => Finding::warning(
            CHECK,
            format!("{camera} is in use by another program"),
            "if that is the device itself, which has it while it takes a photo, run this again; if not, end what uses it",
        ),
        Err(error) => Finding::failure(CHECK, chain(&error), camera_advice(camera)),
    }
}

/// What to think of a camera that somebody has.
fn in_use(check: &'static str, camera: &CameraSource, path: &Path, users: &Users) -> Finding {
    let Users { names, are_all } = users;
    let ours = |name: &String| name.starts_with(PROGRAM);
    if !names.is_empty() && names.iter().all(ours) {
        return Finding::ok(check, format!("{camera} is in use by a device that runs"));
    }
    match names.iter().find(|name| !ours(name)) {
        None if !are_all => Finding::warning(
            check,
            format!("{camera} is in use, by a program of another user"),
            "if that is not the device itself (`systemctl status glimpse-edge`), look as root by whom: `sudo glimpse-edge doctor`",
        ),
        other => {
            let by = other.map_or("another program", |name| name.as_str());
            let advice = format!("end what uses it; `sudo fuser -v {}` shows it", path.display());
            Finding::failure(check, format!("{camera} is in use by {by}"), advice)
        }
    }
}

/// Who has a file open.
#[derive(Debug, PartialEq, Eq)]
struct Users {
    /// Names of programs as the kernel has them (15 characters), each once.
    names: Vec<String>,
    /// Whether this user may look at every program.
    are_all: bool,
}

/// `root` is where the kernel tells of its processes.
fn users_of(root: &Path, file: &Path) -> Users {
    let nobody = Users { names: Vec::new(), are_all: false };
    let Ok(file) = fs::canonicalize(file) else { return nobody };
    let (mut names, mut are_all) = (BTreeSet::new(), true);
    for process in fs::read_dir(root.join("proc")).into_iter().flatten().flatten() {
        let number = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if number.is_none_or(|number| number == std::process::id()) {
            continue;
        }
        let Ok(open) = fs::read_dir(process.path().join("fd")) else {
            are_all = false;
            continue;
        };
        if open.flatten().any(|open| fs::read_link(open.path()).is_ok_and(|open| open == file)) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            names.insert(name.trim().to_owned());
        }
    }
    Users { names: names.into_iter().collect(), are_all }
}

fn camera_advice(camera: &CameraSource) -> String {
    match camera {
        CameraSource::Folder(folder) if folder.is_dir() => {
            format!("let the user that runs this program read it: `ls -l {}`", folder.display())
        }
        CameraSource::Folder(folder) => format!("make it: `mkdir -p {}`, or name another one", folder.display()),
        CameraSource::V4l2(_) => {
            "plug it in, name the one that is there (`ls /dev/v4l/by-id`), and let this user into the group video"
                .to_owned()
        }
        CameraSource::Rpicam => {
            "install rpicam-apps, and see that `rpicam-still --list-cameras` lists the camera".to_owned()
        }
        CameraSource::Video(file) => format!("name a file in MJPEG or YUV4MPEG2 in place of {}", file.display()),
    }
}

/// The query network: that it loads, embeds, embeds the same twice, and different photos differently.
pub fn model(files: &ModelFiles) -> (Finding, Option<QueryModel>) {
    const CHECK: &str = "model";
    let another = "copy the bundle or model anew, from where it was made; `glimpse-edge embed PHOTO` shows what it does";
    let model = match QueryModel::load(files) {
        Ok(model) => model,
        Err(error) => return (Finding::failure(CHECK, chain(&error), another), None),
    };
    match self_test(&model) {
        Ok(embed_ms) => {
            let (space, dimension) = (model.space(), model.dimension());
            let message =
                format!("of the space {space}, {dimension} dimensions; a photo takes {embed_ms:.0} ms");
            (Finding::ok(CHECK, message), Some(model))
        }
        Err(reason) => (Finding::failure(CHECK, reason, another), Some(model)),
    }
}

/// Returns how long a photo takes, in milliseconds.
fn self_test(model: &QueryModel) -> Result<f64, String> {
    let failed = |error: &dyn std::error::Error| format!("the self-test failed: {}", chain(error));
    let first = model.embedding(&test_photo(0)).map_err(|error| failed(&error))?;
    let start = Instant::now();
    let second = model.embedding(&test_photo(1)).map_err(|error| failed(&error))?;
    let took = milliseconds(start.elapsed());
    let cosine: f32 = first.iter().zip(&second).map(|(x, y)| x * y).sum();
    if !first.iter().chain(&second).all(|value| value.is_finite()) || cosine > COSINE_MAX {
        return Err("the self-test failed: two photos that differ have the same embedding".to_owned());
    }
    model.self_test(&[first, second].concat()).map_err(|error| failed(&error))?;
    Ok(took)
}

/// That embeddings can be written as the configuration says; the codebook, for pq.
pub fn codec(device: &Device, files: &ModelFiles, dimension: usize) -> Finding {
    const CHECK: &str = "codec";
    match Encoder::new(device.codec, files, dimension) {
        Ok(encoder) => Finding::ok(CHECK, encoder.codec().name()),
        Err(error) => Finding::failure(
            CHECK,
            chain(&error),
            "take the codebook of the bundle that the server serves, or another codec: i8",
        ),
    }
}

/// Password, certificates and keys.
pub fn credentials(device: &Device) -> (Finding, Option<Credentials>) {
    const CHECK: &str = "credentials";
    match Credentials::load(&device.security) {
        Ok(credentials)
            if credentials.has_naked_password()
                && !crate::linux::host::is_this_machine(device.server.host()) =>
        {
            (
                Finding::warning(
                    CHECK,
                    "the password crosses the network in the clear",
                    "write server = \"mqtts://HOST\" and ca = \"FILE\"",
                ),
                Some(credentials),
            )
        }
        Ok(credentials) => {
            let security = &device.security;
            let message = match (security.password_file.is_some(), security.identity.is_some()) {
                (false, false) => "none are configured",
                (true, false) => "a password, in a private file",
                (false, true) => "a certificate, and its key in a private file",
                (true, true) => "a password and a certificate, in private files",
            };
            (Finding::ok(CHECK, message), Some(credentials))
        }
        Err(error) => {
            let advice = "`glimpse-gallery devices add NAME --generate` on the server prints a password; docs/security.md has certificates";
            (Finding::failure(CHECK, chain(&error), advice), None)
        }
    }
}

/// Whether others may change a file that decides what the device does.
pub fn is_open_to_all(check: &'static str, path: &Path) -> Option<Finding> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
    (mode & 0o022 != 0).then(|| {
        let shown = path.display();
        let message = format!("{shown} can be changed by others on this machine (mode {mode:o})");
        Finding::warning(check, message, format!("`chmod go-w {shown}`"))
    })
}

/// The program that is given outcomes.
pub fn exec(program: &Path) -> Finding {
    const CHECK: &str = "exec";
    match actions::check_program(program) {
        Ok(()) => is_open_to_all(CHECK, program)
            .unwrap_or_else(|| Finding::ok(CHECK, format!("{} can be run", program.display()))),
        Err(error) => Finding::from_error(CHECK, &error),
    }
}

/// A line of a lamp or of the button.
pub fn line(key: &'static str, line: &GpioLine) -> Finding {
    match gpio::check(line) {
        Ok(()) => Finding::ok(key, format!("{line} is free")),
        Err(GpioError::Busy { user, .. }) if user == gpio::CONSUMER => {
            Finding::ok(key, format!("{line} is in use by a device that runs"))
        }
        Err(error) => Finding::from_error(key, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use glimpse_protocol::device::CameraSize;

    #[test]
    fn who_has_a_camera_is_known() {
        let place = tempfile::tempdir().unwrap();
        let camera = place.path().join("video0");
        fs::write(&camera, "").unwrap();
        for (process, name, opens) in [
            ("1", "init", "/dev/null"),
            ("22", PROGRAM, "video0"),
            ("33", "motion", "video0"),
            ("44", "motion", "video0"),
        ] {
            let process = place.path().join("proc").join(process);
            fs::create_dir_all(process.join("fd")).unwrap();
            fs::write(process.join("comm"), format!("{name}\n")).unwrap();
            std::os::unix::fs::symlink(place.path().join(opens), process.join("fd/3")).unwrap();
        }
        let found = users_of(place.path(), &camera);
        assert_eq!(found, Users { names: vec![PROGRAM.to_owned(), "motion".to_owned()], are_all: true });
        assert!(users_of(place.path(), &place.path().join("video1")).names.is_empty());
        // By another name too; and a program of another user cannot be looked at.
        let link = place.path().join("by-id");
        std::os::unix::fs::symlink(&camera, &link).unwrap();
        fs::create_dir(place.path().join("proc/55")).unwrap();
        let found = users_of(place.path(), &link);
        assert_eq!((found.names.len(), found.are_all), (2, false));
    }

    #[test]
    fn a_camera_that_the_device_has_is_no_fault() {
        let source = CameraSource::V4l2("/dev/video0".into());
        for (names, are_all, status, said) in [
            (&[PROGRAM][..], false, Status::Ok, "a device that runs"),
            (&["glimpse-edge-aa"], true, Status::Ok, "a device that runs"),
            (&[PROGRAM, "motion"], true, Status::Failure, "by motion"),
            (&[], true, Status::Failure, "by another program"),
            (&[], false, Status::Warning, "of another user"),
        ] {
            let users = Users { names: names.iter().map(ToString::to_string).collect(), are_all };
            let found = in_use("camera", &source, Path::new("/dev/video0"), &users);
            assert!(found.status == status && found.message.contains(said), "{found:?}");
        }
    }

    #[test]
    fn a_folder_camera_has_a_photo_that_can_be_read() {
        let place = tempfile::tempdir().unwrap();
        let wanted = Wanted { size: CameraSize { width: 640, height: 480 }, format: None };
        let look = |path: &Path| camera(&CameraSource::Folder(path.to_owned()), wanted, 0.5);
        let empty = look(place.path());
        assert_eq!(empty.status, Status::Warning);
        assert!(empty.advice.unwrap().contains(".jpg"));
        test_photo(0).save(place.path().join("b.png")).unwrap();
        let good = look(place.path());
        assert_eq!((good.status, good.message.contains("320 x 240")), (Status::Ok, true));
        fs::write(place.path().join("a.jpg"), "no photo").unwrap();
        let bad = look(place.path());
        assert_eq!(bad.status, Status::Failure);
        assert!(bad.message.contains("a.jpg"), "{bad:?}");
        let gone = camera(&CameraSource::V4l2("/dev/no-such-camera".into()), wanted, 0.5);
        assert_eq!(gone.status, Status::Failure);
        assert!(gone.advice.unwrap().contains("/dev/v4l"));
        let gone = look(&place.path().join("gone"));
        assert_eq!(gone.status, Status::Failure);
        assert!(gone.advice.unwrap().contains("mkdir -p"));
    }

    #[test]
    fn a_program_is_there_may_run_and_is_nobody_elses() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("hook");
        assert_eq!(exec(&path).status, Status::Failure);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        for (mode, status, part) in [
            (0o600, Status::Failure, "chmod +x"),
            (0o755, Status::Ok, "can be run"),
            (0o775, Status::Warning, "changed by others"),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let finding = exec(&path);
            assert_eq!(finding.status, status, "{mode:o}");
            assert!(finding.message.contains(part), "{finding:?}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_had_is_a_failure() {
        let finding = line("led", &"gpiochip65535:0".parse().unwrap());
        assert_eq!(finding.status, Status::Failure);
        assert!(finding.message.contains("there is no /dev/gpiochip65535"), "{finding:?}");
    }

    #[test]
    fn a_model_that_is_none_is_a_failure_with_its_path() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.onnx");
        fs::write(&path, "no model").unwrap();
        let (finding, model) = model(&ModelFiles { model: Some(path), ..ModelFiles::default() });
        assert_eq!((finding.status, model.is_none()), (Status::Failure, true));
        assert!(finding.message.contains("m.onnx"), "{finding:?}");
    }
}
