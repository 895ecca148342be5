//! A camera with a trigger: waits for it, passes bad pictures over, and gives the photos that are worth a query.

use std::time::Duration;

use glimpse_protocol::device::{CameraSource, TriggerKind};

use super::picture::Photo;
use super::{CameraError, Source, Wanted};
use crate::linux::gpio::ButtonLine;
use crate::linux::host::SystemClock;
use crate::linux::output::chain;
use crate::ports::{Camera, Capture, Clock as _};
use crate::trigger::{Always, Interval, OnMotion, Trigger, Wish};
use crate::vision::quality::News;
use crate::vision::{Quality, Screen, Verdict};

/// The longest that a caller should let pass before it asks again: it has other things to look after.
pub const REST: Duration = Duration::from_millis(500);

/// A camera with a trigger.
pub struct Watch {
    source: Source,
    trigger: Box<dyn Trigger + Send>,
    /// `None` where all pictures are taken.
    screen: Option<Screen>,
    clock: SystemClock,
    /// The picture before was bad, and the next one takes its place.
    is_again: bool,
    rest: Duration,
    /// Small grey pictures are made in here.
    grey: Vec<u8>,
    /// A job with an end takes no longer than its photos.
    once: bool,
    waits_for_somebody: bool,
    /// Photos that are still to be taken, where there is an end to them that the camera does not know.
    left: Option<u32>,
}

impl Watch {
    /// Watches a camera. Files were all taken on purpose: they are screened only where `sharpness_min` is above 0.
    pub fn new(
        camera: &CameraSource,
        wanted: Wanted,
        (trigger, button): (TriggerKind, Option<ButtonLine>),
        sharpness_min: f32,
        once: bool,
    ) -> Self {
        let is_screened = camera.is_live() || sharpness_min > 0.0;
        Self {
            source: Source::new(camera, wanted, once),
            trigger: trigger_of(trigger, button),
            screen: is_screened.then(|| Screen::new(sharpness_min)),
            clock: SystemClock::start(),
            is_again: false,
            rest: Duration::ZERO,
            grey: Vec::new(),
            once,
            waits_for_somebody: !once && matches!(trigger, TriggerKind::Button | TriggerKind::Motion),
            left: (once && camera.is_live()).then_some(1),
        }
    }

    /// How long to wait after [`Capture::NotYet`].
    pub const fn rest(&self) -> Duration {
        self.rest
    }

    /// Whether a photo is of something that happens at that moment, so that it should not take longer than those after it.
    pub const fn waits_for_somebody(&self) -> bool {
        self.waits_for_somebody
    }

    /// Bad pictures that were passed over so far.
    pub fn skipped(&self) -> u64 {
        self.screen.as_ref().map_or(0, Screen::skipped)
    }

    /// A video has a time of its own where nobody waits for it.
    fn now(&self) -> Duration {
        match &self.source {
            Source::Video(video) if self.once => video.time(),
            _ => self.clock.now(),
        }
    }

    fn wait(&mut self, time: Duration) -> Result<Capture<Photo>, CameraError> {
        self.source.rest(time);
        self.rest = time.min(REST);
        if let Source::Video(video) = &mut self.source
            && self.once
        {
            video.pass(video.time().saturating_add(time))?;
            self.rest = Duration::ZERO;
            if video.is_over() {
                return Ok(Capture::End);
            }
        }
        Ok(Capture::NotYet)
    }

    fn photo(&mut self, now: Duration) -> Result<Capture<Photo>, CameraError> {
        self.rest = if self.once { Duration::ZERO } else { REST };
        if let Source::Video(video) = &mut self.source
            && !self.once
        {
            if let Some(early) = video.time().checked_sub(now)
                && !early.is_zero()
            {
                self.rest = early.min(REST);
                return Ok(Capture::NotYet);
            }
            video.keep_up(now)?;
        }
        self.source.photo()
    }

    /// Whether the picture that the trigger wished to see, or to have, is to be the photo; `None` where it is not.
    fn judge(&mut self, wish: Wish, now: Duration, photo: &Photo) -> Option<Verdict> {
        let looks = wish == Wish::Look && !self.is_again;
        if !looks && self.screen.is_none() {
            return Some(Verdict::Take);
        }
        // A picture without pixels is the embedder's to refuse.
        let Some(grey) = photo.picture.grey(&mut self.grey) else { return Some(Verdict::Take) };
        if looks && !self.trigger.see(now, &grey) {
            return None;
        }
        let Some(screen) = &mut self.screen else { return Some(Verdict::Take) };
        let quality = Quality::of(&grey);
        let verdict = screen.judge(&quality);
        if verdict != Verdict::Take {
            tracing::debug!(photo = photo.name, ?quality, "passed over");
        }
        match screen.news() {
            Some(News::Bad(fault)) => tracing::warn!(
                photo = photo.name,
                "photos are not asked about: the last {} pictures were bad, and this one is {fault}",
                Screen::TRIES
            ),
            Some(News::Good(skipped)) => {
                tracing::info!(photo = photo.name, skipped, "pictures are good again");
            }
            None => {}
        }
        Some(verdict)
    }
}

impl Camera for Watch {
    type Photo = Photo;
    type Error = CameraError;

    fn capture(&mut self) -> Result<Capture<Photo>, CameraError> {
        if self.left == Some(0) {
            return Ok(Capture::End);
        }
        // Ends with the screen's patience.
        loop {
            let now = self.now();
            let wish = if self.is_again { Wish::Photo } else { self.trigger.wish(now) };
            if let Wish::Wait(time) = wish {
                return self.wait(time);
            }
            let photo = match self.photo(now)? {
                Capture::Photo(photo) => photo,
                other => return Ok(other),
            };
            match self.judge(wish, now, &photo) {
                None => {
                    self.rest = Duration::ZERO;
                    return Ok(Capture::NotYet);
                }
                Some(Verdict::Take) => {
                    self.is_again = false;
                    self.left = self.left.map(|left| left.saturating_sub(1));
                    self.trigger.taken(now);
                    return Ok(Capture::Photo(photo));
                }
                Some(Verdict::Again) => self.is_again = true,
                Some(Verdict::GiveUp) => {
                    self.is_again = false;
                    self.trigger.taken(now);
                    return Ok(Capture::NotYet);
                }
            }
        }
    }
}

fn trigger_of(kind: TriggerKind, button: Option<ButtonLine>) -> Box<dyn Trigger + Send> {
    match kind {
        TriggerKind::Button => Box::new(OnPress { button, is_pressed: false }),
        TriggerKind::Always => Box::new(Always),
        TriggerKind::Interval(every) => Box::new(Interval::new(every)),
        TriggerKind::Motion => Box::new(OnMotion::new()),
    }
}

/// How long a press may go unnoticed.
const PRESS_NOTICED: Duration = Duration::from_millis(50);

/// A photo for each press of a button; presses while one is taken count as one.
struct OnPress {
    /// `None` where there is none any more.
    button: Option<ButtonLine>,
    /// Pressed, and no photo was taken since.
    is_pressed: bool,
}

impl Trigger for OnPress {
    fn wish(&mut self, _: Duration) -> Wish {
        match self.button.as_mut().map(|button| button.pressed(Duration::ZERO)) {
            Some(Ok(pressed)) => self.is_pressed |= pressed,
            Some(Err(error)) => {
                tracing::error!("{}; presses are not noticed any more, until a restart", chain(&error));
                self.button = None;
            }
            None => {}
        }
        if self.is_pressed { Wish::Photo } else { Wish::Wait(PRESS_NOTICED) }
    }

    fn taken(&mut self, _: Duration) {
        self.is_pressed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::super::video::tests::y4m;
    use super::*;
    use glimpse_protocol::device::CameraSize;

    const WANTED: Wanted = Wanted { size: CameraSize { width: 640, height: 480 }, format: None };

    /// What `run --once` would take of a video: numbers of frames.
    fn taken(video: &[u8], trigger: &str, sharpness_min: f32) -> (Vec<u32>, u64) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), video).unwrap();
        let camera = CameraSource::Video(file.path().into());
        let mut watch = Watch::new(&camera, WANTED, (trigger.parse().unwrap(), None), sharpness_min, true);
        let mut numbers = Vec::new();
        for _ in 0..10_000 {
            match watch.capture().unwrap() {
                Capture::Photo(photo) => {
                    numbers.push(photo.name.rsplit_once('#').unwrap().1.parse().unwrap());
                }
                Capture::NotYet => assert_eq!(watch.rest(), Duration::ZERO, "nobody waits for a file"),
                Capture::End => return (numbers, watch.skipped()),
            }
        }
        panic!("it does not end: {numbers:?}");
    }

    #[test]
    fn every_frame_of_a_video_is_a_photo_where_nothing_else_is_said() {
        assert_eq!(taken(&y4m(&[0, 255, 100]), "always", 0.0), (vec![1, 2, 3], 0));
    }

    #[test]
    fn an_interval_is_one_of_the_videos_own_time() {
        // Ten frames a second.
        assert_eq!(taken(&y4m(&[100; 35]), "interval:1", 0.0), (vec![1, 11, 21, 31], 0));
    }

    #[test]
    fn motion_is_seen_in_a_video() {
        // Still for three seconds, then a dark bar comes in, for one second.
        let mut video = y4m(&[100; 40]);
        let frame = 6 + 16 * 8 * 3 / 2;
        let first = video.len() - 40 * frame;
        for n in 30..40 {
            video[first + n * frame + 6..][..16 * 3].fill(10);
        }
        let (numbers, _) = taken(&video, "motion", 0.0);
        assert_eq!(numbers.len(), 1, "{numbers:?}");
        assert!((31..=33).contains(&numbers[0]), "{numbers:?}");
    }

    #[test]
    fn black_frames_are_passed_over_and_counted_where_sharpness_is_asked_for() {
        let levels: Vec<u8> = [[0; 25].as_slice(), &[100; 2], &[0; 3], &[100]].concat();
        let (numbers, skipped) = taken(&y4m(&levels), "always", 0.1);
        assert_eq!((numbers, skipped), (vec![26, 27, 31], 28));
        assert_eq!(taken(&y4m(&levels), "always", 0.0).0.len(), levels.len());
    }

    #[test]
    fn a_video_without_an_end_runs_at_its_own_rate() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), y4m(&[100; 5])).unwrap();
        let camera = CameraSource::Video(file.path().into());
        let mut watch = Watch::new(&camera, WANTED, (TriggerKind::Always, None), 0.0, false);
        let begun = std::time::Instant::now();
        let mut photos = 0;
        while photos < 8 {
            match watch.capture().unwrap() {
                Capture::Photo(_) => photos += 1,
                Capture::NotYet => std::thread::sleep(watch.rest()),
                Capture::End => panic!("it has no end"),
            }
        }
        // The eighth frame is due after seven tenths of a second, and not before.
        assert!(begun.elapsed() >= Duration::from_millis(690), "{:?}", begun.elapsed());
    }
}
