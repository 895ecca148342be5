//! The board: a Cortex-M4F on Arm's MPS2 (application note 386), as QEMU has it (`-M mps2-an386`).
//!
//! | from | bytes | what |
//! |---|---|---|
//! | `0x0000_0000` | 4 MiB | the program (`memory.x`) |
//! | `0x2000_0000` | 2 MiB | stack and statics (`memory.x`) |
//! | `0x2020_0000` | 2 MiB | the camera's picture |
//! | `0x2100_0000` | 6 MiB | the query network's plan |
//! | `0x2160_0000` | 10 MiB | the heap |

use core::convert::Infallible;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use cortex_m::interrupt::InterruptNumber;
use cortex_m::peripheral::syst::SystClkSource;
use cortex_m::peripheral::{NVIC, Peripherals, SCB};
use embedded_alloc::LlffHeap as Heap;
use embedded_hal::digital::{ErrorType, OutputPin};
use glimpse_edge::Clock;

use crate::Line;

const PICTURE: (usize, usize) = (0x2020_0000, 2 << 20);
const PLAN: (usize, usize) = (0x2100_0000, 6 << 20);
const HEAP: (usize, usize) = (0x2160_0000, 10 << 20);

#[global_allocator]
static ALLOCATOR: Heap = Heap::empty();

/// A register of the board.
#[derive(Debug)]
struct Register(usize);

impl Register {
    /// # Safety
    /// At this address is a register of 32 bits, and neither reading nor writing it reaches any memory.
    const unsafe fn at(address: usize) -> Self {
        Self(address)
    }

    fn read(&self) -> u32 {
        // SAFETY: whoever made it has promised that the address is a register's.
        unsafe { core::ptr::read_volatile(self.0 as *const u32) }
    }

    fn write(&self, value: u32) {
        // SAFETY: as above, and it reaches no memory.
        unsafe { core::ptr::write_volatile(self.0 as *mut u32, value) }
    }
}

/// What is on the board.
#[derive(Debug)]
pub struct Board {
    /// The serial line.
    pub line: Uart,
    /// The two lamps beside its button.
    pub lamps: [LampPin; 2],
    /// Where the camera leaves its picture.
    pub picture: &'static [u8],
    /// Where the query network's plan is.
    pub plan: &'static [u8],
}

impl Board {
    /// The board, with its clock running; `None` where somebody has it already.
    pub fn take() -> Option<Self> {
        let mut processor = Peripherals::take()?;
        // Nobody is interrupted: an interrupt that waits ends a sleep, and that is all it is for.
        cortex_m::interrupt::disable();
        processor.SYST.set_clock_source(SystClkSource::Core);
        processor.SYST.set_reload(CLOCK_HZ / 1000 * TICK_MS - 1);
        processor.SYST.clear_current();
        processor.SYST.enable_counter();
        processor.SYST.enable_interrupt();
        // SAFETY: it is done once, and neither the linker nor anybody here has another use for that memory.
        unsafe { ALLOCATOR.init(HEAP.0, HEAP.1) };
        BoardClock::start();
        // SAFETY: memory that whoever loaded the program may have written before, and nobody writes from now on.
        let memory =
            |(from, bytes): (usize, usize)| unsafe { core::slice::from_raw_parts(from as *const u8, bytes) };
        let (picture, plan) = (memory(PICTURE), memory(PLAN));
        Some(Self { line: Uart::start(), lamps: [LampPin(0), LampPin(1)], picture, plan })
    }
}

/// Between two ends of a sleep, in milliseconds.
const TICK_MS: u32 = 10;

/// Sleeps until a byte comes over the serial line, but not past the next tick.
pub fn idle() {
    cortex_m::asm::wfi();
    SCB::clear_pendst();
    INTERRUPTS.write(BYTE_RECEIVED);
    NVIC::unpend(ReceiverInterrupt);
}

/// Bytes on the heap: those in use, and those that are free.
pub fn heap() -> (usize, usize) {
    (ALLOCATOR.used(), ALLOCATOR.free())
}

/// Milliseconds, by the board's counter.
#[derive(Debug, Clone, Copy, Default)]
pub struct BoardClock;

/// The board's clock, in Hz.
const CLOCK_HZ: u32 = 25_000_000;

// SAFETY: registers of the block FPGAIO.
const COUNTER: Register = unsafe { Register::at(0x4002_8018) };
// SAFETY: as above.
const PRESCALE: Register = unsafe { Register::at(0x4002_801c) };

impl BoardClock {
    /// Has the counter count milliseconds.
    fn start() {
        PRESCALE.write(CLOCK_HZ / 1000 - 1);
        COUNTER.write(0);
    }
}

impl Clock for BoardClock {
    fn now(&self) -> Duration {
        // The counter begins anew after 49 days. Nothing interrupts us, so that the two belong together.
        static ROUNDS: AtomicU32 = AtomicU32::new(0);
        static LAST: AtomicU32 = AtomicU32::new(0);
        let count = COUNTER.read();
        if LAST.swap(count, Ordering::Relaxed) > count {
            ROUNDS.fetch_add(1, Ordering::Relaxed);
        }
        Duration::from_millis(u64::from(ROUNDS.load(Ordering::Relaxed)) << 32 | u64::from(count))
    }
}

/// The first serial line: CMSDK's APB UART.
#[derive(Debug)]
pub struct Uart(());

// SAFETY: registers of the UART.
const DATA: Register = unsafe { Register::at(0x4000_4000) };
// SAFETY: as above.
const STATE: Register = unsafe { Register::at(0x4000_4004) };
// SAFETY: as above.
const CONTROL: Register = unsafe { Register::at(0x4000_4008) };
// SAFETY: as above.
const INTERRUPTS: Register = unsafe { Register::at(0x4000_400c) };
// SAFETY: as above.
const DIVIDER: Register = unsafe { Register::at(0x4000_4010) };

const SENDING_FULL: u32 = 1;
const RECEIVED: u32 = 2;
/// Sends, receives, and interrupts for what was received.
const ALL_BUT_SENT: u32 = 0b1011;
const BYTE_RECEIVED: u32 = 2;
const BAUD: u32 = 115_200;

/// That of the first serial line's receiver.
#[derive(Debug, Clone, Copy)]
struct ReceiverInterrupt;

// SAFETY: always the same number, which the board's manual has.
unsafe impl InterruptNumber for ReceiverInterrupt {
    fn number(self) -> u16 {
        0
    }
}

impl Uart {
    fn start() -> Self {
        DIVIDER.write(CLOCK_HZ / BAUD);
        CONTROL.write(ALL_BUT_SENT);
        // SAFETY: interrupts are disabled, so that no handler runs.
        unsafe { NVIC::unmask(ReceiverInterrupt) };
        Self(())
    }
}

impl Line for Uart {
    fn send(&mut self, byte: u8) {
        while STATE.read() & SENDING_FULL != 0 {
            core::hint::spin_loop();
        }
        DATA.write(u32::from(byte));
    }

    fn receive(&mut self) -> Option<u8> {
        (STATE.read() & RECEIVED != 0).then(|| DATA.read() as u8)
    }

    fn idle(&mut self) {
        idle();
    }
}

/// One of the board's lamps, lit where it is high.
#[derive(Debug)]
pub struct LampPin(u32);

// SAFETY: a register of the block FPGAIO.
const LAMPS: Register = unsafe { Register::at(0x4002_8000) };

impl ErrorType for LampPin {
    type Error = Infallible;
}

impl OutputPin for LampPin {
    fn set_low(&mut self) -> Result<(), Infallible> {
        LAMPS.write(LAMPS.read() & !(1 << self.0));
        Ok(())
    }

    fn set_high(&mut self) -> Result<(), Infallible> {
        LAMPS.write(LAMPS.read() | 1 << self.0);
        Ok(())
    }
}

/// Which lamps are lit, for reports.
pub fn lit() -> [bool; 2] {
    let lamps = LAMPS.read();
    [lamps & 1 != 0, lamps & 2 != 0]
}
