//! Messages over a serial line. At its other end is a gateway, which passes them on: a query to the topic of its device, and back what
//! comes on the reply topic.
//!
//! Frames are those of RFC 1055 (SLIP): a byte ends each, and is never within one, so that whoever comes late is in step with the next
//! frame. What is in a frame is what MQTT carries elsewhere, in CBOR. A frame that was damaged on its way is no message, or answers no
//! query of ours, and the session asks again.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use glimpse_edge::{Clock, Error, ErrorKind, Received, Uplink};
use glimpse_protocol::{
    ErrorBody, ErrorCode, ErrorReply, Header, MESSAGE_BYTES_MAX, QueryId, Reply, VERSION,
};
use serde::de::DeserializeOwned;
use thiserror::Error;

const END: u8 = 0xc0;
const ESCAPE: u8 = 0xdb;
const ESCAPED_END: u8 = 0xdc;
const ESCAPED_ESCAPE: u8 = 0xdd;

/// Matches that are asked for and read: there is a lamp for the nearest, and no screen for more.
pub const MATCHES: usize = 3;

/// The two directions of a serial line.
pub trait Line {
    /// Sends a byte, waiting until there is room for it.
    fn send(&mut self, byte: u8);

    /// The next byte that came, if one did.
    fn receive(&mut self) -> Option<u8>;

    /// Sleeps until a byte comes, or for some milliseconds.
    fn idle(&mut self);
}

/// What a server says to a query.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The nearest images.
    Matches(Box<Reply<MATCHES>>),
    /// Why there are none.
    Refused(Box<ErrorBody>),
    /// A reply that cannot be read.
    Malformed,
}

/// Why something could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SerialError {
    /// No server would read it.
    #[error("a message of {0} bytes, and at most {MESSAGE_BYTES_MAX} are read")]
    TooLong(usize),
}

impl Error for SerialError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Input
    }
}

/// The way to the gateway. The line is always there.
#[derive(Debug)]
pub struct SerialUplink<L, C> {
    line: L,
    clock: C,
    connected: bool,
    frame: Vec<u8>,
    /// The byte before was an escape.
    escaped: bool,
    /// The frame is too long, or breaks the rules: it is passed over.
    bad: bool,
}

impl<L: Line, C: Clock> SerialUplink<L, C> {
    /// Over a line on which nothing has been sent.
    pub const fn new(line: L, clock: C) -> Self {
        Self { line, clock, connected: false, frame: Vec::new(), escaped: false, bad: false }
    }

    fn send(&mut self, message: &[u8]) {
        // Ends whatever noise there was before.
        self.line.send(END);
        for byte in message {
            match *byte {
                END => [ESCAPE, ESCAPED_END].into_iter().for_each(|byte| self.line.send(byte)),
                ESCAPE => [ESCAPE, ESCAPED_ESCAPE].into_iter().for_each(|byte| self.line.send(byte)),
                byte => self.line.send(byte),
            }
        }
        self.line.send(END);
    }

    /// Takes a byte; a message where it was the last of one.
    fn take(&mut self, byte: u8) -> Option<Vec<u8>> {
        if byte == END {
            let bad = core::mem::take(&mut self.bad) | core::mem::take(&mut self.escaped);
            let frame = core::mem::take(&mut self.frame);
            return Some(frame).filter(|frame| !bad && !frame.is_empty());
        }
        let byte = match (core::mem::take(&mut self.escaped), byte) {
            (false, ESCAPE) => {
                self.escaped = true;
                return None;
            }
            (true, ESCAPED_END) => END,
            (true, ESCAPED_ESCAPE) => ESCAPE,
            (true, byte) => {
                self.bad = true;
                byte
            }
            (false, byte) => byte,
        };
        if self.bad || self.frame.len() == MESSAGE_BYTES_MAX {
            self.bad = true;
            self.frame = Vec::new();
        } else {
            self.frame.push(byte);
        }
        None
    }
}

impl<L: Line, C: Clock> Uplink for SerialUplink<L, C> {
    type Reply = Answer;
    type Error = SerialError;

    fn publish(&mut self, _id: QueryId, message: &[u8]) -> Result<(), SerialError> {
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(SerialError::TooLong(message.len()));
        }
        self.send(message);
        Ok(())
    }

    /// The gateway speaks for its devices.
    fn announce(&mut self, _outbox: usize) -> Result<(), SerialError> {
        Ok(())
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Received<Answer, SerialError>>, SerialError> {
        if !core::mem::replace(&mut self.connected, true) {
            return Ok(Some(Received::Connected));
        }
        let until = self.clock.now().saturating_add(wait);
        loop {
            match self.line.receive() {
                Some(byte) => {
                    if let Some((id, reply)) = self.take(byte).and_then(|message| read_reply(&message)) {
                        let busy = matches!(&reply, Answer::Refused(error) if is_busy(error.code));
                        return Ok(Some(Received::Reply { id, reply, busy }));
                    }
                    // Somebody may send without a pause, and never a reply.
                    if byte == END && self.clock.now() >= until {
                        return Ok(None);
                    }
                }
                None if self.clock.now() >= until => return Ok(None),
                None => self.line.idle(),
            }
        }
    }
}

const fn is_busy(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Busy | ErrorCode::Unavailable)
}

/// Which query a message answers and what it says; `None` where it does not tell.
fn read_reply(message: &[u8]) -> Option<(QueryId, Answer)> {
    let header: Header = read(message)?;
    let id = header.id?;
    if header.v != VERSION {
        return Some((id, Answer::Malformed));
    }
    let answer = match (read::<Reply<MATCHES>>(message), read::<ErrorReply>(message)) {
        (Some(reply), _) if reply.matches.iter().all(|found| found.similarity.is_finite()) => {
            Answer::Matches(Box::new(reply))
        }
        (None, Some(refused)) => Answer::Refused(Box::new(refused.error)),
        _ => Answer::Malformed,
    };
    Some((id, answer))
}

fn read<T: DeserializeOwned>(message: &[u8]) -> Option<T> {
    ciborium::from_reader(message).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use glimpse_protocol::Match;
    use proptest::prelude::*;
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;
    use std::rc::Rc;

    /// The far end of a line, and the time.
    #[derive(Debug, Clone, Default)]
    struct World {
        sent: Rc<RefCell<Vec<u8>>>,
        coming: Rc<RefCell<VecDeque<u8>>>,
        now: Rc<Cell<Duration>>,
    }

    impl Line for World {
        fn send(&mut self, byte: u8) {
            self.sent.borrow_mut().push(byte);
        }

        fn receive(&mut self) -> Option<u8> {
            self.coming.borrow_mut().pop_front()
        }

        fn idle(&mut self) {}
    }

    impl Clock for World {
        fn now(&self) -> Duration {
            self.now.set(self.now.get() + Duration::from_millis(1));
            self.now.get()
        }
    }

    const WAIT: Duration = Duration::from_millis(50);

    fn uplink() -> (World, SerialUplink<World, World>) {
        let world = World::default();
        let mut uplink = SerialUplink::new(world.clone(), world.clone());
        assert_eq!(uplink.receive(WAIT), Ok(Some(Received::Connected)));
        (world, uplink)
    }

    fn id(byte: u8) -> QueryId {
        QueryId::from_bytes([byte; 16])
    }

    fn cbor(message: &impl serde::Serialize) -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(message, &mut bytes).unwrap();
        bytes
    }

    fn reply(byte: u8, similarity: f32) -> Reply<MATCHES> {
        let found = Match { image: "a.jpg".try_into().unwrap(), label: "a".try_into().unwrap(), similarity };
        let matches = [found].into_iter().collect();
        Reply { v: VERSION, id: id(byte), matches, took_us: 1, generation: 1 }
    }

    /// Sends by one uplink what another receives.
    fn framed(message: &[u8]) -> Vec<u8> {
        let (world, mut uplink) = uplink();
        uplink.publish(id(1), message).unwrap();
        world.sent.take()
    }

    #[test]
    fn a_reply_comes_as_it_was_sent_whatever_its_bytes() {
        let (world, mut uplink) = uplink();
        for byte in [1, END, ESCAPE, ESCAPED_END, ESCAPED_ESCAPE] {
            let sent = reply(byte, 0.5);
            world.coming.borrow_mut().extend(framed(&cbor(&sent)));
            let reply = Answer::Matches(Box::new(sent));
            let received = Received::Reply { id: id(byte), reply, busy: false };
            assert_eq!(uplink.receive(WAIT), Ok(Some(received)));
        }
        assert_eq!(uplink.receive(WAIT), Ok(None));
    }

    #[test]
    fn frames_are_those_of_the_rfc() {
        assert_eq!(framed(&[1, 0xc0, 2, 0xdb]), [0xc0, 1, 0xdb, 0xdc, 2, 0xdb, 0xdd, 0xc0]);
    }

    #[test]
    fn noise_before_a_reply_costs_only_what_it_touches() {
        let (world, mut uplink) = uplink();
        let good = framed(&cbor(&reply(7, 0.5)));
        for noise in [
            vec![1, 2, 3],
            vec![END, END, ESCAPE, END],
            vec![ESCAPE, 1, END],
            good[..good.len() - 9].to_vec(),
            vec![0; MESSAGE_BYTES_MAX + 10],
            framed(b"no message"),
        ] {
            world.coming.borrow_mut().extend(noise.iter().chain(&good));
            let received = uplink.receive(WAIT).unwrap();
            assert!(
                matches!(received, Some(Received::Reply { busy: false, .. })),
                "{received:?} after {noise:?}"
            );
            assert!(world.coming.borrow().is_empty());
        }
    }

    #[test]
    fn refusals_and_what_cannot_be_read_are_told_apart() {
        let (world, mut uplink) = uplink();
        let mut receive = |bytes: &[u8]| {
            world.coming.borrow_mut().extend(framed(bytes));
            match uplink.receive(WAIT).unwrap() {
                Some(Received::Reply { reply, busy, .. }) => Some((reply, busy)),
                _ => None,
            }
        };
        let refusal = |code| ErrorReply { v: VERSION, id: id(1), error: ErrorBody::new(code, "no") };
        let (answer, busy) = receive(&cbor(&refusal(ErrorCode::WrongSpace))).unwrap();
        assert!(matches!(answer, Answer::Refused(error) if error.message == "no") && !busy);
        assert!(receive(&cbor(&refusal(ErrorCode::Busy))).unwrap().1);
        assert_eq!(receive(&cbor(&reply(1, f32::NAN))), Some((Answer::Malformed, false)));
        assert_eq!(receive(&cbor(&Reply { v: 99, ..reply(1, 0.5) })), Some((Answer::Malformed, false)));
        assert_eq!(receive(&cbor(&Header { v: VERSION, id: Some(id(1)) })), Some((Answer::Malformed, false)));
        assert_eq!(receive(&cbor(&Header { v: VERSION, id: None })), None);
        let five = Reply::<5> {
            v: VERSION,
            id: id(1),
            matches: reply(1, 0.5).matches.iter().cycle().take(5).cloned().collect(),
            took_us: 1,
            generation: 1,
        };
        assert_eq!(receive(&cbor(&five)), Some((Answer::Malformed, false)), "more than were asked for");
    }

    proptest! {
        /// With many of the bytes that mean something.
        #[test]
        fn whatever_comes_before_it_a_reply_is_understood(
            noise in prop::collection::vec(
                prop_oneof![any::<u8>(), Just(END), Just(ESCAPE), Just(ESCAPED_END), 0xa0..0xa9_u8],
                0..300,
            ),
        ) {
            let (world, mut uplink) = uplink();
            world.coming.borrow_mut().extend(noise.into_iter().chain(framed(&cbor(&reply(7, 0.5)))));
            let wanted = Answer::Matches(Box::new(reply(7, 0.5)));
            let wanted = Received::Reply { id: id(7), reply: wanted, busy: false };
            // Noise may look like a reply, to nobody's query, and may take so long that there is none within a wait.
            let mut understood = false;
            while !understood && !world.coming.borrow().is_empty() {
                understood = uplink.receive(WAIT).unwrap().is_some_and(|received| received == wanted);
            }
            prop_assert!(understood);
        }

        #[test]
        fn every_message_arrives_as_it_was(message in prop::collection::vec(any::<u8>(), 1..200)) {
            let (_, mut uplink) = uplink();
            let arrived: Vec<_> = framed(&message).into_iter().filter_map(|byte| uplink.take(byte)).collect();
            prop_assert_eq!(arrived, [message]);
        }
    }
}
