//! The committed networks in two engines: tract, which we ship, and onnxruntime, which we do not.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::path::Path;

use glimpse_embedder::{
    Embedder, EmbedderOptions, Network, Preprocessing, SpaceBundle, onnxruntime, read_photo,
};
use glimpse_tests::demo::ground_truth::GroundTruth;
use glimpse_tests::fixture::Fixture;
use glimpse_tests::foreign::Python;
use glimpse_tests::programs::Programs;
use glimpse_tests::workspace;

/// Two engines sum the same products in different orders, which costs some 1e-7; a wrong border or node the third digit.
const COSINE_MIN: f64 = 0.99999;

#[test]
fn the_gallery_network_embeds_alike_in_tract_and_onnxruntime() {
    let Some(python) = Python::find("the_gallery_network_embeds_alike_in_tract_and_onnxruntime") else {
        return;
    };
    let bundle = SpaceBundle::load(&workspace::bundle()).unwrap();
    check(&python, &bundle.gallery_model(), bundle.preprocessing);
}

#[test]
fn the_query_network_embeds_alike_in_tract_and_onnxruntime() {
    let Some(python) = Python::find("the_query_network_embeds_alike_in_tract_and_onnxruntime") else {
        return;
    };
    let model = SpaceBundle::load(&workspace::bundle()).unwrap().query_model();
    let own = Embedder::load(&model).unwrap().metadata().preprocessing;
    check(&python, &model, own);
}

/// An activation that lies between two integers may go to one in one engine and to the other in the other; that is all that
/// may differ.
const INT8_COSINE_MIN: f64 = 0.999;

#[test]
fn the_int8_query_network_embeds_alike_in_tract_and_onnxruntime_and_like_the_f32_one() {
    let Some(python) =
        Python::find("the_int8_query_network_embeds_alike_in_tract_and_onnxruntime_and_like_the_f32_one")
    else {
        return;
    };
    let query = SpaceBundle::load(&workspace::bundle()).unwrap().query_model();
    let folder = tempfile::tempdir().unwrap();
    let int8 = folder.path().join("query-int8.onnx");
    let mut trainer = Programs::find().unwrap().trainer();
    trainer.args(["quantize", "--photos-max", "24", "--verify-max", "8", "--model"]).arg(&query);
    let output =
        trainer.arg("--calibrate").arg(workspace::demo().join("photos")).arg("--out").arg(&int8).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert!(size(&int8) * 3 < size(&query), "a byte a weight");
    let own = Embedder::load(&int8).unwrap().metadata().preprocessing;
    check_to(&python, &int8, own, INT8_COSINE_MIN);
}

/// As the server and `ingest` have it with `--onnxruntime`.
#[test]
fn the_gallery_network_gives_the_same_features_where_onnxruntime_is_loaded() {
    let test = "the_gallery_network_gives_the_same_features_where_onnxruntime_is_loaded";
    let Some(python) = Python::find(test) else { return };
    let library = python.onnxruntime().unwrap();
    let model = SpaceBundle::load(&workspace::bundle()).unwrap().gallery_model();
    let tract = Embedder::load(&model).unwrap();
    let text = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(text.path(), "no library").unwrap();
    for wrong in [text.path(), Path::new("/no/such/library.so")] {
        let error = onnxruntime::load(wrong).unwrap_err().to_string();
        assert!(error.contains(wrong.to_str().unwrap()) && !onnxruntime::is_loaded(), "{error}");
    }
    onnxruntime::load(&library).unwrap();
    assert!(onnxruntime::load(text.path()).unwrap_err().to_string().contains("has loaded"));
    let other = Embedder::load_preferred(&model, &EmbedderOptions::default()).unwrap();
    let photos = GroundTruth::read(&workspace::demo()).unwrap().queries;
    for query in photos.iter().step_by(photos.len() / 6) {
        let photo = read_photo(&workspace::root().join(&query.photo)).unwrap();
        let cosine = cosine(&tract.embed(&photo).unwrap(), &other.embed(&photo).unwrap());
        assert!(cosine >= 0.9999, "{}: cosine {cosine}", query.photo.display());
    }
    // The program: the same gallery, whichever engine made it.
    let fixture = Fixture::new().unwrap();
    let mut ingest = fixture.ingest();
    let output = ingest.arg("--onnxruntime").arg(&library).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let again = fixture.ingest().arg("--onnxruntime").arg(text.path()).output().unwrap();
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(1) && said.contains("no ONNX Runtime"), "{said}");
    let photo = workspace::root().join(&fixture.queries[0].photo);
    let search = |more: &[&std::ffi::OsStr]| {
        let mut command = fixture.programs.gallery();
        command.arg("search").args(more).arg(&photo).args(["--json", "--top-k", "5"]);
        command.arg("--gallery").arg(fixture.gallery()).arg("--bundle").arg(workspace::bundle());
        let found: serde_json::Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        found["matches"]
            .as_array()
            .unwrap()
            .iter()
            .map(|found| found["image"].to_string())
            .collect::<Vec<_>>()
    };
    let (by_tract, by_other) = (search(&[]), search(&["--onnxruntime".as_ref(), library.as_ref()]));
    assert!(by_tract.len() == 5 && by_tract == by_other, "{by_tract:?} {by_other:?}");
}

fn check(python: &Python, model: &Path, own: Preprocessing) {
    check_to(python, model, own, COSINE_MIN);
}

/// At the network's own size, and at a larger one that is not square.
fn check_to(python: &Python, model: &Path, own: Preprocessing, cosine_min: f64) {
    let photos: Vec<_> = GroundTruth::read(&workspace::demo()).unwrap().queries;
    let photos = photos.iter().step_by(photos.len() / 6).take(6);
    let photos: Vec<_> =
        photos.map(|query| read_photo(&workspace::root().join(&query.photo)).unwrap()).collect();
    for (width, height) in [(own.width, own.height), (own.width + 64, own.height)] {
        let preprocessing = Preprocessing { width, height, ..own };
        let tensors: Vec<Vec<f32>> = photos.iter().map(|photo| preprocessing.tensor(photo)).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = tensors.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(file.path(), bytes).unwrap();
        let (model_path, tensor_path) = (model.display().to_string(), file.path().display().to_string());
        let arguments = [&model_path, &tensor_path, &height.to_string(), &width.to_string()];
        let theirs = python.run("embed_onnx.py", &arguments.map(String::as_str), b"").unwrap();
        let theirs: Vec<f32> =
            theirs.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();

        let network = Network::load(model, width, height).unwrap();
        let dimension = theirs.len() / tensors.len();
        for (number, (tensor, theirs)) in tensors.iter().zip(theirs.chunks(dimension)).enumerate() {
            let ours = network.run(tensor).unwrap();
            assert_eq!(ours.len(), dimension);
            let cosine = cosine(&ours, theirs);
            assert!(cosine >= cosine_min, "photo {number} at {width} x {height}: cosine {cosine}");
            assert!((norm(theirs) - 1.0).abs() < 1e-5, "an embedding has norm 1");
        }
        // Photos must differ, or the comparison says nothing.
        let far = cosine(&theirs[..dimension], &theirs[dimension..2 * dimension]);
        assert!(far < 0.9, "two photos have a cosine of {far}");
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    dot(a, b) / (norm(a) * norm(b))
}

fn norm(a: &[f32]) -> f64 {
    dot(a, a).sqrt()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
