//! The scan in plain Rust: the definition that the other kernels are tested against.

use super::{BLOCK_4, BLOCK_8, Pass, Probe, Width};

/// One query.
pub(super) fn scan(pass: &mut Pass<'_>, probes: &[Probe]) {
    match pass.codes.shape.width {
        Width::Four => scan_blocks::<BLOCK_4>(pass, probes[0], sums_4),
        Width::Eight => scan_blocks::<BLOCK_8>(pass, probes[0], sums_8),
    }
}

/// Sums a block of `N` codes after the other by `sums(block, table)`.
pub(super) fn scan_blocks<const N: usize>(
    pass: &mut Pass<'_>,
    probe: Probe,
    sums: impl Fn(&[u8], &[u8]) -> [u16; N],
) {
    let table = &pass.tables[probe.query as usize].entries;
    let bytes = pass.codes.shape.width.block_bytes(pass.codes.shape.sub_spaces);
    let mut threshold = pass.threshold(probe);
    for (number, block) in pass.codes.bytes.chunks_exact(bytes).enumerate() {
        let sums = sums(block, table);
        let passing = (0..N).fold(0, |bits, i| bits | u64::from(i32::from(sums[i]) >= threshold) << i);
        if passing != 0 {
            threshold = pass.offer(probe, number, passing, &sums);
        }
    }
}

/// A block of the lanes layout.
fn sums_4(block: &[u8], table: &[u8]) -> [u16; BLOCK_4] {
    let mut sums = [0; BLOCK_4];
    for (codes, entries) in block.as_chunks::<16>().0.iter().zip(table.as_chunks::<16>().0) {
        for (i, code) in codes.iter().enumerate() {
            sums[i] += u16::from(entries[usize::from(code & 15)]);
            sums[16 + i] += u16::from(entries[usize::from(code >> 4)]);
        }
    }
    sums
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "so that AVX2 compiles it for itself")]
pub(super) fn sums_8(block: &[u8], table: &[u8]) -> [u16; BLOCK_8] {
    let mut sums = [0; BLOCK_8];
    for (codes, entries) in block.as_chunks::<BLOCK_8>().0.iter().zip(table.as_chunks::<256>().0) {
        for (sum, code) in sums.iter_mut().zip(codes) {
            *sum += u16::from(entries[usize::from(*code)]);
        }
    }
    sums
}
