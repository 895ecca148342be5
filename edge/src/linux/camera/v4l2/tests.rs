//! The camera against a fake driver. A real one, the kernel's `vivid`, is met in an emulated machine (`tests/`).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::super::mjpeg::tests::{jpeg, without_tables};
use super::*;

/// What the fake driver does when it is asked for a picture.
#[derive(Debug, Clone)]
enum Step {
    Picture(Vec<u8>),
    Damaged,
    /// It says that there is one, and has none.
    Spurious,
    Fails(Errno),
}

/// A driver with its camera; the cameras that are opened one after another share it.
#[derive(Debug, Default)]
struct Driver {
    bits: u32,
    formats: Vec<(u32, Vec<Sizes>)>,
    layout: Option<Layout>,
    steps: VecDeque<Step>,
    open_fails: VecDeque<Errno>,
    now: Duration,
    queued: Vec<u32>,
    filled: Vec<u8>,
    is_on: bool,
    /// Requests that matter, as text.
    log: Vec<String>,
}

#[derive(Debug, Clone)]
struct Fake(Rc<RefCell<Driver>>);

struct FakeDevice {
    driver: Rc<RefCell<Driver>>,
    /// Of the buffer that was taken back last; a slice of it is handed out.
    bytes: Vec<u8>,
}

impl Open for Fake {
    type Device = FakeDevice;

    fn open(&mut self, _: &Path) -> io::Result<FakeDevice> {
        let mut driver = self.0.borrow_mut();
        if let Some(errno) = driver.open_fails.pop_front() {
            return Err(errno.into());
        }
        driver.log.push("open".to_owned());
        (driver.is_on, driver.queued) = (false, Vec::new());
        Ok(FakeDevice { driver: Rc::clone(&self.0), bytes: Vec::new() })
    }
}

/// A picture's time.
const RATE: Duration = Duration::from_millis(33);

impl Device for FakeDevice {
    fn capability(&mut self) -> io::Result<Capability> {
        Ok(Capability { card: "a fake".to_owned(), bits: self.driver.borrow().bits })
    }

    fn format(&mut self, index: u32) -> io::Result<u32> {
        let driver = self.driver.borrow();
        driver.formats.get(index as usize).map(|(code, _)| *code).ok_or_else(|| Errno::INVAL.into())
    }

    fn sizes(&mut self, format: u32, index: u32) -> io::Result<Sizes> {
        let driver = self.driver.borrow();
        let (_, sizes) = driver.formats.iter().find(|(code, _)| *code == format).unwrap();
        sizes.get(index as usize).copied().ok_or_else(|| Errno::INVAL.into())
    }

    fn set_format(&mut self, format: u32, size: [u32; 2]) -> io::Result<Layout> {
        let mut driver = self.driver.borrow_mut();
        let format = Format::of_code(format);
        driver.log.push(format!("{} {}x{}", format.unwrap(), size[0], size[1]));
        let (stride, colorspace, encoding, quantization) = (0, 0, 0, 0);
        let usual = Layout { format, size, stride, colorspace, encoding, quantization };
        Ok(driver.layout.unwrap_or(usual))
    }

    fn request_buffers(&mut self, count: u32) -> io::Result<u32> {
        Ok(count)
    }

    fn queue(&mut self, index: u32) -> io::Result<()> {
        let mut driver = self.driver.borrow_mut();
        assert!(!driver.queued.contains(&index), "buffer {index} is queued twice");
        driver.queued.push(index);
        Ok(())
    }

    fn dequeue(&mut self) -> io::Result<Filled> {
        let mut driver = self.driver.borrow_mut();
        assert!(driver.is_on, "a camera that is off has nothing");
        if driver.filled.is_empty() {
            return Err(Errno::AGAIN.into());
        }
        driver.filled.remove(0);
        let step = driver.steps.pop_front().expect("what was filled is there");
        let mut give = |bytes: Vec<u8>, is_damaged| {
            let index = driver.queued.remove(0);
            self.bytes = bytes;
            Ok(Filled { index, bytes: self.bytes.len(), is_damaged })
        };
        match step {
            Step::Picture(bytes) => give(bytes, false),
            Step::Damaged => give(vec![1, 2, 3], true),
            Step::Spurious => Err(Errno::AGAIN.into()),
            Step::Fails(errno) => Err(errno.into()),
        }
    }

    fn bytes(&self, filled: Filled) -> &[u8] {
        assert!(!self.driver.borrow().queued.contains(&filled.index), "the driver writes to it");
        &self.bytes[..filled.bytes]
    }

    fn stream(&mut self, on: bool) -> io::Result<()> {
        let mut driver = self.driver.borrow_mut();
        driver.is_on = on;
        driver.log.push(if on { "on" } else { "off" }.to_owned());
        if on {
            assert_eq!(driver.queued.len(), BUFFERS as usize, "it needs buffers to begin with");
        } else {
            driver.queued.clear();
            driver.filled.clear();
        }
        Ok(())
    }

    fn wait(&mut self, longest: Duration) -> io::Result<bool> {
        let mut driver = self.driver.borrow_mut();
        if !driver.filled.is_empty() {
            return Ok(true);
        }
        if driver.filled.len() < driver.steps.len() {
            driver.now += RATE.min(longest);
            driver.filled.push(0);
            return Ok(true);
        }
        driver.now += longest;
        Ok(false)
    }

    fn rest(&mut self, time: Duration) {
        self.driver.borrow_mut().now += time;
    }

    fn now(&self) -> Duration {
        self.driver.borrow().now
    }
}

const YUYV: u32 = Format::Yuyv.code();
const MJPG: u32 = Format::Mjpeg.code();
const NV12: u32 = Format::Nv12.code();

/// 16 x 8 pixels of one level.
fn yuyv(level: u8) -> Step {
    Step::Picture([level, 128].repeat(16 * 8))
}

fn camera(steps: impl IntoIterator<Item = Step>) -> (Rc<RefCell<Driver>>, V4l2Camera<Fake>) {
    let driver = Rc::new(RefCell::new(Driver {
        bits: CAP_CAPTURE | CAP_STREAMING,
        formats: vec![(YUYV, vec![Sizes::One([16, 8])])],
        steps: steps.into_iter().collect(),
        ..Driver::default()
    }));
    let camera = V4l2Camera::opened_by(Fake(Rc::clone(&driver)), "/dev/video0".into(), SMALL);
    (driver, camera)
}

const SMALL: Wanted = Wanted { size: CameraSize { width: 16, height: 8 }, format: None };

fn level(photo: &Photo) -> u8 {
    photo.picture.grey(&mut Vec::new()).unwrap().mean()
}

/// The luma of a level, as 16 to 235 stand for black and white.
fn luma(level: u8) -> u8 {
    (16 + u32::from(level) * 219 / 255) as u8
}

#[test]
fn a_photo_is_taken_once_the_exposure_is_steady_and_the_next_one_at_once() {
    let steps = [16, 40, 90, 126, 125, 126, 126, 200].map(yuyv);
    let (driver, mut camera) = camera(steps);
    let photo = camera.photo().unwrap();
    assert_eq!((photo.name.as_str(), photo.picture.size()), ("video0 #1", [16, 8]));
    assert!(level(&photo).abs_diff(128) < 3, "{}", level(&photo));
    let photo = camera.photo().unwrap();
    assert_eq!(photo.name, "video0 #2");
    assert!(level(&photo) > 200, "{}", level(&photo));
    assert_eq!(driver.borrow().log, ["open", "YUYV 16x8", "on"]);
    assert_eq!(camera.describe().unwrap(), "a fake, YUYV");
}

#[test]
fn pictures_that_waited_are_passed_over() {
    let (driver, mut camera) = camera([100; 4].map(yuyv));
    camera.photo().unwrap();
    {
        let mut driver = driver.borrow_mut();
        driver.steps.extend([30, 31, 32, 220].map(yuyv));
        driver.filled = vec![0; 3];
    }
    assert!(level(&camera.photo().unwrap()) > 200);
}

#[test]
fn a_camera_that_is_not_needed_for_long_is_stopped_and_settles_anew() {
    let (driver, mut camera) = camera([100; 4].map(yuyv));
    camera.photo().unwrap();
    camera.rest(Duration::from_secs(19));
    camera.rest(Duration::from_hours(1));
    camera.rest(Duration::from_hours(1));
    driver.borrow_mut().steps.extend([0, 60, 120, 120, 121, 120, 9].map(yuyv));
    assert!(level(&camera.photo().unwrap()).abs_diff(122) < 4);
    assert_eq!(driver.borrow().log, ["open", "YUYV 16x8", "on", "off", "on"]);
}

#[test]
fn damaged_short_and_empty_pictures_are_passed_over() {
    let short = Step::Picture(vec![100; 100]);
    let bad = [Step::Damaged, short, Step::Picture(Vec::new()), Step::Spurious];
    let good = [100; 4].map(yuyv);
    let mixed = bad.clone().into_iter().zip(good.clone()).flat_map(|(bad, good)| [bad, good]);
    let (driver, mut camera) = camera(mixed);
    camera.photo().unwrap();
    assert_eq!(driver.borrow().queued.len(), BUFFERS as usize, "the driver has all its buffers");
    // Nothing but rubbish is an error, with what is wrong with it.
    driver.borrow_mut().steps.extend(vec![Step::Damaged; 500]);
    let error = camera.photo().unwrap_err();
    assert!(matches!(&error, V4l2Error::Damaged { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("/dev/video0"), "{error}");
}

#[test]
fn a_camera_that_sends_nothing_is_an_error_after_five_seconds() {
    for steps in [vec![], vec![Step::Spurious; 10_000]] {
        let (driver, mut camera) = camera(steps);
        let error = camera.photo().unwrap_err();
        assert!(matches!(&error, V4l2Error::Wedged { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let now = driver.borrow().now;
        assert!(now >= PICTURE_WITHIN && now < 2 * PICTURE_WITHIN, "{now:?}");
        // It is opened anew, which is what helps.
        driver.borrow_mut().steps = [100; 4].map(yuyv).into();
        camera.photo().unwrap();
        assert_eq!(driver.borrow().log.iter().filter(|entry| *entry == "open").count(), 2);
    }
}

#[test]
fn a_camera_that_is_unplugged_and_plugged_in_again_goes_on() {
    let (driver, mut camera) = camera([100; 4].map(yuyv));
    camera.photo().unwrap();
    driver.borrow_mut().steps.push_back(Step::Fails(Errno::NODEV));
    let error = camera.photo().unwrap_err();
    assert!(matches!(&error, V4l2Error::Gone { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    driver.borrow_mut().open_fails = [Errno::NOENT, Errno::ACCESS].into();
    for part in ["is it plugged in?", "the group video"] {
        let error = camera.photo().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains(part), "{error}");
    }
    driver.borrow_mut().steps = [100; 4].map(yuyv).into();
    assert_eq!(camera.photo().unwrap().name, "video0 #2");
}

#[test]
fn mjpeg_is_decoded_with_and_without_its_tables() {
    let jpeg = jpeg([32, 24], 90);
    let pictures = [jpeg.clone(), without_tables(&jpeg), jpeg.clone(), jpeg[..200].to_vec(), jpeg.clone()];
    let (driver, mut camera) = camera(pictures.map(Step::Picture));
    driver.borrow_mut().formats = vec![(MJPG, vec![Sizes::One([32, 24])])];
    let photo = camera.photo().unwrap();
    assert_eq!((photo.picture.size(), photo.picture.format()), ([32, 24], "RGB"));
}

#[test]
fn rows_and_colours_are_those_that_the_driver_says() {
    let (driver, mut camera) = camera([]);
    let layout = Layout {
        format: Some(Format::Nv12),
        size: [16, 8],
        stride: 24,
        colorspace: 0,
        encoding: 0,
        quantization: 1,
    };
    driver.borrow_mut().formats = vec![(NV12, vec![Sizes::One([16, 8])])];
    driver.borrow_mut().layout = Some(layout);
    let row: Vec<u8> = [vec![77; 16], vec![255; 8]].concat();
    let frame = [row.repeat(8), [vec![128; 16], vec![255; 8]].concat().repeat(4), vec![9; 4096]].concat();
    driver.borrow_mut().steps = vec![Step::Picture(frame); 4].into();
    let photo = camera.photo().unwrap();
    assert!(photo.picture.to_rgb().pixels().all(|pixel| pixel.0 == [77; 3]));
    let colours = |colorspace, encoding, quantization| {
        Layout { colorspace, encoding, quantization, ..layout }.colours()
    };
    assert_eq!(colours(8, 0, 0), Colours::CAMERA);
    assert_eq!(colours(7, 0, 0), Colours::JPEG);
    assert_eq!(colours(3, 0, 0), Colours::HD);
    assert_eq!(colours(3, 1, 2), Colours::CAMERA);
    assert_eq!(luma(255), 235);
}

#[test]
fn what_is_no_camera_is_told_for_good() {
    let (driver, mut camera) = camera([]);
    for (bits, part) in [
        (0x0480_0000, "take the first one"),
        (CAP_STREAMING | CAP_CAPTURE_PLANES, "camera = \"rpicam\""),
        (CAP_CAPTURE, "cannot stream"),
    ] {
        driver.borrow_mut().bits = bits;
        let error = camera.photo().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Configuration);
        assert!(error.to_string().contains(part), "{error}");
    }
    driver.borrow_mut().bits = CAP_CAPTURE | CAP_STREAMING;
    driver.borrow_mut().formats =
        vec![(u32::from_le_bytes(*b"BA81"), vec![]), (u32::from_le_bytes(*b"Y16 "), vec![])];
    let error = camera.photo().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("(a fake) gives BA81, Y16, and"), "{error}");
}

#[test]
fn the_nearest_size_at_or_above_what_is_wanted_is_taken_in_the_cheapest_format() {
    let one = |code, width, height| (code, Sizes::One([width, height]));
    let all = |code| {
        let (least, greatest, step) = ([32, 32], [1920, 1080], [2, 2]);
        (code, Sizes::Range { least, greatest, step })
    };
    for (offered, wanted, expected) in [
        (vec![one(YUYV, 640, 480), one(MJPG, 640, 480)], [640, 480], Some((YUYV, [640, 480]))),
        (vec![one(YUYV, 640, 480), one(NV12, 640, 480)], [640, 480], Some((NV12, [640, 480]))),
        (vec![one(YUYV, 640, 480), one(MJPG, 1280, 720)], [1280, 720], Some((MJPG, [1280, 720]))),
        (vec![one(YUYV, 1920, 1080), one(MJPG, 1280, 720)], [800, 600], Some((MJPG, [1280, 720]))),
        (vec![one(YUYV, 320, 240), one(MJPG, 640, 480)], [1280, 720], Some((MJPG, [640, 480]))),
        // As wide, and not as high.
        (vec![one(YUYV, 1280, 480), one(MJPG, 1600, 1200)], [1280, 720], Some((MJPG, [1600, 1200]))),
        (vec![all(YUYV)], [1280, 720], Some((YUYV, [1280, 720]))),
        (vec![all(YUYV)], [1279, 719], Some((YUYV, [1280, 720]))),
        (vec![all(NV12)], [8192, 8192], Some((NV12, [1920, 1080]))),
        (vec![all(NV12)], [16, 16], Some((NV12, [32, 32]))),
        (vec![one(YUYV, 641, 480), one(NV12, 640, 481)], [640, 480], None),
        (vec![one(MJPG, 641, 480), one(MJPG, 0, 0)], [640, 480], Some((MJPG, [641, 480]))),
        (vec![], [640, 480], None),
    ] {
        let offers: Vec<Offer> = offered
            .iter()
            .map(|(code, sizes)| Offer {
                code: *code,
                format: Format::of_code(*code).unwrap(),
                sizes: *sizes,
            })
            .collect();
        let [width, height] = wanted;
        assert_eq!(choose(&offers, CameraSize { width, height }), expected, "{offered:?} for {wanted:?}");
    }
}

#[test]
fn a_format_that_is_asked_for_is_taken_or_it_is_said_which_there_are() {
    let offered = vec![(NV12, vec![Sizes::One([16, 8])]), (YUYV, vec![Sizes::One([16, 8])])];
    let (driver, mut camera) = camera([100; 4].map(yuyv));
    driver.borrow_mut().formats = offered;
    camera.wanted.format = Some(CameraFormat::Yuyv);
    camera.photo().unwrap();
    assert_eq!(driver.borrow().log[1], "YUYV 16x8");
    (camera.running, camera.wanted.format) = (None, Some(CameraFormat::Mjpeg));
    let error = camera.photo().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Configuration);
    assert!(error.to_string().contains("(a fake) gives no MJPEG, but NV12, YUYV: "), "{error}");
    driver.borrow_mut().formats = vec![(u32::from_le_bytes(*b"BA81"), vec![])];
    let error = camera.photo().unwrap_err();
    assert!(error.to_string().contains("gives BA81, and"), "{error}");
}

#[test]
fn a_driver_that_lists_no_sizes_is_asked_for_what_is_wanted() {
    let (driver, mut camera) = camera([100; 4].map(yuyv));
    driver.borrow_mut().formats = vec![(YUYV, vec![])];
    camera.photo().unwrap();
    assert_eq!(driver.borrow().log[1], "YUYV 16x8");
}

proptest::proptest! {
    #[test]
    fn any_order_of_events_ends_in_time_and_leaves_no_buffer_behind(
        events in proptest::collection::vec(0..6_u8, 0..200),
        rests in proptest::collection::vec(0..40_u64, 1..12),
    ) {
        let steps = events.into_iter().map(|event| match event {
            0 => Step::Damaged,
            1 => Step::Spurious,
            2 => Step::Fails(Errno::NODEV),
            3 => Step::Fails(Errno::IO),
            level => yuyv(40 * level),
        });
        let (driver, mut camera) = camera(steps);
        for rest in rests {
            let before = driver.borrow().now;
            let result = camera.photo();
            let took = driver.borrow().now.saturating_sub(before);
            proptest::prop_assert!(took <= 3 * PICTURE_WITHIN, "{took:?}");
            if result.is_ok() {
                proptest::prop_assert_eq!(driver.borrow().queued.len(), BUFFERS as usize);
            }
            camera.rest(Duration::from_secs(rest));
        }
    }
}
