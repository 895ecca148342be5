//! Lamps and buttons over embedded-hal's pins: [`Indicator`] and [`Button`].
//!
//! Time is given by whoever calls, as a [`Duration`] since any fixed moment, so that a test has a clock of its own and a
//! microcontroller needs no operating system. [`Debounce`] has the logic of a button alone, for those who hear of edges with
//! their times rather than ask a pin.

use core::time::Duration;

use embedded_hal::digital::{InputPin, OutputPin};

/// Which level of a pin means lit, or pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Active {
    /// High.
    #[default]
    High,
    /// Low: a lamp against the supply, a button against ground.
    Low,
}

/// A lamp on a pin.
#[derive(Debug)]
pub struct Lamp<P> {
    pin: P,
    active: Active,
}

impl<P: OutputPin> Lamp<P> {
    /// A lamp that is lit where `pin` is `active`.
    pub const fn new(pin: P, active: Active) -> Self {
        Self { pin, active }
    }

    fn set(&mut self, lit: bool) -> Result<(), P::Error> {
        if lit == (self.active == Active::High) { self.pin.set_high() } else { self.pin.set_low() }
    }
}

/// What is indicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The photo has a match.
    Match,
    /// It has none.
    Unknown,
}

/// Two lamps, each of which may be missing: one is lit for a while for the newest sign, and the other is out.
#[derive(Debug)]
pub struct Indicator<P> {
    on_match: Option<Lamp<P>>,
    on_unknown: Option<Lamp<P>>,
    /// When what is lit goes out.
    until: Option<Duration>,
}

impl<P: OutputPin> Indicator<P> {
    /// Both are put out, whatever they were.
    ///
    /// # Errors
    /// A pin that cannot be set.
    pub fn new(on_match: Option<Lamp<P>>, on_unknown: Option<Lamp<P>>) -> Result<Self, P::Error> {
        let mut indicator = Self { on_match, on_unknown, until: None };
        indicator.put_out()?;
        Ok(indicator)
    }

    /// Lights the lamp of `sign` from `now` on for so long, and puts out the other. A later sign takes the place of an
    /// earlier one, also where the earlier one would have been lit for longer.
    ///
    /// # Errors
    /// A pin that cannot be set. What is lit goes out in its time all the same.
    pub fn show(&mut self, sign: Sign, now: Duration, lit_for: Duration) -> Result<(), P::Error> {
        self.until = Some(now.saturating_add(lit_for));
        let (lit, out) = match sign {
            Sign::Match => (&mut self.on_match, &mut self.on_unknown),
            Sign::Unknown => (&mut self.on_unknown, &mut self.on_match),
        };
        let put_out = out.as_mut().map_or(Ok(()), |lamp| lamp.set(false));
        lit.as_mut().map_or(Ok(()), |lamp| lamp.set(true)).and(put_out)
    }

    /// Puts out what has been lit for long enough. Returns for how long something stays lit: when to call again.
    ///
    /// # Errors
    /// A pin that cannot be set; the next call tries again.
    pub fn tick(&mut self, now: Duration) -> Result<Option<Duration>, P::Error> {
        match self.until {
            Some(until) if until > now => Ok(Some(until.saturating_sub(now))),
            Some(_) => self.put_out().map(|()| None),
            None => Ok(None),
        }
    }

    /// Puts both out.
    ///
    /// # Errors
    /// A pin that cannot be set; the other one is set nevertheless.
    pub fn put_out(&mut self) -> Result<(), P::Error> {
        let one = self.on_match.as_mut().map_or(Ok(()), |lamp| lamp.set(false));
        let two = self.on_unknown.as_mut().map_or(Ok(()), |lamp| lamp.set(false));
        one.and(two)?;
        self.until = None;
        Ok(())
    }
}

/// For how long a contact must stay as it is: those of cheap buttons bounce for some milliseconds.
pub const SETTLE: Duration = Duration::from_millis(20);

/// Tells presses from the bouncing of a contact: one press for each time that it is pressed and stays so for a while, after it was
/// released and stayed so for as long.
#[derive(Debug, Clone)]
pub struct Debounce {
    settle: Duration,
    /// The state that has been told.
    is_pressed: bool,
    /// The state that the contact is in, and since when.
    now_pressed: bool,
    since: Duration,
}

impl Debounce {
    /// A contact that is `is_pressed` at first, which is no press.
    pub const fn new(settle: Duration, is_pressed: bool) -> Self {
        Self { settle, is_pressed, now_pressed: is_pressed, since: Duration::ZERO }
    }

    /// The contact is in this state at `at`, whether it was so before or not. True where that tells that it was pressed.
    pub fn is(&mut self, pressed: bool, at: Duration) -> bool {
        // What it was until now has lasted long enough, or not.
        let told = self.tick(at);
        if pressed != self.now_pressed {
            (self.now_pressed, self.since) = (pressed, at);
        }
        told
    }

    /// Nothing has changed until `now`. True where that tells that it was pressed.
    pub fn tick(&mut self, now: Duration) -> bool {
        let settled = now.saturating_sub(self.since) >= self.settle;
        if !settled || self.now_pressed == self.is_pressed {
            return false;
        }
        self.is_pressed = self.now_pressed;
        self.is_pressed
    }

    /// When something is to be told if nothing changes until then; `None`: nothing is.
    pub fn due(&self) -> Option<Duration> {
        (self.now_pressed != self.is_pressed).then(|| self.since.saturating_add(self.settle))
    }

    /// The state that the contact was in last, bouncing or not.
    pub const fn now_pressed(&self) -> bool {
        self.now_pressed
    }
}

/// A button on a pin that is asked from time to time, more often than it bounces.
#[derive(Debug)]
pub struct Button<P> {
    pin: P,
    active: Active,
    debounce: Debounce,
}

impl<P: InputPin> Button<P> {
    /// A button that is pressed where `pin` is `active`; it is asked what it is now.
    ///
    /// # Errors
    /// A pin that cannot be read.
    pub fn new(mut pin: P, active: Active, settle: Duration) -> Result<Self, P::Error> {
        let is_pressed = pin.is_high()? == (active == Active::High);
        Ok(Self { pin, active, debounce: Debounce::new(settle, is_pressed) })
    }

    /// Whether it was pressed; each press is told once.
    ///
    /// # Errors
    /// A pin that cannot be read.
    pub fn poll(&mut self, now: Duration) -> Result<bool, P::Error> {
        let is_pressed = self.pin.is_high()? == (self.active == Active::High);
        Ok(self.debounce.is(is_pressed, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use core::convert::Infallible;
    use embedded_hal::digital::{Error, ErrorKind, ErrorType};
    use proptest::prelude::*;
    use std::vec::Vec;

    const fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    /// A pin of which a test holds the level.
    #[derive(Debug)]
    struct Wire<'a>(&'a Cell<bool>);

    impl ErrorType for Wire<'_> {
        type Error = Infallible;
    }

    impl OutputPin for Wire<'_> {
        fn set_low(&mut self) -> Result<(), Infallible> {
            self.0.set(false);
            Ok(())
        }
        fn set_high(&mut self) -> Result<(), Infallible> {
            self.0.set(true);
            Ok(())
        }
    }

    impl InputPin for Wire<'_> {
        fn is_high(&mut self) -> Result<bool, Infallible> {
            Ok(self.0.get())
        }
        fn is_low(&mut self) -> Result<bool, Infallible> {
            Ok(!self.0.get())
        }
    }

    #[test]
    fn a_lamp_is_lit_for_its_time_and_the_newest_sign_wins() {
        let (on_match, on_unknown) = (Cell::new(true), Cell::new(false));
        let levels = || (on_match.get(), on_unknown.get());
        let mut indicator = Indicator::new(
            Some(Lamp::new(Wire(&on_match), Active::High)),
            Some(Lamp::new(Wire(&on_unknown), Active::Low)),
        )
        .unwrap();
        assert_eq!(levels(), (false, true), "both are out at first");
        assert_eq!(indicator.tick(ms(0)), Ok(None));
        indicator.show(Sign::Match, ms(10), ms(1000)).unwrap();
        assert_eq!(levels(), (true, true));
        assert_eq!(indicator.tick(ms(510)), Ok(Some(ms(500))));
        indicator.show(Sign::Unknown, ms(600), ms(100)).unwrap();
        assert_eq!(levels(), (false, false), "the newer sign puts out the older");
        assert_eq!(indicator.tick(ms(699)), Ok(Some(ms(1))));
        assert_eq!(indicator.tick(ms(700)), Ok(None));
        assert_eq!(levels(), (false, true), "and takes over its time too");
        indicator.show(Sign::Unknown, ms(800), Duration::MAX).unwrap();
        assert!(!on_unknown.get());
        indicator.put_out().unwrap();
        assert_eq!((levels(), indicator.tick(ms(900))), ((false, true), Ok(None)));
    }

    #[test]
    fn a_lamp_that_is_missing_puts_out_the_other_nevertheless() {
        let on_match = Cell::new(false);
        let mut indicator = Indicator::new(Some(Lamp::new(Wire(&on_match), Active::High)), None).unwrap();
        indicator.show(Sign::Match, ms(0), ms(9)).unwrap();
        assert!(on_match.get());
        indicator.show(Sign::Unknown, ms(1), ms(9)).unwrap();
        assert!(!on_match.get());
    }

    /// A pin that fails as often as is asked for.
    #[derive(Debug)]
    struct Flaky<'a>(Wire<'a>, &'a Cell<u8>);

    #[derive(Debug, PartialEq)]
    struct Broken;

    impl Error for Broken {
        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    impl ErrorType for Flaky<'_> {
        type Error = Broken;
    }

    impl Flaky<'_> {
        fn fails(&self) -> Result<(), Broken> {
            let left = self.1.get();
            self.1.set(left.saturating_sub(1));
            if left > 0 { Err(Broken) } else { Ok(()) }
        }
    }

    impl OutputPin for Flaky<'_> {
        fn set_low(&mut self) -> Result<(), Broken> {
            self.fails()?;
            let _ = self.0.set_low();
            Ok(())
        }
        fn set_high(&mut self) -> Result<(), Broken> {
            self.fails()?;
            let _ = self.0.set_high();
            Ok(())
        }
    }

    #[test]
    fn a_lamp_that_did_not_go_out_is_put_out_by_the_next_tick() {
        let (level, failures) = (Cell::new(false), Cell::new(0));
        let lamp = Lamp::new(Flaky(Wire(&level), &failures), Active::High);
        let mut indicator = Indicator::new(Some(lamp), None).unwrap();
        indicator.show(Sign::Match, ms(0), ms(10)).unwrap();
        failures.set(1);
        assert_eq!(indicator.tick(ms(10)), Err(Broken));
        assert!(level.get());
        assert_eq!(indicator.tick(ms(11)), Ok(None));
        assert!(!level.get());
    }

    #[test]
    fn a_button_that_is_held_at_the_start_is_not_pressed_until_it_was_released() {
        let level = Cell::new(false);
        let mut button = Button::new(Wire(&level), Active::Low, ms(20)).unwrap();
        assert_eq!(button.poll(ms(100)), Ok(false));
        level.set(true);
        assert_eq!((button.poll(ms(200)), button.poll(ms(300))), (Ok(false), Ok(false)));
        level.set(false);
        assert_eq!((button.poll(ms(400)), button.poll(ms(419))), (Ok(false), Ok(false)));
        assert_eq!((button.poll(ms(420)), button.poll(ms(500))), (Ok(true), Ok(false)));
    }

    #[test]
    fn a_press_that_is_over_when_it_is_heard_of_counts() {
        let mut contact = Debounce::new(ms(20), false);
        assert!(!contact.is(true, ms(1000)));
        assert_eq!(contact.due(), Some(ms(1020)));
        assert!(contact.is(false, ms(1100)), "the edge of the release tells that the press lasted");
        assert!(!contact.tick(ms(2000)));
        assert_eq!(contact.due(), None);
    }

    /// A spark of a motor, or a hand that brushes the contact.
    #[test]
    fn a_short_touch_is_no_press() {
        let mut contact = Debounce::new(ms(20), false);
        assert!(!contact.is(true, ms(100)) && !contact.is(false, ms(119)) && !contact.tick(ms(1000)));
    }

    proptest! {
        /// Each press is: closed with bounces, held, opened with bounces, at rest. Bounces are shorter than the time to settle,
        /// holds and rests are longer. The button is asked more often than it bounces.
        #[test]
        fn each_press_is_told_once_whatever_the_contact_bounces(
            presses in prop::collection::vec(
                (prop::collection::vec(1_u64..20, 0..8), 30_u64..500, prop::collection::vec(1_u64..20, 0..8), 30_u64..500),
                0..12,
            ),
        ) {
            // When the level changes, and what to.
            let mut edges = Vec::new();
            let mut at = 100;
            for (closing, hold, opening, rest) in &presses {
                for (bounces, stays, level) in [(closing, hold, true), (opening, rest, false)] {
                    edges.push((at, level));
                    // An even number of bounces leaves the level as it shall be.
                    for pair in bounces.chunks_exact(2) {
                        edges.push((at + pair[0], !level));
                        edges.push((at + pair[0] + pair[1], level));
                        at += pair[0] + pair[1];
                    }
                    at += stays;
                }
            }
            let end = at + 100;

            let mut by_edges = Debounce::new(ms(20), false);
            let heard = edges.iter().filter(|(at, level)| by_edges.is(*level, ms(*at))).count();
            let heard = heard + usize::from(by_edges.tick(ms(end)));
            prop_assert_eq!(heard, presses.len());

            let level = Cell::new(false);
            let mut button = Button::new(Wire(&level), Active::High, ms(20)).unwrap();
            let mut edges = edges.into_iter().peekable();
            let mut polled = 0;
            for now in 0..end {
                while let Some((_, to)) = edges.next_if(|(at, _)| *at <= now) {
                    level.set(to);
                }
                if button.poll(ms(now)).unwrap() {
                    polled += 1;
                }
            }
            prop_assert_eq!(polled, presses.len());
        }

        #[test]
        fn presses_and_releases_alternate_whatever_comes(changes in prop::collection::vec((0_u64..60, any::<bool>()), 0..200)) {
            let mut contact = Debounce::new(ms(20), false);
            let (mut at, mut presses, mut closings) = (0, 0, 0);
            let mut before = false;
            for (later, level) in changes {
                at += later;
                presses += usize::from(contact.is(level, ms(at)));
                closings += usize::from(level && !before);
                before = level;
            }
            prop_assert!(presses <= closings);
        }
    }
}
