//! Any bytes as a codebook file: refused by name, or a codebook that works and writes the same file again.
#![no_main]

use glimpse_quantizer::scan::{Candidates, Probe};
use glimpse_quantizer::{Codebook, Encoder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(codebook) = Codebook::from_safetensors(bytes) else { return };
    let written = codebook.to_safetensors().expect("a codebook can be written");
    assert_eq!(Codebook::from_safetensors(&written).as_ref(), Ok(&codebook));

    let embedding: Vec<f32> = (0..codebook.dimension()).map(|i| (i % 7) as f32 - 3.0).collect();
    let mut code = vec![0; codebook.sub_spaces()];
    codebook.encode(&embedding, &mut code).expect("lengths fit");
    let mut decoded = vec![0.0; codebook.dimension()];
    codebook.decode(&code, &mut decoded).expect("codes of encode name centroids");

    let encoder = Encoder::new(codebook);
    let mut again = vec![0; code.len()];
    encoder.encode(&embedding, &mut again).expect("lengths fit");
    assert_eq!(code, again);
    let packed = encoder.pack(&code).expect("codes of this codebook");
    let tables = [encoder.distance_table(&embedding).expect("lengths fit")];
    let mut candidates = [Candidates::new(1)];
    packed.view().scan(0, &tables, &[Probe { query: 0, bias: 0 }], &mut candidates, None);
    let [candidates] = candidates;
    assert_eq!(candidates.into_sorted().len(), 1);
});
