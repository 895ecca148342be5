//! The lamps, in a thread that puts them out in time.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use embedded_hal::digital::OutputPin;
use glimpse_protocol::device::GpioLine;

use crate::linux::gpio::{self, GpioError};
use crate::pins::{Indicator, Lamp, Sign};

/// For how long an answer is to be seen.
const LIT_FOR: Duration = Duration::from_secs(1);

/// How soon a lamp that did not go out is tried again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Lamps {
    signs: SyncSender<Sign>,
    thread: JoinHandle<()>,
}

impl Lamps {
    /// Takes the lines, and puts both lamps out.
    pub(super) fn of_lines(
        on_match: Option<&GpioLine>,
        on_unknown: Option<&GpioLine>,
    ) -> Result<io::Result<Self>, GpioError> {
        let lamp = |line: &GpioLine| Ok(Lamp::new(gpio::output(line)?, gpio::active(line)));
        let (on_match, on_unknown) = (on_match.map(lamp).transpose()?, on_unknown.map(lamp).transpose()?);
        let indicator = Indicator::new(on_match, on_unknown).map_err(GpioError::from_pin)?;
        Ok(Self::start(indicator))
    }

    fn start<P: OutputPin + Send + 'static>(indicator: Indicator<P>) -> io::Result<Self> {
        let (signs, shown) = sync_channel(4);
        let thread = thread::Builder::new()
            .name("lamps".to_owned())
            .spawn(move || run(indicator, &shown, Instant::now()))?;
        Ok(Self { signs, thread })
    }

    /// Does not wait; of signs that come faster than lamps are set, some are not seen.
    pub(super) fn show(&self, sign: Sign) {
        let _ = self.signs.try_send(sign);
    }

    /// Puts the lamps out.
    pub(super) fn close(self) {
        drop(self.signs);
        let _ = self.thread.join();
    }
}

fn run<P: OutputPin>(mut indicator: Indicator<P>, shown: &Receiver<Sign>, start: Instant) {
    let mut is_failing = false;
    let mut wait: Option<Duration> = None;
    loop {
        let sign = match wait {
            Some(wait) => shown.recv_timeout(wait),
            None => shown.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let done = match sign {
            Ok(sign) => indicator.show(sign, start.elapsed(), LIT_FOR).map(|()| Some(LIT_FOR)),
            Err(RecvTimeoutError::Timeout) => indicator.tick(start.elapsed()),
            Err(RecvTimeoutError::Disconnected) => {
                let _ = indicator.put_out();
                return;
            }
        };
        wait = match done {
            Ok(wait) => {
                is_failing = false;
                wait
            }
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(?error, "led: a line cannot be set");
                }
                Some(AGAIN)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pins::Active;
    use embedded_hal::digital::ErrorType;
    use std::convert::Infallible;
    use std::sync::mpsc::{Sender, channel};

    /// Tells what it is set to.
    struct Told(&'static str, Sender<(&'static str, bool)>);

    impl ErrorType for Told {
        type Error = Infallible;
    }

    impl OutputPin for Told {
        fn set_low(&mut self) -> Result<(), Infallible> {
            let _ = self.1.send((self.0, false));
            Ok(())
        }
        fn set_high(&mut self) -> Result<(), Infallible> {
            let _ = self.1.send((self.0, true));
            Ok(())
        }
    }

    #[test]
    fn a_lamp_is_lit_goes_out_and_is_out_at_the_end() {
        let (told, levels) = channel();
        let lamp = |name| Lamp::new(Told(name, told.clone()), Active::High);
        let lamps =
            Lamps::start(Indicator::new(Some(lamp("match")), Some(lamp("unknown"))).unwrap()).unwrap();
        let next = || [levels.recv().unwrap(), levels.recv().unwrap()];
        assert_eq!(next(), [("match", false), ("unknown", false)]);
        lamps.show(Sign::Match);
        let mut lit = next();
        lit.sort_unstable();
        assert_eq!(lit, [("match", true), ("unknown", false)]);
        assert_eq!(next(), [("match", false), ("unknown", false)], "after its time");
        lamps.show(Sign::Unknown);
        let mut lit = next();
        lit.sort_unstable();
        assert_eq!(lit, [("match", false), ("unknown", true)]);
        lamps.close();
        assert_eq!(next(), [("match", false), ("unknown", false)]);
    }
}
