//! AVX2.
//!
//! 4 bits: `vpshufb` looks 16 codes of two sub-spaces up at once. The entries of two pairs of sub-spaces are added as
//! bytes; those sums go to sums of 16 bits, the odd bytes also to sums of their own, by which the even ones are set right in
//! the end (Faiss's trick, `simd_result_handlers` and `pq4_fast_scan`; adding pairs as bytes first, which entries of 7 bits
//! allow, halves its cost).
//!
//! 8 bits: there is no look-up of 256 entries; the portable scan, compiled for AVX2, is what there is.

use core::arch::x86_64::{
    __m256i, _mm256_add_epi8, _mm256_add_epi16, _mm256_and_si256, _mm256_cmpeq_epi16, _mm256_loadu_si256,
    _mm256_max_epu16, _mm256_movemask_epi8, _mm256_or_si256, _mm256_permute2x128_si256, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_slli_epi16, _mm256_srli_epi16,
    _mm256_storeu_si256, _mm256_sub_epi16, _mm256_unpackhi_epi16, _mm256_unpacklo_epi16,
};

use super::{BLOCK_4, BLOCK_8, Pass, Probe, Width, portable};

/// Queries that share one pass over 4-bit codes: with four sums each they leave half of the 16 registers.
pub(super) const QUERIES_MAX: usize = 2;

/// At most [`QUERIES_MAX`] queries at 4 bits, one at 8.
pub(super) fn scan(pass: &mut Pass<'_>, probes: &[Probe]) {
    // SAFETY: a pass with this kernel exists only where the processor has it (`PackedView::new`), its codes have the lanes
    // layout and the length that their shape says, and `PackedView::scan` has checked that the tables of all probes are of
    // that shape.
    unsafe {
        match (pass.codes.shape.width, probes.len()) {
            (Width::Eight, _) => scan_8(pass, probes[0]),
            (Width::Four, 1) => scan_4::<1>(pass, probes),
            (Width::Four, _) => scan_4::<2>(pass, probes),
        }
    }
}

/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn scan_8(pass: &mut Pass<'_>, probe: Probe) {
    portable::scan_blocks::<BLOCK_8>(pass, probe, portable::sums_8);
}

/// # Safety
/// The processor has AVX2; the codes are 4 bits wide in the lanes layout, whole blocks of them; the tables of the `Q`
/// probes are of the same shape.
#[target_feature(enable = "avx2")]
unsafe fn scan_4<const Q: usize>(pass: &mut Pass<'_>, probes: &[Probe]) {
    let bytes = pass.codes.shape.width.block_bytes(pass.codes.shape.sub_spaces);
    let tables: [*const u8; Q] =
        core::array::from_fn(|q| pass.tables[probes[q].query as usize].entries.as_ptr());
    let mut thresholds: [i32; Q] = core::array::from_fn(|q| pass.threshold(probes[q]));
    let low = _mm256_set1_epi8(15);
    let halves =
        |codes: __m256i| [_mm256_and_si256(codes, low), _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low)];
    for (number, block) in pass.codes.bytes.chunks_exact(bytes).enumerate() {
        // Of each query, for codes 0 to 15 and 16 to 31: sums of all bytes, and of the odd ones.
        let mut sums = [[[_mm256_setzero_si256(); 2]; 2]; Q];
        // Four sub-spaces, 64 bytes of codes and of a table.
        for quad in 0..bytes / 64 {
            // SAFETY: the block has 64 bytes for each quad of sub-spaces, a multiple of which it has.
            let codes = unsafe {
                let codes = block.as_ptr().add(64 * quad);
                [halves(_mm256_loadu_si256(codes.cast())), halves(_mm256_loadu_si256(codes.add(32).cast()))]
            };
            for q in 0..Q {
                // SAFETY: a table has 16 entries for each sub-space, 64 for each quad.
                let entries = unsafe {
                    let entries = tables[q].add(64 * quad);
                    [_mm256_loadu_si256(entries.cast()), _mm256_loadu_si256(entries.add(32).cast())]
                };
                for half in 0..2 {
                    let found = _mm256_add_epi8(
                        _mm256_shuffle_epi8(entries[0], codes[0][half]),
                        _mm256_shuffle_epi8(entries[1], codes[1][half]),
                    );
                    let [all, odd] = &mut sums[q][half];
                    *all = _mm256_add_epi16(*all, found);
                    *odd = _mm256_add_epi16(*odd, _mm256_srli_epi16::<8>(found));
                }
            }
        }
        for q in 0..Q {
            let limit = thresholds[q].clamp(0, i32::from(u16::MAX)).cast_unsigned() as u16;
            let limit = _mm256_set1_epi16(limit.cast_signed());
            let [front, back] = sums[q].map(|sums| in_order(sums));
            // Unsigned x >= y is max(x, y) = x.
            let passes = |sums| _mm256_cmpeq_epi16(_mm256_max_epu16(sums, limit), sums);
            let any = _mm256_or_si256(passes(front), passes(back));
            if _mm256_movemask_epi8(any) != 0 && thresholds[q] <= i32::from(u16::MAX) {
                let mut numbers = [0_u16; BLOCK_4];
                // SAFETY: `numbers` has room for two registers of 16 numbers.
                unsafe {
                    _mm256_storeu_si256(numbers.as_mut_ptr().cast(), front);
                    _mm256_storeu_si256(numbers.as_mut_ptr().add(16).cast(), back);
                }
                let passing = (0..BLOCK_4)
                    .fold(0, |bits, i| bits | u64::from(i32::from(numbers[i]) >= thresholds[q]) << i);
                thresholds[q] = pass.offer(probes[q], number, passing, &numbers);
            }
        }
    }
}

/// The sums of 16 codes in their order, from sums of all bytes and of the odd ones, whose two halves belong to different
/// sub-spaces.
#[inline]
#[target_feature(enable = "avx2")]
fn in_order([all, odd]: [__m256i; 2]) -> __m256i {
    let even = _mm256_sub_epi16(all, _mm256_slli_epi16::<8>(odd));
    let both = |sums| _mm256_add_epi16(sums, _mm256_permute2x128_si256::<0x01>(sums, sums));
    let (even, odd) = (both(even), both(odd));
    // Codes 0 to 7 from the lower halves, 8 to 15 from the upper ones; both halves are equal by now.
    _mm256_permute2x128_si256::<0x20>(_mm256_unpacklo_epi16(even, odd), _mm256_unpackhi_epi16(even, odd))
}
