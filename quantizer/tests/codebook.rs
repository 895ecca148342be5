//! Codebooks against naive arithmetic, and every malformed file against its named error.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use glimpse_quantizer::{CodeError, Codebook, CodebookError, DIMENSION_MAX, DimensionError};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView, serialize};

/// Shapes that differ in every respect: one sub-space, one dimension a sub-space, few and most centroids.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (1, 16, 7), (4, 3, 4), (8, 256, 32), (3, 100, 15), (32, 256, 256)];

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// A rotation by Gram-Schmidt on random rows, in f64.
fn rotation(d: usize, seed: u64) -> Vec<f32> {
    let mut rows: Vec<Vec<f64>> = Vec::new();
    for values in numbers(d * d, seed).chunks(d) {
        let mut row: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
        for other in rows.iter().chain(rows.iter()) {
            let along: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
            row.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
        }
        let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
        rows.push(row);
    }
    rows.concat().iter().map(|x| *x as f32).collect()
}

fn codebook(m: usize, k: usize, d: usize, rotated: bool) -> Codebook {
    Codebook::new(m, k, d, numbers(k * d, 1), rotated.then(|| rotation(d, 2))).unwrap()
}

fn all_codebooks() -> impl Iterator<Item = Codebook> {
    SHAPES.iter().flat_map(|&(m, k, d)| [false, true].map(|rotated| codebook(m, k, d, rotated)))
}

/// The oracle: R x in f64, straight from the definition.
fn rotated(codebook: &Codebook, x: &[f32]) -> Vec<f64> {
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    match codebook.rotation() {
        None => x,
        Some(r) => {
            r.chunks(x.len()).map(|row| row.iter().zip(&x).map(|(r, x)| f64::from(*r) * x).sum()).collect()
        }
    }
}

/// The oracle: squared distance of a sub-vector from a centroid, in f64.
fn distance(codebook: &Codebook, y: &[f64], m: usize, k: usize) -> f64 {
    let part = &y[m * codebook.sub_dimension()..];
    part.iter().zip(codebook.centroid(m, k)).map(|(y, c)| (y - f64::from(*c)).powi(2)).sum()
}

#[test]
fn encode_finds_the_nearest_centroid_of_the_oracle() {
    for codebook in all_codebooks() {
        for x in numbers(20 * codebook.dimension(), 3).chunks(codebook.dimension()) {
            let mut code = vec![0; codebook.sub_spaces()];
            codebook.encode(x, &mut code).unwrap();
            let y = rotated(&codebook, x);
            for (m, found) in code.iter().enumerate() {
                let best = (0..codebook.centroids_per_sub_space())
                    .map(|k| distance(&codebook, &y, m, k))
                    .fold(f64::INFINITY, f64::min);
                // f32 sums of at most 256 terms near 1: another centroid may win only within their rounding.
                assert!(distance(&codebook, &y, m, usize::from(*found)) <= best + 1e-4);
            }
        }
    }
}

#[test]
fn decoding_then_encoding_gives_the_code_back() {
    for codebook in all_codebooks() {
        let (m, k) = (codebook.sub_spaces(), codebook.centroids_per_sub_space());
        let code: Vec<u8> = (0..m).map(|i| (i * 37 % k) as u8).collect();
        let mut embedding = vec![0.0; codebook.dimension()];
        codebook.decode(&code, &mut embedding).unwrap();
        let mut again = vec![0; m];
        codebook.encode(&embedding, &mut again).unwrap();
        if codebook.sub_dimension() > 1 {
            assert_eq!(code, again, "{m} sub-spaces");
        }
        // On a line two centroids may nearly coincide, but what they decode to is then the same, nearly.
        let mut decoded = vec![0.0; codebook.dimension()];
        codebook.decode(&again, &mut decoded).unwrap();
        assert!(embedding.iter().zip(&decoded).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}

#[test]
fn adc_similarity_is_the_inner_product_with_the_decoded_embedding() {
    for codebook in all_codebooks() {
        let (m, k, d) = (codebook.sub_spaces(), codebook.centroids_per_sub_space(), codebook.dimension());
        let query = numbers(d, 4);
        let codes: Vec<u8> = (0..50 * m).map(|i| (i * 89 % k) as u8).collect();
        let table = codebook.adc_table(&query).unwrap();
        let mut similarities = vec![0.0; 50];
        table.scan(&codes, &mut similarities).unwrap();
        for (code, similarity) in codes.chunks(m).zip(&similarities) {
            let mut x = vec![0.0; d];
            codebook.decode(code, &mut x).unwrap();
            let expected: f64 = query.iter().zip(&x).map(|(q, x)| f64::from(*q) * f64::from(*x)).sum();
            // D products below 1, each rounded a few times at 6e-8 of sums below D.
            assert!((f64::from(*similarity) - expected).abs() < 1e-6 * d as f64 + 1e-6);
            assert_eq!(*similarity, table.similarity(code));
        }
    }
}

#[test]
fn equal_centroids_encode_as_the_first() {
    let codebook = Codebook::new(1, 3, 2, vec![5.0, 5.0, 1.0, 0.0, 1.0, 0.0], None).unwrap();
    let mut code = [0];
    codebook.encode(&[1.0, 0.1], &mut code).unwrap();
    assert_eq!(code, [1]);
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let codebook = codebook(4, 3, 8, false);
    let embedding = DimensionError::Embedding { got: 7, expected: 8 };
    let code = DimensionError::Code { got: 5, expected: 4 };
    assert_eq!(codebook.encode(&[0.0; 7], &mut [0; 4]), Err(embedding));
    assert_eq!(codebook.encode(&[0.0; 8], &mut [0; 5]), Err(code));
    assert_eq!(codebook.decode(&[0; 4], &mut [0.0; 7]), Err(CodeError::Dimension(embedding)));
    assert_eq!(codebook.decode(&[0; 5], &mut [0.0; 8]), Err(CodeError::Dimension(code)));
    assert_eq!(codebook.adc_table(&[0.0; 7]).map(|_| ()), Err(embedding));
    let table = codebook.adc_table(&[0.0; 8]).unwrap();
    let codes = DimensionError::Codes { got: 9, codes: 2, sub_spaces: 4 };
    assert_eq!(table.scan(&[0; 9], &mut [0.0; 2]), Err(codes));
    assert_eq!(table.similarity(&[0; 3]), f32::NEG_INFINITY);
}

#[test]
fn a_code_without_a_centroid_is_refused_or_infinitely_far() {
    let codebook = codebook(4, 3, 8, false);
    let refused = codebook.decode(&[0, 2, 3, 255], &mut [0.0; 8]);
    assert_eq!(refused, Err(CodeError::NoCentroid { sub_space: 2, code: 3, centroids: 3 }));
    assert_eq!(codebook.adc_table(&[0.5; 8]).unwrap().similarity(&[0, 2, 3, 255]), f32::NEG_INFINITY);
}

#[test]
fn shapes_and_values_that_are_no_codebook_are_refused() {
    let check = |m, k, d, values: usize, error| {
        assert_eq!(Codebook::new(m, k, d, vec![0.0; values], None), Err(error));
    };
    check(0, 4, 8, 32, CodebookError::NotDivisible { dimension: 8, sub_spaces: 0 });
    check(3, 4, 8, 32, CodebookError::NotDivisible { dimension: 8, sub_spaces: 3 });
    check(2, 0, 8, 0, CodebookError::Centroids { centroids: 0 });
    check(2, 257, 8, 0, CodebookError::Centroids { centroids: 257 });
    check(1, 4, 0, 0, CodebookError::Dimension { dimension: 0 });
    check(1, 4, DIMENSION_MAX + 1, 0, CodebookError::Dimension { dimension: DIMENSION_MAX + 1 });
    check(2, 4, 8, 31, CodebookError::Length { tensor: "centroids", got: 31, expected: 32 });

    let with = |centroid: f32, rotation: Option<[f32; 4]>| {
        Codebook::new(1, 2, 2, vec![centroid, 0.0, 1.0, 1.0], rotation.map(Vec::from)).map(|_| ())
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(with(bad, None), Err(CodebookError::NotFinite { tensor: "centroids" }));
        let rotation = Some([1.0, 0.0, 0.0, bad]);
        assert_eq!(with(0.0, rotation), Err(CodebookError::NotFinite { tensor: "rotation" }));
    }
    for no_rotation in [[0.0; 4], [1.0, 1.0, 0.0, 1.0], [2.0, 0.0, 0.0, 2.0], [1.0, 0.0, 1.0, 0.0]] {
        assert_eq!(with(0.0, Some(no_rotation)), Err(CodebookError::NotOrthogonal), "{no_rotation:?}");
    }
    assert_eq!(with(0.0, Some([0.0, -1.0, 1.0, 0.0])), Ok(()));
    assert_eq!(
        Codebook::new(1, 2, 2, vec![0.0; 4], Some(vec![1.0; 3])),
        Err(CodebookError::Length { tensor: "rotation", got: 3, expected: 4 })
    );
}

#[test]
fn every_codebook_survives_its_file() {
    for codebook in all_codebooks() {
        let bytes = codebook.to_safetensors().unwrap();
        assert_eq!(Codebook::from_safetensors(&bytes).unwrap(), codebook);
        assert_eq!(codebook.to_safetensors().unwrap(), bytes, "the same bytes each time");
    }
}

fn file(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|&(name, dtype, shape, data)| (name, TensorView::new(dtype, shape.to_vec(), data).unwrap()));
    serialize(views, None).unwrap()
}

#[test]
fn each_malformed_file_has_its_named_error() {
    let error =
        |tensors: &[(&str, Dtype, &[usize], &[u8])]| Codebook::from_safetensors(&file(tensors)).unwrap_err();
    let (zeros, f32, f16) = ([0_u8; 256], Dtype::F32, Dtype::F16);
    let bytes = |values: usize| &zeros[..4 * values];
    let shape =
        |tensor, found: &[usize], expected| CodebookError::Shape { tensor, found: found.to_vec(), expected };

    assert_eq!(error(&[]), CodebookError::Missing { tensor: "centroids" });
    assert_eq!(
        error(&[("weights", f32, &[2, 2, 2], bytes(8))]),
        CodebookError::Missing { tensor: "centroids" }
    );
    assert_eq!(
        error(&[("centroids", f16, &[2, 2, 2], &zeros[..16])]),
        CodebookError::Type { tensor: "centroids", found: "F16".into() }
    );
    assert_eq!(error(&[("centroids", f32, &[4, 2], bytes(8))]), shape("centroids", &[4, 2], "[M, K, D / M]"));
    assert_eq!(error(&[("centroids", f32, &[2, 0, 2], &[])]), CodebookError::Centroids { centroids: 0 });
    assert_eq!(error(&[("centroids", f32, &[0, 2, 2], &[])]), CodebookError::Dimension { dimension: 0 });
    assert_eq!(
        error(&[("centroids", f32, &[usize::MAX, 0, 2], &[])]),
        CodebookError::Dimension { dimension: usize::MAX }
    );
    assert_eq!(
        error(&[("centroids", f32, &[2, 2, 2], bytes(8)), ("rotation", f32, &[4, 3], bytes(12))]),
        shape("rotation", &[4, 3], "[D, D]")
    );
    assert_eq!(
        error(&[("centroids", f32, &[2, 2, 2], bytes(8)), ("rotation", f32, &[4, 4], bytes(16))]),
        CodebookError::NotOrthogonal
    );
    let nan: Vec<u8> = [f32::NAN; 8].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(
        error(&[("centroids", f32, &[2, 2, 2], &nan)]),
        CodebookError::NotFinite { tensor: "centroids" }
    );
    // A tensor of someone else does no harm.
    let more = file(&[("centroids", f32, &[2, 2, 2], bytes(8)), ("notes", Dtype::U8, &[3], b"abc")]);
    assert!(Codebook::from_safetensors(&more).is_ok());
}

#[test]
fn bytes_that_are_no_safetensors_are_named_so() {
    let whole = codebook(2, 4, 8, true).to_safetensors().unwrap();
    for length in 0..whole.len() {
        let cut = Codebook::from_safetensors(&whole[..length]);
        assert!(matches!(cut, Err(CodebookError::NotSafetensors { .. })), "{length}: {cut:?}");
    }
    let longer = [whole.as_slice(), &[0]].concat();
    assert!(matches!(Codebook::from_safetensors(&longer), Err(CodebookError::NotSafetensors { .. })));
    let long_header = [&(1_u64 << 20).to_le_bytes(), whole.as_slice()].concat();
    assert!(matches!(Codebook::from_safetensors(&long_header), Err(CodebookError::NotSafetensors { .. })));
    let huge = vec![0; 80 << 20];
    assert!(matches!(Codebook::from_safetensors(&huge), Err(CodebookError::TooLarge { .. })));
}

/// Version 1 of the file, written once by a few lines of Python. If this fails, files in the field no longer
/// read: do not make the fixture anew.
#[test]
fn the_golden_file_reads_and_writes_as_it_is() {
    let bytes: &[u8] = include_bytes!("fixtures/codebook-v1.safetensors");
    let golden = golden();
    assert_eq!(Codebook::from_safetensors(bytes).unwrap(), golden);
    assert_eq!(golden.to_safetensors().unwrap(), bytes);
    let mut code = [0; 2];
    golden.encode(&[0.1, 2.4, -0.9, 0.2], &mut code).unwrap();
    assert_eq!(code, [1, 2]);
    let mut embedding = [0.0; 4];
    golden.decode(&code, &mut embedding).unwrap();
    assert_eq!(embedding, [0.0, 2.5, -1.0, 0.25]);
}

/// M = 2, K = 3, D = 4; the rotation swaps components 0 and 1 and turns the sign of 2: y = (x1, x0, -x2, x3).
fn golden() -> Codebook {
    let centroids = vec![0.5, 0.5, 2.5, 0.0, -1.0, 0.25, 0.0, 0.0, -1.0, -0.25, 1.0, 0.25];
    let rotation = vec![
        0.0, 1.0, 0.0, 0.0, //
        1.0, 0.0, 0.0, 0.0, //
        0.0, 0.0, -1.0, 0.0, //
        0.0, 0.0, 0.0, 1.0,
    ];
    Codebook::new(2, 3, 4, centroids, Some(rotation)).unwrap()
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Codebook::from_safetensors(&bytes);
    }

    #[test]
    fn a_damaged_file_never_panics(places in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..4)) {
        let mut bytes = golden().to_safetensors().unwrap();
        for (place, value) in places {
            let place = place % bytes.len();
            bytes[place] = value;
        }
        let _ = Codebook::from_safetensors(&bytes);
    }

    #[test]
    fn no_other_code_decodes_nearer(x in proptest::collection::vec(-2.0_f32..2.0, 4), other in proptest::array::uniform2(0..3_u8)) {
        let codebook = golden();
        let mut code = [0; 2];
        codebook.encode(&x, &mut code).unwrap();
        let error = |code: &[u8]| {
            let mut y = [0.0; 4];
            codebook.decode(code, &mut y).unwrap();
            x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f32>()
        };
        // Sixteen squares below 25 in f32.
        prop_assert!(error(&code) <= error(&other) + 1e-4);
    }
}
