//! The demo's networks as plans: run at once, and read again from a folder.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use glimpse_embedder::{
    Embedder, EmbedderOptions, Memory, PlanCache, PortableEmbedder, PortableModel, test_photo,
};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo").join(name)
}

fn plans(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn embed(embedder: &Embedder) -> [Vec<f32>; 2] {
    [0, 1].map(|photo| embedder.embed(&test_photo(photo)).unwrap())
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn a_plan_embeds_as_the_engine_does() {
    for name in ["query.onnx", "query-int8.onnx"] {
        let ours = Embedder::load(&model(name)).unwrap();
        let profile = ours.network().profile(&vec![0.1; 3 * 224 * 224], 1).unwrap();
        assert!(ours.network().profile(&[0.1; 3], 1).unwrap_err().contains("3 values"));
        let all_ours = profile.operators.iter().all(|operator| operator.operator.starts_with("Glimpse"));
        assert!(all_ours, "{name}: {profile}");
        let engine = Embedder::load_with(&model(name), &EmbedderOptions::engine_alone()).unwrap();
        for (ours, engines) in embed(&ours).iter().zip(embed(&engine)) {
            let near = if name == "query.onnx" { 0.999_999 } else { 0.995 };
            assert!(cosine(ours, &engines) >= near, "{name}: {}", cosine(ours, &engines));
        }
    }
}

#[test]
fn a_kept_plan_gives_the_same_embeddings_and_a_damaged_one_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("not/there/yet");
    let (cache, options) = (PlanCache::new(folder.clone()), EmbedderOptions::default());
    let load = || Embedder::load_cached(&model("query-int8.onnx"), &options, &cache).unwrap();
    let first = load();
    let [kept] = &plans(&folder)[..] else { panic!("one plan in {:?}", plans(&folder)) };
    let whole = fs::read(kept).unwrap();
    let again = load();
    assert_eq!(embed(&first), embed(&again));
    assert_eq!((first.metadata(), first.space()), (again.metadata(), again.space()));
    assert_eq!(first.network().instructions(), again.network().instructions());
    for damage in ["a byte", "half", "nothing", "another version"] {
        let mut bytes = whole.clone();
        match damage {
            "a byte" => {
                let place = bytes.len() / 2;
                bytes[place] ^= 1;
            }
            "half" => bytes.truncate(whole.len() / 2),
            "nothing" => bytes.clear(),
            _ => bytes[7] ^= 1,
        }
        // As another file: this one's weights are in use.
        fs::remove_file(kept).unwrap();
        fs::write(kept, &bytes).unwrap();
        assert_eq!(embed(&load()), embed(&first), "{damage}");
        assert_eq!(fs::read(kept).unwrap(), whole, "{damage} was mended");
    }
    // Another network, and the same in another way, have plans of their own.
    Embedder::load_cached(&model("query.onnx"), &options, &cache).unwrap();
    let none = EmbedderOptions { pointwise: false, ..EmbedderOptions::all(options.isa) };
    Embedder::load_cached(&model("query.onnx"), &none, &cache).unwrap();
    assert_eq!(plans(&folder).len(), 2, "what the engine runs is no plan");
}

#[test]
fn the_newest_plans_stay_and_a_folder_that_cannot_be_used_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..12 {
        fs::write(folder.path().join(format!("{number}.plan")), "old").unwrap();
    }
    fs::write(folder.path().join("notes.txt"), "somebody's").unwrap();
    let (cache, options) = (PlanCache::new(folder.path().to_owned()), EmbedderOptions::default());
    Embedder::load_cached(&model("query-int8.onnx"), &options, &cache).unwrap();
    let left = plans(folder.path());
    assert_eq!(left.len(), 9, "{left:?}");
    assert!(left.contains(&folder.path().join("notes.txt")));
    assert!(left.iter().any(|path| path.metadata().unwrap().len() > 1000));
    let file = folder.path().join("notes.txt");
    let embedder = Embedder::load_cached(&model("query-int8.onnx"), &options, &PlanCache::new(file)).unwrap();
    assert_eq!(embedder.dimension(), embed(&embedder)[0].len());
}

#[test]
fn a_portable_model_embeds_as_its_network_does() {
    for name in ["query.onnx", "query-int8.onnx"] {
        let network = Embedder::load(&model(name)).unwrap();
        let bytes = Embedder::portable_model(&model(name)).unwrap().write();
        let portable = PortableModel::read(&Memory::new(bytes)).unwrap();
        let found = (portable.space(), portable.dimension(), portable.preprocessing());
        assert_eq!(found, (network.space(), network.dimension(), network.metadata().preprocessing));
        let mut portable = PortableEmbedder::new(portable);
        for (photo, wanted) in embed(&network).iter().enumerate() {
            let mut embedding = vec![0.0; wanted.len()];
            let photo = test_photo(photo as u16);
            portable.embed(&(&photo).into(), &mut embedding).unwrap();
            // Without fused multiply-add sums end otherwise, and in bytes such an end may become another level.
            assert!(cosine(&embedding, wanted) >= 0.9999, "{name}: {}", cosine(&embedding, wanted));
        }
    }
}

#[test]
fn photos_that_go_together_are_embedded_as_each_alone() {
    let alone = Embedder::load(&model("query.onnx")).unwrap();
    let batch = NonZeroUsize::new(3).unwrap();
    let options = EmbedderOptions { batch, ..EmbedderOptions::default() };
    let together = Embedder::load_with(&model("query.onnx"), &options).unwrap();
    assert_eq!((alone.network().batch(), together.network().batch()), (1, 3));
    assert_eq!(together.network().output_shape(), alone.network().output_shape());
    let preprocessing = alone.metadata().preprocessing;
    // A whole batch, and one that is not full.
    let tensors: Vec<Vec<f32>> = (0..5).map(|photo| preprocessing.tensor(&test_photo(photo % 2))).collect();
    let found = together.embed_tensors(&tensors);
    assert_eq!(found.len(), 5);
    for (tensor, found) in tensors.iter().zip(found) {
        let cosine = cosine(&found.unwrap(), &alone.embed_tensor(tensor).unwrap());
        assert!(cosine >= 0.999_999, "{cosine}");
    }
    let refused = together.network().run_batch(4, |_| {}).unwrap_err();
    assert!(refused.contains('4') && refused.contains('3'), "{refused}");
    let short = together.embed_tensors(&[vec![0.0; 7]]).remove(0).unwrap_err().to_string();
    assert!(short.contains('7'), "{short}");
}
