//! `glimpse-mcu`: one photo, from the camera to the lamp.
//!
//! What it does is told to whoever debugs it (semihosting), and how it ended is the emulator's exit status. Without a debugger the
//! processor stops at the first word.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() -> std::process::ExitCode {
    eprintln!("glimpse-mcu is for a microcontroller: `make microcontroller` builds it");
    std::process::ExitCode::FAILURE
}

#[cfg(target_os = "none")]
mod program {
    extern crate alloc;

    use alloc::format;
    use alloc::string::String;
    use alloc::vec;
    use alloc::vec::Vec;
    use core::convert::Infallible;
    use core::fmt::Display;
    use core::panic::PanicInfo;
    use core::time::Duration;

    use cortex_m_rt::{ExceptionFrame, entry, exception};
    use cortex_m_semihosting::{debug, heprintln, hprintln};
    use glimpse_edge::{
        Active, Camera as _, Capture, Clock as _, Embedder as _, Event, Indicator, Jitter, Lamp, Patience,
        Session, Sign,
    };
    use glimpse_embedder_core::Memory;
    use glimpse_mcu::board::{Board, BoardClock, Uart, heap, idle, lit};
    use glimpse_mcu::serial::MATCHES;
    use glimpse_mcu::{Answer, MemoryCamera, Picture, PlanEmbedder, SerialUplink};
    use glimpse_protocol::{Codec, Embedding, Query, QueryId};

    /// Room for the embedding in a query: 2048 dimensions as `i8`.
    const EMBEDDING_BYTES: usize = 2052;

    /// How long a query may take, and how often it is sent within that.
    const PATIENCE: (Duration, u8) = (Duration::from_secs(10), 3);

    /// For how long a lamp is lit.
    const LIT_FOR: Duration = Duration::from_millis(500);

    /// The longest that nothing is looked at.
    const STEP: Duration = Duration::from_secs(1);

    type Device = Session<SerialUplink<Uart, BoardClock>, BoardClock, Vec<u8>, 1, 1>;

    #[entry]
    fn main() -> ! {
        let status = match Board::take().ok_or_else(|| String::from("the board is taken")).and_then(run) {
            Ok(()) => debug::EXIT_SUCCESS,
            Err(reason) => {
                heprintln!("error: {}", reason);
                debug::EXIT_FAILURE
            }
        };
        end(status)
    }

    fn end(status: debug::ExitStatus) -> ! {
        debug::exit(status);
        // Nobody is there to end it.
        loop {
            cortex_m::asm::wfi();
        }
    }

    /// Asks about each photo that the camera has.
    fn run(board: Board) -> Result<(), String> {
        let [on_match, on_unknown] = board.lamps.map(|pin| Some(Lamp::new(pin, Active::High)));
        let mut lamps = never(Indicator::new(on_match, on_unknown));
        let mut network = PlanEmbedder::load(&Memory::new(board.plan), || heap().1).map_err(text)?;
        let [_, height, width] = network.model().plan().input();
        hprintln!(
            "network: {} steps, {}x{} pixels to {} dimensions of the space {}",
            network.model().plan().steps().len(),
            width,
            height,
            network.dimension(),
            network.space()
        );
        let mut camera = MemoryCamera::new(board.picture);
        let uplink = SerialUplink::new(board.line, BoardClock);
        let patience = Patience::within(PATIENCE.0, PATIENCE.1);
        let jitter = Jitter::new(seed_of(board.picture));
        let mut session = Device::new(uplink, BoardClock, patience, jitter, false);
        while let Capture::Photo(photo) = camera.capture().map_err(text)? {
            let answer = ask(&mut session, &mut network, &photo)?;
            let sign = match answer {
                Answer::Matches(reply) => {
                    for found in &reply.matches {
                        hprintln!(
                            "match: {} ({}), similarity {:.4}",
                            found.image,
                            found.label,
                            found.similarity
                        );
                    }
                    if reply.matches.is_empty() { Sign::Unknown } else { Sign::Match }
                }
                Answer::Refused(error) => {
                    return Err(format!("the server refuses the query: {}", error.message));
                }
                Answer::Malformed => return Err(String::from("the server's reply cannot be read")),
            };
            never(lamps.show(sign, BoardClock.now(), LIT_FOR));
            let [on_match, on_unknown] = lit();
            hprintln!("lamps: match {}, unknown {}", on_match, on_unknown);
            while never(lamps.tick(BoardClock.now())).is_some() {
                idle();
            }
        }
        Ok(())
    }

    /// What the server says to a photo.
    fn ask(
        session: &mut Device,
        network: &mut PlanEmbedder,
        photo: &Picture<'static>,
    ) -> Result<Answer, String> {
        let taken = BoardClock.now();
        let mut embedding = vec![0.0; network.dimension()];
        network.embed(photo, &mut embedding).map_err(text)?;
        let (used, free) = heap();
        let (photo_width, photo_height) = photo.frame.dimensions();
        hprintln!(
            "photo: {}x{}, embedded in {} ms; {} of {} bytes of the heap are in use",
            photo_width,
            photo_height,
            (BoardClock.now() - taken).as_millis(),
            used,
            used + free
        );
        let id = id_of(photo, taken);
        let embedding = Embedding::<EMBEDDING_BYTES>::encode(Codec::I8, &embedding).map_err(text)?;
        let mut query = Query::new(id, network.space(), embedding, MATCHES as u16);
        query.uptime_ms = Some(taken.as_millis() as u64);
        let mut message = Vec::new();
        ciborium::into_writer(&query, &mut message).map_err(text)?;
        hprintln!("query: {}, {} bytes", id, message.len());
        if session.submit(id, message).is_some() {
            return Err(String::from("there is no room for a query"));
        }
        loop {
            match session.step(STEP).map_err(text)? {
                Some(Event::Answered { reply, attempts, reply_time, .. }) => {
                    hprintln!("reply: after {} ms, asked {} times", reply_time.as_millis(), attempts);
                    return Ok(reply);
                }
                Some(Event::GivenUp { attempts, .. }) => {
                    return Err(format!("no reply on the serial line, asked {attempts} times"));
                }
                Some(Event::NotSent(error) | Event::Disconnected(error)) => return Err(text(error)),
                Some(Event::Connected | Event::Gallery(_)) | None => {}
            }
        }
    }

    /// There is no source of random numbers, but a camera's picture has noise: an id that nobody else has, unless it is the same picture
    /// of the same moment.
    fn id_of(photo: &Picture<'_>, taken: Duration) -> QueryId {
        let mut hasher = blake3::Hasher::new_derive_key("glimpse query id of a microcontroller, version 1");
        hasher.update(&taken.as_millis().to_le_bytes());
        hasher.update(photo.bytes);
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        QueryId::from_bytes(id)
    }

    /// By the same noise two boards do not repeat their queries at the same moments.
    fn seed_of(picture: &[u8]) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("glimpse jitter of a microcontroller, version 1");
        hasher.update(picture);
        let mut seed = [0; 8];
        hasher.finalize_xof().fill(&mut seed);
        u64::from_le_bytes(seed)
    }

    fn text(error: impl Display) -> String {
        format!("{error}")
    }

    fn never<T>(result: Result<T, Infallible>) -> T {
        result.unwrap_or_else(|error| match error {})
    }

    #[panic_handler]
    fn panicked(info: &PanicInfo<'_>) -> ! {
        heprintln!("{}", info);
        end(debug::EXIT_FAILURE)
    }

    #[exception]
    unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
        heprintln!("the processor stopped at {:#010x}", frame.pc());
        end(debug::EXIT_FAILURE)
    }
}
