//! AVX-512 with VBMI and VNNI.
//!
//! 4 bits: `vpermb` looks 64 codes up in the tables of four sub-spaces at once, and `vpdpbusd` adds the four entries of each of
//! 16 codes to its 32-bit sum: two instructions for 64 look-ups. Up to eight queries share the codes in registers.
//!
//! 8 bits: two `vpermi2b` look 64 codes up in the halves of one sub-space's table, and the top bit of the code chooses.

use core::arch::x86_64::{
    __m512i, _mm512_add_epi8, _mm512_add_epi16, _mm512_cmpge_epi32_mask, _mm512_cmpge_epu16_mask,
    _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_mask_blend_epi8, _mm512_movepi8_mask,
    _mm512_permutex2var_epi8, _mm512_permutexvar_epi8, _mm512_set1_epi8, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_srli_epi16, _mm512_storeu_si512,
    _mm512_sub_epi16, _mm512_ternarylogic_epi32,
};

use super::{BLOCK_4, Pass, Probe, Width};

/// Queries that share one pass over 4-bit codes: with two sums each they and the codes just fill the 32 registers.
pub(super) const QUERIES_MAX: usize = 8;

/// At most [`QUERIES_MAX`] queries at 4 bits, one at 8.
pub(super) fn scan(pass: &mut Pass<'_>, probes: &[Probe]) {
    // SAFETY: a pass with this kernel exists only where the processor has it (`PackedView::new`), its codes have the quads
    // layout and the length that their shape says, and `PackedView::scan` has checked that the tables of all probes are of
    // that shape.
    unsafe {
        match (pass.codes.shape.width, probes.len()) {
            (Width::Eight, _) => scan_8(pass, probes[0]),
            (Width::Four, 1) => scan_4::<1>(pass, probes),
            (Width::Four, 2) => scan_4::<2>(pass, probes),
            (Width::Four, 3) => scan_4::<3>(pass, probes),
            (Width::Four, 4) => scan_4::<4>(pass, probes),
            (Width::Four, 5) => scan_4::<5>(pass, probes),
            (Width::Four, 6) => scan_4::<6>(pass, probes),
            (Width::Four, 7) => scan_4::<7>(pass, probes),
            (Width::Four, _) => scan_4::<8>(pass, probes),
        }
    }
}

/// # Safety
/// The processor has the instructions below; the codes are 4 bits wide in the quads layout, whole blocks of them; the
/// tables of the `Q` probes are of the same shape.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
#[expect(clippy::needless_range_loop, reason = "indices name registers")]
unsafe fn scan_4<const Q: usize>(pass: &mut Pass<'_>, probes: &[Probe]) {
    let groups = pass.codes.shape.width.block_bytes(pass.codes.shape.sub_spaces) / 128;
    let blocks = pass.codes.count.div_ceil(BLOCK_4);
    let mut codes = pass.codes.bytes.as_ptr();
    let tables: [*const u8; Q] =
        core::array::from_fn(|q| pass.tables[probes[q].query as usize].entries.as_ptr());
    let mut thresholds: [i32; Q] = core::array::from_fn(|q| pass.threshold(probes[q]));

    let low = _mm512_set1_epi8(15);
    // Byte j of four belongs to the j-th of the four tables in a register.
    let which_table = _mm512_set1_epi32(0x3020_1000);
    let ones = _mm512_set1_epi8(1);
    // (codes & low) | which_table
    let index = |codes: __m512i| _mm512_ternarylogic_epi32::<0xEA>(codes, low, which_table);

    for block in 0..blocks {
        let mut sums = [[_mm512_setzero_si512(); 2]; Q];
        for group in 0..groups {
            // SAFETY: `codes` is at the start of a block, which has 128 bytes for each group; a table has 128 bytes for
            // each group too (eight sub-spaces of 16 entries).
            let (front, back) = unsafe {
                let codes = codes.add(128 * group);
                (_mm512_loadu_si512(codes.cast()), _mm512_loadu_si512(codes.add(64).cast()))
            };
            let indices = [
                [index(front), index(_mm512_srli_epi16::<4>(front))],
                [index(back), index(_mm512_srli_epi16::<4>(back))],
            ];
            for q in 0..Q {
                for half in 0..2 {
                    // SAFETY: as above.
                    let entries =
                        unsafe { _mm512_loadu_si512(tables[q].add(128 * group + 64 * half).cast()) };
                    for part in 0..2 {
                        let found = _mm512_permutexvar_epi8(indices[part][half], entries);
                        sums[q][part] = _mm512_dpbusd_epi32(sums[q][part], found, ones);
                    }
                }
            }
        }
        for q in 0..Q {
            let threshold = _mm512_set1_epi32(thresholds[q]);
            let front = _mm512_cmpge_epi32_mask(sums[q][0], threshold);
            let back = _mm512_cmpge_epi32_mask(sums[q][1], threshold);
            let passing = u64::from(front) | u64::from(back) << 16;
            if passing != 0 {
                let mut numbers = [0_i32; BLOCK_4];
                // SAFETY: `numbers` has room for two registers of 16 numbers.
                unsafe {
                    _mm512_storeu_si512(numbers.as_mut_ptr().cast(), sums[q][0]);
                    _mm512_storeu_si512(numbers.as_mut_ptr().add(16).cast(), sums[q][1]);
                }
                thresholds[q] = pass.offer(probes[q], block, passing, &numbers);
            }
        }
        // One past the last block is where the codes end.
        codes = codes.wrapping_add(128 * groups);
    }
}

/// # Safety
/// The processor has the instructions below; the codes are 8 bits wide, whole blocks of them; the table is of the same
/// shape.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn scan_8(pass: &mut Pass<'_>, probe: Probe) {
    let sub_spaces = pass.codes.shape.sub_spaces;
    let table = pass.tables[probe.query as usize].entries.as_ptr();
    let mut threshold = pass.threshold(probe);
    let bytes = pass.codes.bytes;
    for (number, block) in bytes.chunks_exact(64 * sub_spaces).enumerate() {
        // Sums of 16 bits: all bytes, of which the odd ones disturb the upper half, and the odd ones alone.
        let (mut all, mut odd) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        // SAFETY: `m` is a sub-space of the block, which has 64 bytes of codes for each, and of the table, which has 256
        // entries for each.
        let found = |m: usize| unsafe {
            let codes = _mm512_loadu_si512(block.as_ptr().add(64 * m).cast());
            look_up(codes, table.add(256 * m))
        };
        let mut add = |pair: __m512i| {
            all = _mm512_add_epi16(all, pair);
            odd = _mm512_add_epi16(odd, _mm512_srli_epi16::<8>(pair));
        };
        for m in (0..sub_spaces - 1).step_by(2) {
            // Two entries of at most 127 fit a byte.
            add(_mm512_add_epi8(found(m), found(m + 1)));
        }
        if sub_spaces % 2 == 1 {
            add(found(sub_spaces - 1));
        }
        let even = _mm512_sub_epi16(all, _mm512_slli_epi16::<8>(odd));
        let limit = _mm512_set1_epi16(threshold.clamp(0, i32::from(u16::MAX)).cast_unsigned() as u16 as i16);
        let passing = (_mm512_cmpge_epu16_mask(even, limit), _mm512_cmpge_epu16_mask(odd, limit));
        if (passing.0 | passing.1) != 0 && threshold <= i32::from(u16::MAX) {
            let mut halves = [[0_u16; 32]; 2];
            // SAFETY: each half has room for one register of 32 numbers.
            unsafe {
                _mm512_storeu_si512(halves[0].as_mut_ptr().cast(), even);
                _mm512_storeu_si512(halves[1].as_mut_ptr().cast(), odd);
            }
            let sums: [u16; 64] = core::array::from_fn(|i| halves[i % 2][i / 2]);
            let bits = (0..64).fold(0, |bits, i| bits | u64::from(i32::from(sums[i]) >= threshold) << i);
            threshold = pass.offer(probe, number, bits, &sums);
        }
    }
}

/// The entries of 64 codes in a table of 256.
///
/// # Safety
/// The processor has AVX-512 VBMI, and 256 bytes can be read at `table`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn look_up(codes: __m512i, table: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    let part = |i: usize| unsafe { _mm512_loadu_si512(table.add(64 * i).cast()) };
    let lower = _mm512_permutex2var_epi8(part(0), codes, part(1));
    let upper = _mm512_permutex2var_epi8(part(2), codes, part(3));
    _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), lower, upper)
}
