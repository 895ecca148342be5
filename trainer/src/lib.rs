//! Trains a tiny query network to live in a large gallery model's embedding space.
//!
//! In reading order:
//!
//! 1. [`networks`]: backbones (EfficientNet-Lite, both MobileNets, ShuffleNetV2), heads, and pretrained weights.
//! 2. [`photos`] and [`features`]: what a network makes of many photos, cached and resumable.
//! 3. [`projection`]: PCA-whitening (which makes the gallery's space) and ridge regression (which puts an untrained query
//!    network into it), in closed form.
//! 4. [`losses`], [`schedule`], [`preparation`] and [`training`]: SSP, its rivals and ours, and the loop.
//! 5. [`retrieval`] and [`evaluation`]: mAP, recall, and the protocols of published data sets.
//! 6. [`onnx`]: networks to files, checked against the module; [`adoption`]: gallery models that others made.
//! 7. [`int8`]: a query network with int8 weights and activations, calibrated on photos and compared on others.
//! 8. [`comparison`]: the benchmark of accuracy.
//! 9. [`device`]: what networks train on, by name.
//! 10. [`dashboard`], [`progress`] and [`log`]: what a person sees meanwhile.
//! 11. [`commands`]: one file for each command of `glimpse-trainer`, which puts these together.
//!
//! Only `networks`, `losses`, `training`, `device`, `onnx` and `dashboard` know Burn. Photos are embedded by tract through
//! `glimpse-embedder`, the teacher's and the frozen backbone's too: it is several times faster than Burn on
//! processors, and it is what runs in the field.
//!
//! What is absent: labels. Roles and objects of photos are read for evaluation only.

pub mod adoption;
pub mod commands;
pub mod comparison;
pub mod dashboard;
pub mod device;
pub mod evaluation;
pub mod features;
pub mod files;
pub mod int8;
pub mod linalg;
pub mod log;
pub mod losses;
pub use glimpse_embedder::matrix;
pub mod networks;
pub mod onnx;
pub mod photos;
pub mod preparation;
pub mod progress;
pub mod projection;
pub mod retrieval;
pub mod schedule;
pub mod training;
