//! Every loss against an independent NumPy version of its definition, and its gradient against finite differences of that.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use burn::tensor::{Device, Tensor, TensorData};
use glimpse_quantizer::Codebook;
use glimpse_trainer::losses::{Csd, D3still, GlobalCosine, Loss, Raml, Regression, Ssp, Temperatures};
use nalgebra::DMatrix;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

mod common;

const M: usize = 3;
const K: usize = 5;
const DSUB: usize = 2;
const D: usize = M * DSUB;
const BATCH: usize = 8;
const BANK: usize = 7;

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| random.random_range(-1.0..1.0)).collect()
}

fn unit_rows(n: usize, seed: u64) -> Vec<f32> {
    let mut rows = random(n * D, seed);
    for row in rows.chunks_mut(D) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    rows
}

/// A random rotation, row-major.
fn rotation() -> Vec<f32> {
    let matrix = DMatrix::from_row_iterator(D, D, random(D * D, 9).into_iter().map(f64::from));
    matrix.qr().q().transpose().iter().map(|&x| x as f32).collect()
}

fn nested(values: &[f32], width: usize) -> Vec<&[f32]> {
    values.chunks(width).collect()
}

/// Value, and gradient in the student.
fn ours(loss: &dyn Loss, student: &[f32], teacher: &[f32], device: &Device) -> (f64, Vec<f32>) {
    let rows = |values: &[f32]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [BATCH, D]), device);
    let student = rows(student).require_grad();
    let value = loss.loss(student.clone(), rows(teacher));
    let gradient = student.grad(&value.backward()).unwrap().try_into_vec_as::<f32>().unwrap();
    (f64::from(value.into_scalar::<f32>()), gradient)
}

#[test]
fn losses_agree_with_numpy_and_their_gradients_with_finite_differences() {
    let name = "losses_agree_with_numpy_and_their_gradients_with_finite_differences";
    let Some(python) = common::python(name) else { return };
    let device = Device::flex().autodiff();
    let (anchors, rotation) = (random(M * K * DSUB, 1), rotation());
    let (student, teacher, bank) = (unit_rows(BATCH, 2), unit_rows(BATCH, 3), unit_rows(BANK, 4));
    let problem = json!({
        "student": nested(&student, D),
        "teacher": nested(&teacher, D),
        "bank": nested(&bank, D),
        "anchors": anchors.chunks(K * DSUB).map(|part| nested(part, DSUB)).collect::<Vec<_>>(),
        "rotation": nested(&rotation, D),
    });
    let expected: Value =
        serde_json::from_slice(&python.run("losses.py", &[], problem.to_string().as_bytes())).unwrap();

    let codebook = |rotation| Codebook::new(M, K, D, anchors.clone(), rotation).unwrap();
    let temperatures = |student, teacher| Temperatures { student, teacher };
    let losses: [(&str, Box<dyn Loss>); 8] = [
        ("ssp", Box::new(Ssp::new(&codebook(None), Temperatures::PUBLISHED, &device))),
        ("ssp rotated", Box::new(Ssp::new(&codebook(Some(rotation)), temperatures(0.2, 0.05), &device))),
        ("bank", Box::new(Ssp::whole(bank, D, temperatures(0.1, 0.05), &device))),
        ("global", Box::new(GlobalCosine)),
        ("reg", Box::new(Regression)),
        ("csd", Box::new(Csd { neighbours: 4, ..Csd::PUBLISHED })),
        ("raml", Box::new(Raml::PUBLISHED)),
        ("d3still", Box::new(D3still { top: 5, ..D3still::PUBLISHED })),
    ];
    for (name, loss) in &losses {
        let (value, gradient) = ours(loss.as_ref(), &student, &teacher, &device);
        let expected = &expected[name];
        let wanted = expected["value"].as_f64().unwrap();
        // 32 bits against 64; the constants under D3still's roots are far below that.
        assert!((value - wanted).abs() < 1e-4 * (1.0 + wanted.abs()), "{name}: {value} is not {wanted}");
        let wanted: Vec<f64> = expected["gradient"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|row| row.as_array().unwrap())
            .map(|x| x.as_f64().unwrap())
            .collect();
        let largest = wanted.iter().fold(0.0_f64, |a, b| a.max(b.abs()));
        assert!(largest > 1e-3, "{name}: a gradient to compare with");
        for (i, (found, wanted)) in gradient.iter().zip(&wanted).enumerate() {
            let difference = (f64::from(*found) - wanted).abs();
            assert!(difference < 2e-4 * largest, "{name}, component {i}: {found} is not {wanted}");
        }
    }
}

#[test]
fn equal_embeddings_cost_nothing() {
    let device = Device::flex().autodiff();
    let codebook = Codebook::new(M, K, D, random(M * K * DSUB, 1), None).unwrap();
    let losses: [Box<dyn Loss>; 5] = [
        Box::new(Ssp::new(&codebook, Temperatures::PUBLISHED, &device)),
        Box::new(GlobalCosine),
        Box::new(Regression),
        Box::new(Raml::PUBLISHED),
        Box::new(D3still::PUBLISHED),
    ];
    let rows = unit_rows(BATCH, 2);
    for loss in losses {
        let (value, gradient) = ours(loss.as_ref(), &rows, &rows, &device);
        // The floor under D3still's roots is 1e-6, times its weights.
        assert!(value.abs() < 1e-4, "{}: {value}", loss.name());
        assert!(gradient.iter().all(|x| x.is_finite()), "{}", loss.name());
    }
}

#[test]
fn batches_of_one_photo_give_numbers() {
    let device = Device::flex().autodiff();
    let losses: [Box<dyn Loss>; 3] =
        [Box::new(Csd::PUBLISHED), Box::new(Raml::PUBLISHED), Box::new(D3still::PUBLISHED)];
    for loss in losses {
        let row = |seed| Tensor::<2>::from_data(TensorData::new(unit_rows(1, seed), [1, D]), &device);
        let value: f32 = loss.loss(row(1), row(2)).into_scalar();
        assert!(value.is_finite(), "{}", loss.name());
    }
}
