//! `train`: everything from pretrained weights to the best network.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use glimpse_embedder::SpaceBundle;
use glimpse_quantizer::Codebook;
use serde::{Deserialize, Serialize};

use super::{HeadOptions, parse_scale, parse_size, revision};
use crate::dashboard;
use crate::device::{DeviceName, Precision};
use crate::features::Sight;
use crate::files::{read, write_whole};
use crate::losses::{LossConfig, LossName, OursConfig, Temperatures};
use crate::networks::{Architecture, Blueprint, EmbeddingNetwork, Frozen, Norms, Parameters};
use crate::photos::Augmentation;
use crate::preparation::{Labelled, Preparation, Teacher};
use crate::training::{
    Arithmetic, OptimizerName, Outcome, Report, Run, TrainingConfig, initialise, plain, read_metrics,
};

/// Train a query network.
#[derive(Debug, Args)]
pub struct Train {
    /// The space bundle, with gallery model and codebook.
    #[arg(long)]
    bundle: PathBuf,
    /// Which network, FAMILY[-xWIDTH][-sSTAGES]: `glimpse-trainer describe` lists them.
    #[arg(long)]
    network: Architecture,
    /// Its PyTorch checkpoint; random weights where it is left out (then use --freeze-to none and --norms live).
    #[arg(long)]
    weights: Option<PathBuf>,
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
    /// Embeddings of the training photos that a teacher of any size made elsewhere, .npy or safetensors: one row a photo in the
    /// order of --photos, view after view. The bundle needs no gallery.onnx then; `glimpse-trainer space` makes one without.
    #[arg(long, requires = "val_teacher_features")]
    teacher_features: Option<PathBuf>,
    /// The same of the validation photos.
    #[arg(long, requires = "teacher_features")]
    val_teacher_features: Option<PathBuf>,
    /// Factors of the size at which the teacher looks, such as 1,1.4142,0.7071; the server's gallery has to be made by the same.
    #[arg(long, value_delimiter = ',', default_values_t = [1.0], value_parser = parse_scale)]
    teacher_scales: Vec<f64>,
    /// The run folder: settings, caches, checkpoints, metrics, report.
    #[arg(long)]
    run: PathBuf,
    /// Side of the query network's input, a multiple of 32.
    #[arg(long, default_value_t = 224, value_parser = parse_size)]
    size: u32,
    /// Views of each training photo: the photo itself, then random crops.
    #[arg(long, default_value_t = 1)]
    views: usize,
    /// What stays as it is: `all` the whole backbone, a number so many of its stages (their maps are cached), `none` nothing.
    #[arg(long, default_value = "all", value_name = "all|STAGE|none")]
    freeze_to: FreezeTo,
    /// With --freeze-to none, what the student sees: the teacher's own views, or the paper's random crops and colours.
    #[arg(long, default_value = "views")]
    augment: AugmentName,
    /// Batch norms: folded (frozen statistics) or live.
    #[arg(long, default_value = "folded")]
    norms: NormsName,
    #[command(flatten)]
    head: HeadOptions,
    /// The first projection: ridge regression in closed form, or random.
    #[arg(long, default_value = "ridge")]
    init: Init,
    /// Ridges to choose from, in units of the mean eigenvalue.
    #[arg(long, value_delimiter = ',', default_values_t = [0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0])]
    ridge: Vec<f64>,
    /// What is minimised: ssp (as in the paper), reg, csd, raml, d3still, ours.
    #[arg(long, default_value_t = LossName::Ours)]
    loss: LossName,
    /// Temperature of SSP, of the student and (without --tau-teacher) of the teacher.
    #[arg(long, default_value_t = Temperatures::PUBLISHED.student)]
    tau: f64,
    /// Temperature of SSP's teacher.
    #[arg(long)]
    tau_teacher: Option<f64>,
    /// Of ours: weight of SSP.
    #[arg(long, default_value_t = OursConfig::default().ssp)]
    ssp_weight: f64,
    /// Of ours: weight of SSP on the whole embedding, with training photos as anchors.
    #[arg(long, default_value_t = OursConfig::default().bank)]
    bank_weight: f64,
    /// Of ours: how many photos are anchors of that term.
    #[arg(long, default_value_t = OursConfig::default().bank_size)]
    bank_size: usize,
    /// Of ours: weight of the global term, the mean of (1 - cos)^2.
    #[arg(long, default_value_t = OursConfig::default().global)]
    global_weight: f64,
    /// Gradient steps; 0 keeps the first projection.
    #[arg(long, default_value_t = 600)]
    steps: u64,
    /// Views in a batch.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Batches a step.
    #[arg(long, default_value_t = 1)]
    accumulate: u32,
    /// adamw, or sgd with Nesterov momentum as in the paper.
    #[arg(long, default_value_t = OptimizerName::AdamW)]
    optimizer: OptimizerName,
    /// Peak learning rate (the paper's, of SGD, is 2.5e-4).
    #[arg(long, default_value_t = 3e-4)]
    lr: f64,
    /// Steps until the peak.
    #[arg(long, default_value_t = 50)]
    warm_up: u64,
    /// Decay of weights, not of biases and norms.
    #[arg(long, default_value_t = 0.05)]
    weight_decay: f64,
    /// Decay a step of a moving average of the network, which is then judged and kept; 0 for none.
    #[arg(long, default_value_t = 0.0)]
    ema: f64,
    /// Seed of views, batches and random weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// cpu, wgpu, vulkan, metal, cuda or rocm, of those that are built in: `glimpse-trainer devices` lists them.
    #[arg(long, default_value_t = DeviceName::by_default())]
    device: DeviceName,
    /// mixed: convolutions in 16 bits (bf16, or f16 with a scaled loss), weights and losses in 32; on GPUs.
    #[arg(long, default_value = "full")]
    precision: Precision,
    /// Continue the run folder's checkpoint.
    #[arg(long)]
    resume: bool,
    /// On a terminal too, lines instead of the dashboard.
    #[arg(long)]
    plain: bool,
}

/// Value of `--freeze-to`.
#[derive(Debug, Clone, Copy)]
enum FreezeTo {
    All,
    Stage(usize),
    None,
}

impl FromStr for FreezeTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "none" => Ok(Self::None),
            number => {
                number.parse().map(Self::Stage).map_err(|_| "all, none, or a number of stages".to_owned())
            }
        }
    }
}

/// Value of `--init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Init {
    Ridge,
    Random,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AugmentName {
    Views,
    Paper,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NormsName {
    Folded,
    Live,
}

/// What a run is, as it is written to `run.toml` and into checkpoints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) space: String,
    pub(super) size: u32,
    /// Of the contents, not the path: a run may be resumed in another place.
    weights: Option<String>,
    views: usize,
    augment: Augmentation,
    teacher_scales: Vec<f64>,
    /// Stages; nothing is frozen where it is missing.
    frozen_stages: Option<usize>,
    init: Init,
    ridge: Vec<f64>,
    pub(super) blueprint: Blueprint,
    loss: LossConfig,
    training: TrainingConfig,
}

/// `run.toml`: for people, and for the record.
#[derive(Serialize)]
struct Record<'a> {
    revision: String,
    device: &'static str,
    photos: &'a Path,
    validation: &'a Path,
    weights: Option<&'a Path>,
    settings: &'a Settings,
}

impl Train {
    /// Runs the command.
    ///
    /// # Errors
    /// With what failed, and after Ctrl-C with how to go on.
    pub(super) fn run(&self, stop: &AtomicBool) -> Result<()> {
        let device = self.device.open()?;
        let arithmetic = self.device.arithmetic(&device, self.precision)?;
        if self.resume {
            self.device.check_resume()?;
        }
        let bundle = SpaceBundle::load(&self.bundle)?;
        let codebook = codebook_of(&bundle)?;
        let settings = self.settings(&bundle, arithmetic)?;
        let settings_json = serde_json::to_value(&settings)?;
        std::fs::create_dir_all(&self.run).with_context(|| format!("cannot make {}", self.run.display()))?;

        let network = self.network(&settings)?;
        let frozen = settings.frozen();
        let cache = self.run.join("cache");
        let teacher = Teacher {
            sight: Sight { scales: self.teacher_scales.clone(), longest_side: None },
            training: self.teacher_features.clone(),
            validation: self.val_teacher_features.clone(),
        };
        let embeddings =
            self.embeddings.clone().unwrap_or_else(|| cache.join("training-embeddings.safetensors"));
        let preparation = Preparation {
            bundle: &bundle,
            network: self.network,
            size: self.size,
            frozen,
            teacher: &teacher,
            views: self.views,
            augmentation: self.augment.into(),
            seed: self.seed,
            embeddings: &embeddings,
            cache: &cache,
            stop,
        };
        let stages = preparation.stages(&network)?;
        let Labelled { task: validation, symmetric, .. } =
            preparation.labelled(&stages, "validation", &self.val)?;
        let set = preparation.training(&stages, &self.photos)?;
        tracing::info!(
            "{} views of {} photos; validation: {} queries against {} photos, gallery model on both sides mAP {:.4}, \
             recall@1 {:.4}",
            set.len(),
            set.len() / self.views.max(1),
            validation.answers.len(),
            validation.gallery.len() / bundle.dimension,
            symmetric.map,
            symmetric.recall_at_1
        );

        let network = self.move_to(&device, network, &settings)?;
        let bank = |count| set.bank(count, self.seed);
        let losses = settings.loss.terms(&codebook, bank, &device.clone().autodiff());
        let run = Run {
            config: &settings.training,
            settings: &settings_json,
            losses: &losses,
            set: &set,
            validation: &validation,
            frozen,
            device: &device,
            folder: &self.run,
            watch: &|plan| if self.plain { plain(plan) } else { dashboard::watch(plan, &self.run, stop) },
        };
        let outcome = if self.resume {
            ensure!(
                run.has_checkpoint(),
                "{} has no checkpoint to resume: leave out --resume",
                self.run.display()
            );
            run.resume(network, stop)?
        } else {
            if run.has_checkpoint() {
                bail!(
                    "{} already holds a run: add --resume to continue it, or use another folder",
                    self.run.display()
                );
            }
            self.record(&settings)?;
            let network = match self.init {
                Init::Random => network,
                Init::Ridge => {
                    let (network, ridge, scores) = initialise(
                        &network,
                        frozen,
                        settings.blueprint.head.rank,
                        &set,
                        &validation,
                        &self.ridge,
                    )?;
                    tracing::info!("closed form with ridge {ridge}: validation mAP {:.4}", scores.map);
                    network
                }
            };
            run.start(network, stop)?
        };
        self.report(&settings, &outcome, symmetric.map)
    }

    /// On the processor, so that one seed gives one network on every device.
    fn network(&self, settings: &Settings) -> Result<EmbeddingNetwork> {
        let device = Device::flex();
        device.seed(self.seed);
        Ok(match &self.weights {
            Some(weights) => settings.blueprint.pretrained(weights, &device)?,
            None => settings.blueprint.at_random(&device),
        })
    }

    fn move_to(
        &self,
        device: &Device,
        network: EmbeddingNetwork,
        settings: &Settings,
    ) -> Result<EmbeddingNetwork> {
        if self.device == DeviceName::Cpu {
            return Ok(network);
        }
        Ok(Parameters::of(&network).apply(settings.blueprint.at_random(device))?)
    }

    fn report(&self, settings: &Settings, outcome: &Outcome, symmetric_map: f64) -> Result<()> {
        let Outcome { step, complete, .. } = *outcome;
        let steps =
            if complete { self.steps.to_string() } else { format!("{step} of {}, stopped", self.steps) };
        let retention = 100.0 * outcome.best_map / symmetric_map;
        let cost = settings.blueprint.cost(self.size as usize);
        let facts = [
            ("network", self.network.to_string()),
            ("parameters", cost.parameters.to_string()),
            ("multiply-adds", cost.multiply_adds.to_string()),
            ("input", format!("{0} x {0} px", self.size)),
            ("loss", settings.loss.name.to_string()),
            ("steps", steps),
            ("best after step", outcome.best_step.to_string()),
            ("validation mAP", format!("{:.4}", outcome.best_map)),
            ("of the gallery model's on both sides", format!("{retention:.1} %")),
            ("revision", revision()),
        ];
        let title = format!("{} in space {}", self.network, settings.space);
        Report { title: &title, facts: &facts, epochs: &read_metrics(&self.run) }.write(&self.run)?;
        if !complete {
            bail!("stopped after step {step} of {}; continue with the same command and --resume", self.steps);
        }
        tracing::info!(
            "best after step {}: validation mAP {:.4} ({retention:.1} % of the gallery model on both sides); report in \
             {}; now `glimpse-trainer export --run {} --bundle {}`",
            outcome.best_step,
            outcome.best_map,
            self.run.join("report.md").display(),
            self.run.display(),
            self.bundle.display()
        );
        Ok(())
    }

    fn settings(&self, bundle: &SpaceBundle, arithmetic: Arithmetic) -> Result<Settings> {
        ensure!(self.views >= 1 && self.batch >= 1, "--views and --batch must be at least 1");
        ensure!(self.accumulate >= 1, "--accumulate must be at least 1");
        ensure!(
            self.head.rank != Some(0) && self.head.head_channels != Some(0),
            "--rank and --head-channels must be at least 1"
        );
        ensure!((0.0..1.0).contains(&self.ema), "--ema must be at least 0 and below 1");
        let tau_teacher = self.tau_teacher.unwrap_or(self.tau);
        for (name, value) in [("--lr", self.lr), ("--tau", self.tau), ("--tau-teacher", tau_teacher)] {
            ensure!(value > 0.0 && value.is_finite(), "{name} must be above zero");
        }
        let ours = OursConfig {
            ssp: self.ssp_weight,
            bank: self.bank_weight,
            bank_size: self.bank_size,
            global: self.global_weight,
            ..OursConfig::default()
        };
        for value in self.ridge.iter().chain([&self.weight_decay, &ours.ssp, &ours.bank, &ours.global]) {
            ensure!(*value >= 0.0 && value.is_finite(), "weights, decay and ridges must not be negative");
        }
        ensure!(
            self.loss != LossName::Ours || ours.ssp + ours.bank + ours.global > 0.0,
            "all terms of the loss have weight zero"
        );
        let stages = self.network.plan().stages.len();
        let frozen_stages = match self.freeze_to {
            FreezeTo::All => Some(stages),
            FreezeTo::Stage(stage) => Some(stage),
            FreezeTo::None => None,
        };
        ensure!(
            frozen_stages.is_none_or(|frozen| frozen <= stages),
            "{} has {stages} stages, and --freeze-to asks for more",
            self.network
        );
        ensure!(
            self.weights.is_some() || frozen_stages.is_none(),
            "random weights that are frozen learn nothing: give --weights, or use --freeze-to none"
        );
        ensure!(
            frozen_stages.is_none() || matches!(self.augment, AugmentName::Views),
            "--augment paper changes photos from epoch to epoch, and maps of frozen stages are cached: use --freeze-to none"
        );
        Ok(Settings {
            space: bundle.space.to_string(),
            size: self.size,
            weights: self
                .weights
                .as_ref()
                .map(|path| Ok::<_, anyhow::Error>(blake3::hash(&read(path)?).to_hex().to_string()))
                .transpose()?,
            views: self.views,
            augment: self.augment.into(),
            teacher_scales: self.teacher_scales.clone(),
            frozen_stages,
            init: self.init,
            ridge: self.ridge.clone(),
            blueprint: Blueprint {
                network: self.network,
                head: self.head.config(),
                norms: self.norms.into(),
                dimension: bundle.dimension,
            },
            loss: LossConfig {
                name: self.loss,
                temperatures: Temperatures { student: self.tau, teacher: tau_teacher },
                ours,
            },
            training: TrainingConfig {
                steps: self.steps,
                batch: self.batch,
                accumulate: self.accumulate,
                optimizer: self.optimizer,
                learning_rate: self.lr,
                warm_up: self.warm_up,
                weight_decay: self.weight_decay,
                ema: self.ema,
                seed: self.seed,
                arithmetic,
            },
        })
    }

    fn record(&self, settings: &Settings) -> Result<()> {
        let record = Record {
            revision: revision(),
            device: self.device.name(),
            photos: &self.photos,
            validation: &self.val,
            weights: self.weights.as_deref(),
            settings,
        };
        Ok(write_whole(&self.run.join("run.toml"), toml::to_string_pretty(&record)?.as_bytes())?)
    }
}

impl Settings {
    fn frozen(&self) -> Frozen {
        self.frozen_stages.map_or(Frozen::Nothing, Frozen::Stages)
    }
}

impl From<AugmentName> for Augmentation {
    fn from(name: AugmentName) -> Self {
        match name {
            AugmentName::Views => Self::Views,
            AugmentName::Paper => Self::Paper,
        }
    }
}

impl From<NormsName> for Norms {
    fn from(name: NormsName) -> Self {
        match name {
            NormsName::Folded => Self::Folded,
            NormsName::Live => Self::Live,
        }
    }
}

/// The bundle's quantizer, whose centroids are the anchors.
pub(super) fn codebook_of(bundle: &SpaceBundle) -> Result<Codebook> {
    let codebook = Codebook::from_safetensors(&read(&bundle.codebook())?).with_context(|| {
        format!("{} cannot be used: make it with `glimpse-trainer quantizer`", bundle.codebook().display())
    })?;
    ensure!(
        codebook.dimension() == bundle.dimension,
        "the codebook has {} dimensions and the space has {}: train the quantizer again",
        codebook.dimension(),
        bundle.dimension
    );
    Ok(codebook)
}
