//! NEON, on every aarch64.
//!
//! 4 bits: `tbl` looks 16 codes of one sub-space up; the entries of two sub-spaces are added as bytes, which entries of 7
//! bits allow, and then widened. 8 bits: `tbl` and `tbx` of four registers look 16 codes up in a quarter of the 256 entries
//! each; what lies outside a quarter keeps what it had.

use core::arch::aarch64::{
    uint8x16_t, uint8x16x4_t, uint16x8_t, vaddq_u8, vaddw_high_u8, vaddw_u8, vandq_u8, vcgeq_u16, vdupq_n_u8,
    vdupq_n_u16, vget_low_u8, vld1q_u8, vld1q_u8_x4, vmaxvq_u16, vorrq_u16, vqtbl1q_u8, vqtbl4q_u8,
    vqtbx4q_u8, vshrq_n_u8, vst1q_u16, vsubq_u8,
};

use super::{BLOCK_4, BLOCK_8, Pass, Probe, Width};

/// Queries that share one pass over 4-bit codes: with four sums each they leave half of the 32 registers.
pub(super) const QUERIES_MAX: usize = 4;

/// At most [`QUERIES_MAX`] queries at 4 bits, one at 8.
pub(super) fn scan(pass: &mut Pass<'_>, probes: &[Probe]) {
    // SAFETY: NEON is part of aarch64; its codes have the lanes
    // layout and the length that their shape says, and `PackedView::scan` has checked that the tables of all probes are of
    // that shape.
    unsafe {
        match (pass.codes.shape.width, probes.len()) {
            (Width::Eight, _) => scan_8(pass, probes[0]),
            (Width::Four, 1) => scan_4::<1>(pass, probes),
            (Width::Four, 2) => scan_4::<2>(pass, probes),
            (Width::Four, 3) => scan_4::<3>(pass, probes),
            (Width::Four, _) => scan_4::<4>(pass, probes),
        }
    }
}

/// # Safety
/// The codes are 4 bits wide in the lanes layout, whole blocks of them; the tables of the `Q` probes are of the same
/// shape.
#[target_feature(enable = "neon")]
unsafe fn scan_4<const Q: usize>(pass: &mut Pass<'_>, probes: &[Probe]) {
    let bytes = pass.codes.shape.width.block_bytes(pass.codes.shape.sub_spaces);
    let tables: [*const u8; Q] =
        core::array::from_fn(|q| pass.tables[probes[q].query as usize].entries.as_ptr());
    let mut thresholds: [i32; Q] = core::array::from_fn(|q| pass.threshold(probes[q]));
    let low = vdupq_n_u8(15);
    let halves = |codes: uint8x16_t| [vandq_u8(codes, low), vshrq_n_u8::<4>(codes)];
    for (number, block) in pass.codes.bytes.chunks_exact(bytes).enumerate() {
        let mut sums = [[vdupq_n_u16(0); 4]; Q];
        // Two sub-spaces, 32 bytes of codes and of a table.
        for pair in 0..bytes / 32 {
            // SAFETY: the block has 16 bytes for each sub-space, of which there is an even number.
            let codes = unsafe {
                let codes = block.as_ptr().add(32 * pair);
                [halves(vld1q_u8(codes)), halves(vld1q_u8(codes.add(16)))]
            };
            for q in 0..Q {
                // SAFETY: a table has 16 entries for each sub-space.
                let entries = unsafe {
                    let entries = tables[q].add(32 * pair);
                    [vld1q_u8(entries), vld1q_u8(entries.add(16))]
                };
                for half in 0..2 {
                    let found = vaddq_u8(
                        vqtbl1q_u8(entries[0], codes[0][half]),
                        vqtbl1q_u8(entries[1], codes[1][half]),
                    );
                    sums[q][2 * half] = vaddw_u8(sums[q][2 * half], vget_low_u8(found));
                    sums[q][2 * half + 1] = vaddw_high_u8(sums[q][2 * half + 1], found);
                }
            }
        }
        for q in 0..Q {
            thresholds[q] = offer::<4, BLOCK_4>(pass, probes[q], number, thresholds[q], sums[q]);
        }
    }
}

/// # Safety
/// The codes are 8 bits wide, whole blocks of them; the table is of the same shape.
#[target_feature(enable = "neon")]
unsafe fn scan_8(pass: &mut Pass<'_>, probe: Probe) {
    let sub_spaces = pass.codes.shape.sub_spaces;
    let table = pass.tables[probe.query as usize].entries.as_ptr();
    let mut threshold = pass.threshold(probe);
    for (number, block) in pass.codes.bytes.chunks_exact(BLOCK_8 * sub_spaces).enumerate() {
        let mut sums = [vdupq_n_u16(0); 8];
        for m in 0..sub_spaces {
            // SAFETY: a table has 256 entries for each sub-space, a block 64 bytes of codes.
            let (quarters, codes) = unsafe {
                let quarter = |i: usize| vld1q_u8_x4(table.add(256 * m + 64 * i));
                (core::array::from_fn(quarter), block.as_ptr().add(BLOCK_8 * m))
            };
            for part in 0..4 {
                // SAFETY: as above.
                let found = look_up(unsafe { vld1q_u8(codes.add(16 * part)) }, &quarters);
                sums[2 * part] = vaddw_u8(sums[2 * part], vget_low_u8(found));
                sums[2 * part + 1] = vaddw_high_u8(sums[2 * part + 1], found);
            }
        }
        threshold = offer::<8, BLOCK_8>(pass, probe, number, threshold, sums);
    }
}

/// The entries of 16 codes in a table of 256, in four quarters.
#[inline]
#[target_feature(enable = "neon")]
fn look_up(codes: uint8x16_t, quarters: &[uint8x16x4_t; 4]) -> uint8x16_t {
    let step = vdupq_n_u8(64);
    let mut left = codes;
    let mut found = vqtbl4q_u8(quarters[0], left);
    for quarter in &quarters[1..] {
        left = vsubq_u8(left, step);
        found = vqtbx4q_u8(found, *quarter, left);
    }
    found
}

/// Offers those of `N` sums, in their order in `R` registers, that reach the threshold. Returns the new threshold.
#[inline]
#[target_feature(enable = "neon")]
fn offer<const R: usize, const N: usize>(
    pass: &mut Pass<'_>,
    probe: Probe,
    block: usize,
    threshold: i32,
    sums: [uint16x8_t; R],
) -> i32 {
    const { assert!(N == 8 * R, "a register holds eight sums") };
    let Ok(limit) = u16::try_from(threshold.max(0)) else { return threshold };
    let limit = vdupq_n_u16(limit);
    let any = sums.iter().fold(vdupq_n_u16(0), |any, sums| vorrq_u16(any, vcgeq_u16(*sums, limit)));
    if vmaxvq_u16(any) == 0 {
        return threshold;
    }
    let mut numbers = [0_u16; N];
    for (numbers, sums) in numbers.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        // SAFETY: the chunk has room for the eight numbers of a register.
        unsafe { vst1q_u16(numbers.as_mut_ptr(), sums) };
    }
    let passing = (0..N).fold(0, |bits, i| bits | u64::from(i32::from(numbers[i]) >= threshold) << i);
    pass.offer(probe, block, passing, &numbers)
}
