//! The demo's networks, by one thread and by several.

use std::path::Path;

use glimpse_embedder::{Embedder, EmbedderOptions, test_photo};

#[test]
fn an_embedding_is_the_same_by_however_many_threads() {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
    for (model, options) in [
        ("query.onnx", EmbedderOptions::default()),
        ("query.onnx", EmbedderOptions::engine_alone()),
        ("query-int8.onnx", EmbedderOptions::default()),
    ] {
        let embed = |threads: &str| {
            let options = EmbedderOptions { threads: threads.parse().unwrap(), ..options };
            let embedder = Embedder::load_with(&bundle.join(model), &options).unwrap();
            assert_eq!(embedder.network().threads(), options.threads.count());
            // Twice, for the second finds the threads asleep.
            [0, 1].map(|photo| embedder.embed(&test_photo(photo)).unwrap())
        };
        let alone = embed("1");
        for threads in ["2", "3", "all"] {
            assert_eq!(embed(threads), alone, "{model} by {threads}");
        }
    }
}
