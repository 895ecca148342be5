//! `train`: everything from pretrained weights to the best head.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use clap::Args;
use glimpse_embedder::{ModelMetadata, Preprocessing, Role, SpaceBundle};
use glimpse_quantizer::Codebook;
use serde::{Deserialize, Serialize};

use super::{parse_size, revision};
use crate::features::{Extraction, Features};
use crate::files::{read, write_whole};
use crate::losses::{GlobalCosine, Loss, Ssp};
use crate::networks::{Architecture, Backbone, EfficientNet, load_pretrained, preprocessing};
use crate::onnx;
use crate::photos::PhotoList;
use crate::retrieval::{Scores, Task, score};
use crate::training::{Outcome, Run, TrainingConfig, TrainingSet, Validation, initialise};

/// Train a query network.
#[derive(Debug, Args)]
pub struct Train {
    /// The space bundle, with gallery model and codebook.
    #[arg(long)]
    bundle: PathBuf,
    /// Which network: efficientnet-lite0 to efficientnet-lite4.
    #[arg(long)]
    network: Architecture,
    /// Its PyTorch checkpoint.
    #[arg(long)]
    weights: PathBuf,
    /// Training photos: a CSV table or a folder. Labels are not used.
    #[arg(long)]
    photos: PathBuf,
    /// Labelled validation photos, which choose the ridge and the best epoch.
    #[arg(long)]
    val: PathBuf,
    /// Gallery embeddings of the training views, from `import --embeddings` or `features`; computed where it is missing or
    /// of other views. In the run folder by default.
    #[arg(long)]
    embeddings: Option<PathBuf>,
    /// The run folder: caches, checkpoints, metrics.
    #[arg(long)]
    run: PathBuf,
    /// Side of the query network's input, a multiple of 32.
    #[arg(long, default_value_t = 224, value_parser = parse_size)]
    size: u32,
    /// Views of each training photo: the photo itself, then random crops.
    #[arg(long, default_value_t = 1)]
    views: usize,
    /// Gradient steps; 0 keeps the closed form.
    #[arg(long, default_value_t = 600)]
    steps: u64,
    /// Views a step.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Peak learning rate of AdamW.
    #[arg(long, default_value_t = 3e-4)]
    lr: f64,
    /// Steps until the peak.
    #[arg(long, default_value_t = 50)]
    warm_up: u64,
    /// Decay of weights.
    #[arg(long, default_value_t = 0.05)]
    weight_decay: f64,
    /// Temperature of SSP.
    #[arg(long, default_value_t = Ssp::TEMPERATURE)]
    tau: f64,
    /// Weight of SSP.
    #[arg(long, default_value_t = 1.0)]
    ssp_weight: f64,
    /// Weight of the global term, the mean of (1 - cos)^2; 0 is SSP alone.
    #[arg(long, default_value_t = 0.0)]
    global_weight: f64,
    /// Ridges to choose from for the first projection, in units of the mean eigenvalue.
    #[arg(long, value_delimiter = ',', default_values_t = [0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0])]
    ridge: Vec<f64>,
    /// Seed of views and batches.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Continue the run folder's checkpoint.
    #[arg(long)]
    resume: bool,
}

/// What a run is, as it is written to `run.toml` and into checkpoints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) space: String,
    pub(super) network: String,
    pub(super) weights: String,
    pub(super) size: u32,
    views: usize,
    tau: f64,
    ssp_weight: f64,
    global_weight: f64,
    ridge: Vec<f64>,
    training: TrainingConfig,
}

/// `run.toml`: for people, and for the record.
#[derive(Serialize)]
struct Record<'a> {
    revision: String,
    photos: &'a Path,
    validation: &'a Path,
    weights: &'a Path,
    settings: &'a Settings,
}

impl Train {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed, and after Ctrl-C with how to go on.
    pub(super) fn run(&self, stop: &AtomicBool) -> Result<()> {
        let bundle = SpaceBundle::load(&self.bundle)?;
        let codebook = Codebook::from_safetensors(&read(&bundle.codebook())?).with_context(|| {
            format!(
                "{} cannot be used: make it with `glimpse-trainer quantizer`",
                bundle.codebook().display()
            )
        })?;
        ensure!(
            codebook.dimension() == bundle.dimension,
            "the codebook has {} dimensions and the space has {}: train the quantizer again",
            codebook.dimension(),
            bundle.dimension
        );
        let settings = self.settings(&bundle)?;
        let settings_json = serde_json::to_value(&settings)?;
        std::fs::create_dir_all(&self.run).with_context(|| format!("cannot make {}", self.run.display()))?;

        let pretrained = load_pretrained(self.network, &self.weights, &Device::flex())?;
        let caches = Caches { command: self, bundle: &bundle, stop };
        let backbone = caches.backbone(&pretrained.backbone)?;
        let (set, validation, symmetric) = caches.data(&backbone)?;
        tracing::info!(
            "{} views of {} photos; validation: {} queries against {} photos, gallery model on both sides mAP {:.4}, \
             recall@1 {:.4}",
            set.maps.len(),
            set.maps.len() / self.views.max(1),
            validation.answers.len(),
            validation.gallery.len() / bundle.dimension,
            symmetric.map,
            symmetric.recall_at_1
        );

        let losses = self.losses(&codebook);
        let run = Run {
            config: &settings.training,
            settings: &settings_json,
            losses: &losses,
            set: &set,
            validation: &validation,
            folder: &self.run,
        };
        let outcome = if self.resume {
            ensure!(
                run.has_checkpoint(),
                "{} has no checkpoint to resume: leave out --resume",
                self.run.display()
            );
            run.resume(stop)?
        } else {
            if run.has_checkpoint() {
                bail!(
                    "{} already holds a run: add --resume to continue it, or use another folder",
                    self.run.display()
                );
            }
            self.record(&settings)?;
            let (start, ridge, scores) = initialise(&pretrained.head, &set, &validation, &self.ridge)?;
            tracing::info!("closed form with ridge {ridge}: validation mAP {:.4}", scores.map);
            run.start(start, stop)?
        };
        self.report(&outcome, &validation, symmetric)
    }

    fn report(&self, outcome: &Outcome, validation: &Validation, symmetric: Scores) -> Result<()> {
        if !outcome.complete {
            bail!(
                "stopped after step {} of {}; continue with the same command and --resume",
                outcome.step,
                self.steps
            );
        }
        let scores = validation.scores(&outcome.best);
        tracing::info!(
            "best after step {}: validation mAP {:.4} ({:.1} % of the gallery model on both sides), recall@1 {:.4}; \
             now `glimpse-trainer export --run {} --bundle {}`",
            outcome.best_step,
            scores.map,
            100.0 * scores.map / symmetric.map,
            scores.recall_at_1,
            self.run.display(),
            self.bundle.display()
        );
        Ok(())
    }

    fn settings(&self, bundle: &SpaceBundle) -> Result<Settings> {
        ensure!(self.views >= 1 && self.batch >= 1, "--views and --batch must be at least 1");
        for (name, value) in [("--lr", self.lr), ("--tau", self.tau)] {
            ensure!(value > 0.0 && value.is_finite(), "{name} must be above zero");
        }
        for value in self.ridge.iter().chain([&self.weight_decay, &self.ssp_weight, &self.global_weight]) {
            ensure!(*value >= 0.0 && value.is_finite(), "weights, decay and ridges must not be negative");
        }
        ensure!(self.ssp_weight + self.global_weight > 0.0, "all terms of the loss have weight zero");
        Ok(Settings {
            space: bundle.space.to_string(),
            network: self.network.to_string(),
            // The contents, not the path: a run may be resumed in another place.
            weights: blake3::hash(&read(&self.weights)?).to_hex().to_string(),
            size: self.size,
            views: self.views,
            tau: self.tau,
            ssp_weight: self.ssp_weight,
            global_weight: self.global_weight,
            ridge: self.ridge.clone(),
            training: TrainingConfig {
                steps: self.steps,
                batch: self.batch,
                learning_rate: self.lr,
                warm_up: self.warm_up,
                weight_decay: self.weight_decay,
                seed: self.seed,
            },
        })
    }

    fn losses(&self, codebook: &Codebook) -> Vec<(f64, Box<dyn Loss>)> {
        let device = Device::flex().autodiff();
        let ssp: Box<dyn Loss> = Box::new(Ssp::new(codebook, self.tau, &device));
        let terms = [(self.ssp_weight, ssp), (self.global_weight, Box::new(GlobalCosine) as Box<dyn Loss>)];
        terms.into_iter().filter(|(weight, _)| *weight > 0.0).collect()
    }

    fn record(&self, settings: &Settings) -> Result<()> {
        let record = Record {
            revision: revision(),
            photos: &self.photos,
            validation: &self.val,
            weights: &self.weights,
            settings,
        };
        Ok(write_whole(&self.run.join("run.toml"), toml::to_string_pretty(&record)?.as_bytes())?)
    }
}

/// What is computed once and kept in the run folder.
struct Caches<'a> {
    command: &'a Train,
    bundle: &'a SpaceBundle,
    stop: &'a AtomicBool,
}

impl Caches<'_> {
    /// The frozen backbone as ONNX: tract runs it several times faster than Burn.
    fn backbone(&self, backbone: &Backbone) -> Result<PathBuf> {
        let path = self.path("backbone.onnx");
        let model = onnx::export(backbone, "maps", Backbone::forward)?;
        let metadata = ModelMetadata {
            role: Role::Features,
            space: None,
            dimension: self.command.network.map_channels(),
            preprocessing: preprocessing(self.command.size),
        };
        onnx::write(model, &metadata, &path)?;
        Ok(path)
    }

    /// Training set, validation, and the scores of the gallery model on both sides.
    fn data(&self, backbone: &Path) -> Result<(TrainingSet, Validation, Scores)> {
        let train = PhotoList::read(&self.command.photos)?;
        let val = PhotoList::read(&self.command.val)?;
        let views = self.command.views;
        let student = preprocessing(self.command.size);
        let teacher = self.bundle.preprocessing;
        let gallery = self.bundle.gallery_model();

        let queries = self.extract("validation maps", backbone, student, &val, 1)?;
        let embeddings = self.extract("validation embeddings", &gallery, teacher, &val, 1)?;
        let present = |number| queries.items.contains(&number) && embeddings.items.contains(&number);
        let task = Task::new(val.photos(), present);
        ensure!(
            !task.queries.is_empty(),
            "{} has no query with an answer in the gallery: validation needs the columns role and object",
            self.command.val.display()
        );
        let dimension = self.bundle.dimension;
        let validation = Validation {
            queries: queries.keep(&task.queries),
            gallery: embeddings.keep(&task.gallery).to_f32(),
            answers: task.answers,
        };
        let symmetric = score(
            &embeddings.keep(&task.queries).to_f32(),
            &validation.gallery,
            dimension,
            &validation.answers,
        );

        let maps = self.extract("training maps", backbone, student, &train, views)?;
        let targets = match &self.command.embeddings {
            Some(out) => self.extract_to(out, "training embeddings", &gallery, teacher, &train, views)?,
            None => self.extract("training embeddings", &gallery, teacher, &train, views)?,
        };
        Ok((TrainingSet::new(maps, targets)?, validation, symmetric))
    }

    fn extract(
        &self,
        name: &str,
        model: &Path,
        preprocessing: Preprocessing,
        photos: &PhotoList,
        views: usize,
    ) -> Result<Features> {
        let out = self.path(&format!("{}.safetensors", name.replace(' ', "-")));
        self.extract_to(&out, name, model, preprocessing, photos, views)
    }

    fn extract_to(
        &self,
        out: &Path,
        name: &str,
        model: &Path,
        preprocessing: Preprocessing,
        photos: &PhotoList,
        views: usize,
    ) -> Result<Features> {
        let (seed, half) = (self.command.seed, name.ends_with("maps"));
        let extraction = Extraction { name, model, preprocessing, photos, views, seed, half };
        Ok(extraction.run(out, self.stop)?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.command.run.join("cache").join(name)
    }
}

/// The folded network that a run's head belongs to.
pub(super) fn pretrained_of(settings: &Settings, weights: &Path) -> Result<EfficientNet> {
    let network: Architecture = settings.network.parse().map_err(anyhow::Error::msg)?;
    let found = blake3::hash(&read(weights)?).to_hex().to_string();
    ensure!(
        found == settings.weights,
        "{} are not the weights that the run was trained from",
        weights.display()
    );
    Ok(load_pretrained(network, weights, &Device::flex())?)
}
