//! Every kernel against the definition: the same sums, the same candidates.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

/// Sums straight from codes and entries, without layouts.
fn naive(codes: &[u8], m: usize, table: &ScanTable) -> Vec<i32> {
    let sum =
        |code: &[u8]| code.iter().enumerate().map(|(s, k)| i32::from(table.entry(s, usize::from(*k)))).sum();
    codes.chunks_exact(m).map(sum).collect()
}

fn best(sums: &[i32], first: u32, bias: i32, wanted: usize, admitted: Option<&Bitmap>) -> Vec<(i32, u32)> {
    let numbered = sums.iter().zip(first..).map(|(sum, position)| (sum + bias, position));
    let mut all: Vec<(i32, u32)> =
        numbered.filter(|(_, position)| admitted.is_none_or(|set| set.contains(*position))).collect();
    all.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    all.truncate(wanted);
    all
}

/// Numbers from 0 to 1 without a pattern that a layout could hide.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..count).map(next).collect()
}

#[derive(Debug, Clone)]
struct Case {
    count: usize,
    m: usize,
    centroids: usize,
    queries: usize,
    wanted: usize,
    seed: u64,
    filtered: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    (1..300_usize, 1..40_usize, 1..=256_usize, 1..11_usize, 0..50_usize, any::<u64>(), any::<bool>())
        .prop_map(|(count, m, centroids, queries, wanted, seed, filtered)| {
            // Half of the cases are 4 bits wide.
            let centroids = if seed % 2 == 0 { centroids.min(1 + centroids % 16) } else { centroids };
            Case { count, m, centroids, queries, wanted, seed, filtered }
        })
}

/// All kernels here find for each query what a sort of the naive sums finds.
fn check(case: &Case) -> Result<(), TestCaseError> {
    let Case { count, m, centroids, queries, wanted, seed, filtered } = *case;
    let width = Width::of(centroids);
    let codes: Vec<u8> = numbers(count * m, seed).iter().map(|x| (x * centroids as f32) as u8).collect();
    let tables: Vec<ScanTable> = (0..queries as u64)
        .map(|q| ScanTable::new(&numbers(m * centroids, seed ^ (q + 1)), centroids, centroids))
        .collect();
    let first = (seed % 1000) as u32;
    let admitted = filtered.then(|| {
        let mut set = Bitmap::new(first as usize + count);
        (first..first + count as u32).filter(|p| (u64::from(*p) ^ seed) % 3 == 0).for_each(|p| set.insert(p));
        set
    });
    let probes: Vec<Probe> =
        (0..queries as u32).map(|query| Probe { query, bias: (query as i32 - 2) * 100 }).collect();
    for kernel in Kernel::available() {
        let packed = PackedCodes::new(&codes, m, width, kernel).unwrap();
        let mut candidates = vec![Candidates::new(wanted); queries];
        packed.view().scan(first, &tables, &probes, &mut candidates, admitted.as_ref());
        for ((table, probe), candidates) in tables.iter().zip(&probes).zip(candidates) {
            let expected = best(&naive(&codes, m, table), first, probe.bias, wanted, admitted.as_ref());
            let found: Vec<(i32, u32)> = candidates.into_sorted().collect();
            prop_assert_eq!(&found, &expected, "{:?}", kernel);
        }
        let mut code = vec![0; m];
        for (i, expected) in codes.chunks_exact(m).enumerate() {
            packed.view().unpack(i, &mut code);
            prop_assert_eq!(&code[..], expected);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(target_arch = "x86_64") { 400 } else { 100 }))]

    #[test]
    fn every_kernel_finds_what_a_sort_finds(case in cases()) {
        check(&case)?;
    }

    #[test]
    fn an_entry_is_off_by_half_a_step_at_most(m in 1..30_usize, k in 1..=256_usize, seed in any::<u64>()) {
        let similarities = numbers(m * k, seed);
        let table = ScanTable::new(&similarities, k, k);
        let code: Vec<usize> = numbers(m, !seed).iter().map(|x| (x * k as f32) as usize).collect();
        let exact: f32 = code.iter().enumerate().map(|(s, k_s)| similarities[s * k + k_s]).sum();
        let sum = code.iter().enumerate().map(|(s, k_s)| i32::from(table.entry(s, *k_s))).sum();
        // 1e-4: rounding of sums of at most 30 numbers below 1.
        prop_assert!((table.similarity(sum) - exact).abs() <= table.error_max() + 1e-4);
    }
}

/// The name says what `make test-arm` looks for: it must run where the processor is an ARM.
#[cfg(target_arch = "aarch64")]
#[test]
fn neon_is_what_is_taken_on_arm() {
    assert_eq!(Kernel::detect(), Kernel::Neon);
}

/// Sums near the end of 16 bits, where a wrong step would wrap around.
#[test]
fn the_largest_number_of_sub_spaces_does_not_overflow() {
    for (m, centroids) in [(4096, 16), (4096, 2), (2048, 256), (600, 16)] {
        let case = Case { count: 70, m, centroids, queries: 3, wanted: 10, seed: 5, filtered: false };
        check(&case).unwrap();
        let ones: Vec<f32> = (0..m * centroids).map(|i| f32::from(u8::from(i % centroids == 1))).collect();
        let table = ScanTable::new(&ones, centroids, centroids);
        let sum = naive(&vec![1; m], m, &table)[0];
        assert!(sum <= i32::from(u16::MAX), "{sum}");
        assert!((table.similarity(sum) - m as f32).abs() <= table.error_max());
    }
}

#[test]
fn views_are_cut_at_blocks_and_at_the_end() {
    let codes: Vec<u8> = (0..100).map(|i| i % 16).collect();
    for kernel in Kernel::available() {
        let packed = PackedCodes::new(&codes, 1, Width::Four, kernel).unwrap();
        let lengths = |range| packed.view().blocks(range).len();
        assert_eq!(
            [lengths(0..1), lengths(1..3), lengths(3..4), lengths(2..9), lengths(4..5), lengths(7..9)],
            [32, 64, 4, 36, 0, 0]
        );
        let mut code = [0];
        packed.view().blocks(3..4).unpack(1, &mut code);
        assert_eq!(code, [codes[97]]);
    }
}

#[test]
fn what_is_no_packed_code_is_refused() {
    let kernel = Kernel::detect();
    let pack = |codes: &[u8], m, width| PackedCodes::new(codes, m, width, kernel).map(|packed| packed.count);
    assert_eq!(pack(&[0; 7], 2, Width::Four), Err(PackError::Ragged { bytes: 7, sub_spaces: 2 }));
    assert_eq!(pack(&[], 0, Width::Four), Err(PackError::Ragged { bytes: 0, sub_spaces: 0 }));
    assert_eq!(pack(&[3, 16], 2, Width::Four), Err(PackError::TooWide { sub_space: 1, code: 16 }));
    assert_eq!(pack(&[3, 16], 2, Width::Eight), Ok(1));
    assert_eq!(pack(&[], 2, Width::Eight), Ok(0));
    let shape = Shape { sub_spaces: 3, width: Width::Four, layout: Layout::of(kernel) };
    let view = |shape, kernel, count, bytes: &[u8]| PackedView::new(shape, kernel, count, bytes).map(|_| ());
    assert_eq!(view(shape, kernel, 33, &[0; 256]), Ok(()));
    assert_eq!(
        view(shape, kernel, 33, &[0; 255]),
        Err(PackError::Length { count: 33, bytes: 255, expected: 256 })
    );
    let other = if shape.layout == Layout::Quads { Layout::Lanes } else { Layout::Quads };
    assert_eq!(view(Shape { layout: other, ..shape }, kernel, 33, &[0; 256]), Err(PackError::Layout));
    let missing = Kernel::ALL.into_iter().find(|kernel| !kernel.is_available()).unwrap();
    let layout = Layout::of(missing);
    assert_eq!(view(Shape { layout, ..shape }, missing, 33, &[0; 256]), Err(PackError::Layout));
    assert_eq!(missing.checked(), Err(crate::KernelMissing(missing)));
}

#[test]
fn queries_without_a_preference_or_without_numbers_find_something() {
    for similarities in
        [vec![0.5; 16], vec![f32::NAN; 16], vec![f32::INFINITY; 16], vec![f32::MAX, -f32::MAX]]
    {
        let table = ScanTable::new(&similarities, similarities.len(), similarities.len());
        let packed = PackedCodes::new(&[0, 1, 0, 1], 1, Width::Four, Kernel::detect()).unwrap();
        let mut candidates = [Candidates::new(2)];
        packed.view().scan(0, &[table], &[Probe { query: 0, bias: 0 }], &mut candidates, None);
        let [candidates] = candidates;
        assert_eq!(candidates.into_sorted().len(), 2);
    }
}

#[test]
fn a_bitmap_is_a_set() {
    let mut set = Bitmap::new(130);
    for position in [0, 63, 64, 129, 64] {
        set.insert(position);
    }
    assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 129]);
    assert_eq!((set.len(), set.is_empty(), set.contains(1), set.contains(1 << 30)), (4, false, false, false));
}

#[test]
fn a_full_set_loses_what_is_taken_away() {
    for positions in [0, 1, 63, 64, 65, 200] {
        let mut set = Bitmap::full(positions);
        assert_eq!(set.iter().collect::<Vec<_>>(), (0..positions as u32).collect::<Vec<_>>());
        for position in (0..positions as u32 + 70).step_by(3) {
            set.remove(position);
            set.remove(position);
        }
        let mut left = Bitmap::new(positions);
        (0..positions as u32).filter(|position| position % 3 != 0).for_each(|position| left.insert(position));
        assert_eq!(set, left, "{positions}");
    }
}
