//! The kernel's side of V4L2: structures, requests and mapped buffers. The only place with `unsafe` code.
//!
//! The structures are those of the kernel's `videodev2.h`, written once for 32 and 64 bits; a request's number holds the
//! size of its structure, so that a wrong one is refused by the kernel and not misread. On 32 bits `v4l2_buffer` is the one
//! with 64-bit time, which kernels know since 5.6.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, Setter, Updater, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{Capability, Device, Filled, Format, Layout, Sizes};

const CAPTURE: u32 = 1;
const MMAP: u32 = 1;
const FIELD_NONE: u32 = 1;
const FLAG_ERROR: u32 = 0x40;
const CAP_DEVICE_CAPS: u32 = 0x8000_0000;

/// The most buffers that are mapped, whatever the driver gives.
const BUFFERS_MAX: u32 = 32;

/// The largest buffer: a frame of 48 megapixels in YUYV.
const BUFFER_BYTES_MAX: usize = 96 << 20;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawCapability {
    driver: [u8; 16],
    card: [u8; 32],
    bus_info: [u8; 32],
    version: u32,
    capabilities: u32,
    device_caps: u32,
    reserved: [u32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawFormatDescription {
    index: u32,
    kind: u32,
    flags: u32,
    description: [u8; 32],
    pixelformat: u32,
    mbus_code: u32,
    reserved: [u32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawFrameSize {
    index: u32,
    pixel_format: u32,
    kind: u32,
    /// Width and height, or the least, greatest and step of each.
    size: [u32; 6],
    reserved: [u32; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawPixFormat {
    width: u32,
    height: u32,
    pixelformat: u32,
    field: u32,
    bytesperline: u32,
    sizeimage: u32,
    colorspace: u32,
    private: u32,
    flags: u32,
    ycbcr_enc: u32,
    quantization: u32,
    xfer_func: u32,
}

/// The kernel's union has pointers in one of its members, and so their alignment.
#[repr(C)]
#[derive(Clone, Copy)]
union FormatUnion {
    pix: RawPixFormat,
    raw: [u8; 200],
    align: [usize; 0],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawFormat {
    kind: u32,
    fmt: FormatUnion,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawRequestBuffers {
    count: u32,
    kind: u32,
    memory: u32,
    capabilities: u32,
    flags: u8,
    reserved: [u8; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawBuffer {
    index: u32,
    kind: u32,
    bytesused: u32,
    flags: u32,
    field: u32,
    /// Seconds and microseconds.
    timestamp: [i64; 2],
    timecode: [u32; 4],
    sequence: u32,
    memory: u32,
    /// An offset in its lower half, for buffers that are mapped.
    m: Offset,
    length: u32,
    reserved2: u32,
    request_fd: u32,
}

/// A union of a 32-bit offset and pointers.
#[repr(C)]
#[derive(Clone, Copy)]
union Offset {
    offset: u32,
    pointer: usize,
}

impl Default for Offset {
    fn default() -> Self {
        Self { pointer: 0 }
    }
}

const QUERYCAP: Opcode = opcode::read::<RawCapability>(b'V', 0);
const ENUM_FMT: Opcode = opcode::read_write::<RawFormatDescription>(b'V', 2);
const S_FMT: Opcode = opcode::read_write::<RawFormat>(b'V', 5);
const REQBUFS: Opcode = opcode::read_write::<RawRequestBuffers>(b'V', 8);
const QUERYBUF: Opcode = opcode::read_write::<RawBuffer>(b'V', 9);
const QBUF: Opcode = opcode::read_write::<RawBuffer>(b'V', 15);
const DQBUF: Opcode = opcode::read_write::<RawBuffer>(b'V', 17);
const STREAMON: Opcode = opcode::write::<i32>(b'V', 18);
const STREAMOFF: Opcode = opcode::write::<i32>(b'V', 19);
const ENUM_FRAMESIZES: Opcode = opcode::read_write::<RawFrameSize>(b'V', 74);

/// The kernel's sizes; the build ends where ours are others. (Where `i64` is aligned to 4, on 32-bit x86, all of them are
/// as there too, but for the padding of `v4l2_buffer`.)
const _: () = {
    let wide = cfg!(target_pointer_width = "64");
    assert!(size_of::<RawCapability>() == 104);
    assert!(size_of::<RawFormatDescription>() == 64);
    assert!(size_of::<RawFrameSize>() == 44);
    assert!(size_of::<RawPixFormat>() == 48);
    assert!(size_of::<RawFormat>() == if wide { 208 } else { 204 });
    assert!(size_of::<RawRequestBuffers>() == 20);
    let padded = align_of::<i64>() == 8;
    assert!(
        size_of::<RawBuffer>()
            == if wide {
                88
            } else if padded {
                80
            } else {
                76
            }
    );
    assert!(std::mem::offset_of!(RawBuffer, m) == if padded { 64 } else { 60 });
    assert!(std::mem::offset_of!(RawFormat, fmt) == if wide { 8 } else { 4 });
};

/// A structure that a request reads and writes.
///
/// # Safety
/// `CODE` must be the request that takes a `T`.
unsafe fn update<const CODE: Opcode, T>(file: &File, value: &mut T) -> io::Result<()> {
    loop {
        // SAFETY: the caller gives the structure that the request takes, and it outlives the call.
        match unsafe { ioctl::ioctl(file, Updater::<CODE, T>::new(value)) } {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// A camera's device file, with its buffers.
#[derive(Debug)]
pub struct Node {
    file: File,
    buffers: Vec<Mapped>,
    begun: Instant,
}

#[derive(Debug)]
struct Mapped {
    address: *mut u8,
    length: usize,
    /// The driver has it, and may write to it.
    is_queued: bool,
}

// SAFETY: the memory belongs to this value alone, and nothing about a mapping is bound to a thread.
unsafe impl Send for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: address and length are those of one whole mapping, and slices of it do not outlive this value. What the
        // kernel says of an unmapping that cannot fail is of no use to anybody.
        let _ = unsafe { munmap(self.address.cast(), self.length) };
    }
}

impl Node {
    /// Opens the device. Nothing waits from here on but [`Device::wait`].
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        // O_NONBLOCK, of which every architecture that has V4L2 cameras has this value but MIPS, Alpha and SPARC.
        let flags = rustix::fs::OFlags::NONBLOCK.bits();
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags.cast_signed()).open(path)?;
        Ok(Self { file, buffers: Vec::new(), begun: Instant::now() })
    }

    fn map(&self, index: u32) -> io::Result<Mapped> {
        let mut raw = RawBuffer { index, kind: CAPTURE, memory: MMAP, ..RawBuffer::default() };
        // SAFETY: VIDIOC_QUERYBUF takes a v4l2_buffer.
        unsafe { update::<QUERYBUF, _>(&self.file, &mut raw) }?;
        let length = raw.length as usize;
        if !(1..=BUFFER_BYTES_MAX).contains(&length) {
            return Err(io::Error::other(format!("the driver gives a buffer of {length} bytes")));
        }
        // SAFETY: the driver has filled in the offset of a buffer that is mapped; any bits are a number.
        let offset = unsafe { raw.m.offset };
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping, where the kernel wants it; it is unmapped by the value that it becomes.
        let address =
            unsafe { mmap(std::ptr::null_mut(), length, protection, flags, &self.file, offset.into()) }?;
        Ok(Mapped { address: address.cast(), length, is_queued: false })
    }
}

impl Device for Node {
    fn capability(&mut self) -> io::Result<Capability> {
        let mut raw = RawCapability::default();
        // SAFETY: VIDIOC_QUERYCAP takes a v4l2_capability.
        unsafe { update::<QUERYCAP, _>(&self.file, &mut raw) }?;
        let bits = if raw.capabilities & CAP_DEVICE_CAPS == 0 { raw.capabilities } else { raw.device_caps };
        let end = raw.card.iter().position(|byte| *byte == 0).unwrap_or(raw.card.len());
        let card = String::from_utf8_lossy(raw.card.get(..end).unwrap_or_default());
        Ok(Capability { card: card.chars().filter(|c| !c.is_control()).collect(), bits })
    }

    fn format(&mut self, index: u32) -> io::Result<u32> {
        let mut raw = RawFormatDescription { index, kind: CAPTURE, ..RawFormatDescription::default() };
        // SAFETY: VIDIOC_ENUM_FMT takes a v4l2_fmtdesc.
        unsafe { update::<ENUM_FMT, _>(&self.file, &mut raw) }?;
        Ok(raw.pixelformat)
    }

    fn sizes(&mut self, format: u32, index: u32) -> io::Result<Sizes> {
        let mut raw = RawFrameSize { index, pixel_format: format, ..RawFrameSize::default() };
        // SAFETY: VIDIOC_ENUM_FRAMESIZES takes a v4l2_frmsizeenum.
        unsafe { update::<ENUM_FRAMESIZES, _>(&self.file, &mut raw) }?;
        let [a, b, c, d, e, f] = raw.size;
        Ok(match raw.kind {
            1 => Sizes::One([a, b]),
            _ => Sizes::Range { least: [a, d], greatest: [b, e], step: [c, f] },
        })
    }

    fn set_format(&mut self, format: u32, [width, height]: [u32; 2]) -> io::Result<Layout> {
        let pix =
            RawPixFormat { width, height, pixelformat: format, field: FIELD_NONE, ..RawPixFormat::default() };
        let mut raw = RawFormat { kind: CAPTURE, fmt: FormatUnion { raw: [0; 200] } };
        raw.fmt.pix = pix;
        // SAFETY: VIDIOC_S_FMT takes a v4l2_format.
        unsafe { update::<S_FMT, _>(&self.file, &mut raw) }?;
        // SAFETY: for video capture the driver fills in `pix`; any bits are numbers, and all bytes were set above.
        let pix = unsafe { raw.fmt.pix };
        Ok(Layout {
            format: Format::of_code(pix.pixelformat),
            size: [pix.width, pix.height],
            stride: pix.bytesperline as usize,
            colorspace: pix.colorspace,
            encoding: pix.ycbcr_enc,
            quantization: pix.quantization,
        })
    }

    fn request_buffers(&mut self, count: u32) -> io::Result<u32> {
        self.buffers.clear();
        let mut raw =
            RawRequestBuffers { count, kind: CAPTURE, memory: MMAP, ..RawRequestBuffers::default() };
        // SAFETY: VIDIOC_REQBUFS takes a v4l2_requestbuffers.
        unsafe { update::<REQBUFS, _>(&self.file, &mut raw) }?;
        let count = raw.count.min(BUFFERS_MAX);
        self.buffers = (0..count).map(|index| self.map(index)).collect::<io::Result<_>>()?;
        Ok(count)
    }

    fn queue(&mut self, index: u32) -> io::Result<()> {
        let Some(buffer) = self.buffers.get_mut(index as usize) else {
            return Err(io::Error::other(format!("there is no buffer {index}")));
        };
        let mut raw = RawBuffer { index, kind: CAPTURE, memory: MMAP, ..RawBuffer::default() };
        // Before the driver has it: after that no slice of it may be there.
        buffer.is_queued = true;
        // SAFETY: VIDIOC_QBUF takes a v4l2_buffer.
        unsafe { update::<QBUF, _>(&self.file, &mut raw) }
    }

    fn dequeue(&mut self) -> io::Result<Filled> {
        let mut raw = RawBuffer { kind: CAPTURE, memory: MMAP, ..RawBuffer::default() };
        // SAFETY: VIDIOC_DQBUF takes a v4l2_buffer.
        unsafe { update::<DQBUF, _>(&self.file, &mut raw) }?;
        let Some(buffer) = self.buffers.get_mut(raw.index as usize) else {
            return Err(io::Error::other(format!(
                "the driver names a buffer {} that it never gave",
                raw.index
            )));
        };
        buffer.is_queued = false;
        Ok(Filled {
            index: raw.index,
            bytes: (raw.bytesused as usize).min(buffer.length),
            is_damaged: raw.flags & FLAG_ERROR != 0,
        })
    }

    fn bytes(&self, filled: Filled) -> &[u8] {
        let buffer = self.buffers.get(filled.index as usize).filter(|buffer| !buffer.is_queued);
        buffer.map_or(&[], |buffer| {
            // SAFETY: the mapping lives as long as `self.buffers` has it, which `request_buffers(&mut self)` alone changes;
            // the length is within it; and the driver does not write to it before `queue(&mut self)` gives it back.
            unsafe { std::slice::from_raw_parts(buffer.address, filled.bytes.min(buffer.length)) }
        })
    }

    fn stream(&mut self, on: bool) -> io::Result<()> {
        let kind = CAPTURE.cast_signed();
        // SAFETY: VIDIOC_STREAMON and VIDIOC_STREAMOFF take the address of an int.
        unsafe {
            if on {
                ioctl::ioctl(&self.file, Setter::<STREAMON, i32>::new(kind))
            } else {
                ioctl::ioctl(&self.file, Setter::<STREAMOFF, i32>::new(kind))
            }
        }?;
        if !on {
            // The driver has given all of them back.
            self.buffers.iter_mut().for_each(|buffer| buffer.is_queued = false);
        }
        Ok(())
    }

    fn wait(&mut self, longest: Duration) -> io::Result<bool> {
        let timeout = Timespec {
            tv_sec: longest.as_secs().try_into().unwrap_or(i32::MAX.into()),
            tv_nsec: longest.subsec_nanos().into(),
        };
        let mut waiting = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN)];
        match poll(&mut waiting, Some(&timeout)) {
            // A signal: the caller knows how long it has waited.
            Ok(0) | Err(Errno::INTR) => Ok(false),
            // Also where there is an error: the next request tells which.
            Ok(_) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernel() {
        // As a C program prints them from <linux/videodev2.h>; those with a size that differs on 32 bits are for 64.
        assert_eq!([QUERYCAP, ENUM_FMT, REQBUFS], [0x8068_5600, 0xc040_5602, 0xc014_5608]);
        assert_eq!([STREAMON, STREAMOFF, ENUM_FRAMESIZES], [0x4004_5612, 0x4004_5613, 0xc02c_564a]);
        let wide = cfg!(target_pointer_width = "64");
        assert_eq!(S_FMT, if wide { 0xc0d0_5605 } else { 0xc0cc_5605 });
        let buffer = if wide { 0xc058_5600 } else { 0xc050_5600 };
        assert_eq!([QUERYBUF, QBUF, DQBUF], [buffer + 9, buffer + 15, buffer + 17]);
    }

    #[test]
    fn a_file_that_is_no_camera_is_an_error_and_no_crash() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut node = Node::open(file.path()).unwrap();
        assert!(node.capability().is_err());
        assert!(node.request_buffers(4).is_err());
        assert!(node.queue(0).is_err() && node.dequeue().is_err() && node.stream(true).is_err());
        assert!(node.bytes(Filled { index: 3, bytes: 7, is_damaged: false }).is_empty());
        assert!(Node::open(Path::new("/no/such/camera")).is_err());
    }
}
