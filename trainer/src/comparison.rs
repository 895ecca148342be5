//! The benchmark of accuracy: every loss from the same start, on the same photos, for the same steps, each with its own best
//! learning rate, over several seeds, judged on photos that nothing was chosen on.
//!
//! For each row of a [`Plan`]: short runs on the first seed choose the learning rate on validation; then one run a seed,
//! whose best epoch is chosen on validation too; and only then the test photos are looked at. Every run has a folder
//! with a checkpoint and, once it is done, a `result.json`, so that a benchmark that was stopped goes on where it was.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use glimpse_embedder::SpaceBundle;
use glimpse_quantizer::Codebook;
use serde::{Deserialize, Serialize};

use crate::files::{read, write_whole};
use crate::losses::{LossConfig, LossName, OursConfig, Temperatures};
use crate::networks::{Architecture, Blueprint, EmbeddingNetwork, Frozen, HeadConfig, Norms, Parameters};
use crate::photos::Augmentation;
use crate::preparation::{Labelled, Preparation, Teacher};
use crate::training::{
    Arithmetic, OptimizerName, Outcome, Run, TrainingConfig, TrainingSet, initialise, plain,
};

/// Steps of a run over steps of a run that only chooses a learning rate. A tenth favoured rates that a whole run scatters at.
const SEARCH_SHARE: u64 = 3;

/// What to compare, as a TOML file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The space, with gallery model and codebook.
    pub bundle: PathBuf,
    /// Training photos.
    pub photos: PathBuf,
    /// Views of each.
    pub views: usize,
    /// Labelled photos that choose learning rates and epochs.
    pub val: PathBuf,
    /// Labelled photos that judge.
    pub test: PathBuf,
    /// Gallery embeddings of the training views; computed where they are missing.
    pub embeddings: PathBuf,
    /// Where runs and caches are kept.
    pub runs: PathBuf,
    /// Steps of each run.
    pub steps: u64,
    /// Views in a batch.
    pub batch: usize,
    /// Steps until the peak learning rate.
    pub warm_up: u64,
    /// Decay of weights.
    pub weight_decay: f64,
    /// One run each.
    pub seeds: Vec<u64>,
    /// Each row takes its own best.
    pub learning_rates: Vec<f64>,
    /// Ridges to choose from, where a row starts in closed form.
    pub ridges: Vec<f64>,
    /// In the order of the table.
    pub networks: Vec<NetworkPlan>,
}

/// One query network.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPlan {
    /// FAMILY[-xWIDTH][-sSTAGES].
    pub name: String,
    /// Its PyTorch checkpoint.
    pub weights: PathBuf,
    /// Side of its input.
    pub size: u32,
    /// Stages that are frozen.
    pub frozen_stages: usize,
    /// Channels of a fresh convolution in the head.
    pub head_channels: Option<usize>,
    /// Rank of a low-rank projection.
    pub rank: Option<usize>,
    /// Cells at each edge of the maps that pooling leaves out.
    #[serde(default)]
    pub margin: usize,
    /// What is trained on it.
    pub rows: Vec<RowPlan>,
}

/// One row of the table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowPlan {
    /// `untrained`, or a loss.
    pub loss: String,
    /// What sets it apart from the plain loss, for an ablation; it is not in the main table then.
    pub variant: Option<String>,
    /// Whether the projection starts in closed form.
    #[serde(default)]
    pub closed_form: bool,
    /// Temperatures of SSP, and of that term of ours.
    pub temperatures: Option<Temperatures>,
    /// Weights of the terms of ours.
    pub ours: Option<OursConfig>,
    /// Learning rates to choose from, where they are not the plan's.
    pub learning_rates: Option<Vec<f64>>,
}

/// One run's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Figures {
    validation_map: f64,
    map: f64,
    recall_at_1: f64,
    retention: f64,
    own_map: f64,
    best_step: u64,
}

/// One row of the report. mAP is in points, 0 to 100.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `untrained`, or a loss.
    pub loss: String,
    /// What sets it apart from the plain loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// The query network.
    pub network: String,
    /// Side of its input, in pixels.
    pub input_px: u32,
    /// Its parameters.
    pub parameters: usize,
    /// Products and sums for one photo.
    pub multiply_adds: u64,
    /// Query network against the gallery network on the test photos, mean over seeds.
    pub map_mean: f64,
    /// Its sample standard deviation over seeds.
    pub map_std: f64,
    /// Mean over seeds.
    pub recall_at_1: f64,
    /// mAP over that of the gallery network on both sides, mean over seeds.
    pub retention: f64,
    /// Query network on both sides.
    pub own_map_mean: f64,
    /// On the validation photos, of the best epoch.
    pub validation_map_mean: f64,
    /// How many.
    pub seeds: usize,
    /// Of each run.
    pub steps: u64,
    /// Training photos.
    pub images: usize,
    /// Of each.
    pub views: usize,
    /// The row's best.
    pub learning_rate: f64,
    /// Frozen stages of all stages.
    pub frozen_stages: usize,
    /// Cells at each edge of the maps that pooling leaves out.
    pub margin: usize,
    /// How the projection starts.
    pub start: String,
}

/// The whole report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The gallery network on both sides, in points.
    pub symmetric_map: f64,
    /// Queries of the test.
    pub queries: usize,
    /// The table.
    pub rows: Vec<Row>,
}

impl Plan {
    /// Reads and checks a plan.
    ///
    /// # Errors
    /// With what is wrong, and where.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            String::from_utf8(read(path)?).with_context(|| format!("{} is no text", path.display()))?;
        let plan: Self = toml::from_str(&text).with_context(|| format!("{} is no plan", path.display()))?;
        plan.check().with_context(|| format!("{} cannot be carried out", path.display()))?;
        Ok(plan)
    }

    fn check(&self) -> Result<()> {
        ensure!(
            !self.seeds.is_empty() && !self.learning_rates.is_empty(),
            "it needs seeds and learning_rates"
        );
        ensure!(
            self.steps >= 1 && self.batch >= 1 && self.views >= 1,
            "steps, batch and views must be at least 1"
        );
        let rates = self
            .networks
            .iter()
            .flat_map(|network| &network.rows)
            .filter_map(|row| row.learning_rates.as_ref());
        for rate in rates.flatten().chain(&self.learning_rates) {
            ensure!(*rate > 0.0 && rate.is_finite(), "a learning rate must be above zero, not {rate}");
        }
        for network in &self.networks {
            let architecture = network.architecture()?;
            let stages = architecture.plan().stages.len();
            ensure!(network.frozen_stages <= stages, "{} has {stages} stages", network.name);
            for row in &network.rows {
                row.loss_name()?;
                ensure!(
                    row.learning_rates.as_ref().is_none_or(|rates| !rates.is_empty()),
                    "a row of {} has no learning rate",
                    network.name
                );
            }
        }
        Ok(())
    }

    /// Carries it out. `done` gets the report whenever a row has come to its end.
    ///
    /// # Errors
    /// With what failed, and after Ctrl-C with how to go on.
    pub fn run(&self, stop: &AtomicBool, mut done: impl FnMut(&Comparison) -> Result<()>) -> Result<()> {
        let bundle = SpaceBundle::load(&self.bundle)?;
        let codebook = Codebook::from_safetensors(&read(&bundle.codebook())?)
            .with_context(|| format!("{} is no codebook", bundle.codebook().display()))?;
        let mut comparison = Comparison { symmetric_map: 0.0, queries: 0, rows: Vec::new() };
        for network in &self.networks {
            let bench = Bench::new(self, network, &bundle, &codebook, stop)?;
            comparison.symmetric_map = 100.0 * bench.test.symmetric.map;
            comparison.queries = bench.test.task.answers.len();
            for row in &network.rows {
                comparison.rows.push(bench.row(row)?);
                done(&comparison)?;
            }
        }
        Ok(())
    }
}

impl NetworkPlan {
    fn architecture(&self) -> Result<Architecture> {
        self.name.parse().map_err(anyhow::Error::msg)
    }
}

impl RowPlan {
    /// `None` for the untrained row.
    fn loss_name(&self) -> Result<Option<LossName>> {
        if self.loss == "untrained" {
            return Ok(None);
        }
        Ok(Some(self.loss.parse().map_err(anyhow::Error::msg)?))
    }

    fn loss_config(&self) -> Result<LossConfig> {
        // The untrained row takes no step, so any loss will do.
        let mut loss = LossConfig::new(self.loss_name()?.unwrap_or(LossName::Ssp));
        loss.temperatures = self.temperatures.unwrap_or(loss.temperatures);
        loss.ours = self.ours.clone().unwrap_or(loss.ours);
        Ok(loss)
    }

    /// The folder of its runs, within the network's.
    fn folder(&self) -> String {
        let variant =
            self.variant.iter().map(|variant| format!("-{}", variant.replace([' ', '/', ','], "-")));
        format!("{}{}", self.loss, variant.collect::<String>())
    }
}

/// One network with its data.
struct Bench<'a> {
    plan: &'a Plan,
    network: &'a NetworkPlan,
    blueprint: Blueprint,
    frozen: Frozen,
    codebook: &'a Codebook,
    space: String,
    set: TrainingSet,
    val: Labelled,
    test: Labelled,
    folder: PathBuf,
    stop: &'a AtomicBool,
}

impl<'a> Bench<'a> {
    fn new(
        plan: &'a Plan,
        network: &'a NetworkPlan,
        bundle: &SpaceBundle,
        codebook: &'a Codebook,
        stop: &'a AtomicBool,
    ) -> Result<Self> {
        let architecture = network.architecture()?;
        let blueprint = Blueprint {
            network: architecture,
            head: HeadConfig { channels: network.head_channels, rank: network.rank, margin: network.margin },
            norms: Norms::Folded,
            dimension: bundle.dimension,
        };
        let frozen = Frozen::Stages(network.frozen_stages);
        let folder = plan.runs.join(format!("{}-{}px", network.name, network.size));
        let preparation = Preparation {
            bundle,
            network: architecture,
            size: network.size,
            frozen,
            teacher: &Teacher::default(),
            views: plan.views,
            augmentation: Augmentation::Views,
            seed: 1,
            embeddings: &plan.embeddings,
            cache: &folder.join("cache"),
            stop,
        };
        let stages = preparation.stages(&blueprint.pretrained(&network.weights, &Device::flex())?)?;
        let val = preparation.labelled(&stages, "validation", &plan.val)?;
        let test = preparation.labelled(&stages, "test", &plan.test)?;
        let set = preparation.training(&stages, &plan.photos)?;
        let space = bundle.space.to_string();
        Ok(Self { plan, network, blueprint, frozen, codebook, space, set, val, test, folder, stop })
    }

    fn row(&self, row: &RowPlan) -> Result<Row> {
        let rates = row.learning_rates.as_ref().unwrap_or(&self.plan.learning_rates);
        let series = Series { bench: self, row, loss: row.loss_config()? };
        let (rate, steps) = match row.loss_name()? {
            None => (0.0, 0),
            Some(_) => (series.best_rate(rates)?, self.plan.steps),
        };
        let seeds = &self.plan.seeds;
        let figures: Vec<Figures> =
            seeds.iter().map(|&seed| series.figures(rate, seed, steps)).collect::<Result<_>>()?;
        let mean = |of: fn(&Figures) -> f64| figures.iter().map(of).sum::<f64>() / figures.len() as f64;
        let map_mean = mean(|figures| figures.map);
        let squares: f64 = figures.iter().map(|figures| (figures.map - map_mean).powi(2)).sum();
        let cost = self.blueprint.cost(self.network.size as usize);
        let row = Row {
            loss: row.loss.clone(),
            variant: row.variant.clone(),
            network: self.network.name.clone(),
            input_px: self.network.size,
            parameters: cost.parameters,
            multiply_adds: cost.multiply_adds,
            map_mean: 100.0 * map_mean,
            map_std: 100.0 * (squares / (figures.len() - 1).max(1) as f64).sqrt(),
            recall_at_1: mean(|figures| figures.recall_at_1),
            retention: mean(|figures| figures.retention),
            own_map_mean: 100.0 * mean(|figures| figures.own_map),
            validation_map_mean: 100.0 * mean(|figures| figures.validation_map),
            seeds: figures.len(),
            steps,
            images: self.set.len() / self.plan.views,
            views: self.plan.views,
            learning_rate: rate,
            frozen_stages: self.network.frozen_stages,
            margin: self.network.margin,
            start: if row.closed_form { "closed form" } else { "random" }.to_owned(),
        };
        tracing::info!(
            "{} {}{}: test mAP {:.2} +- {:.2}, retention {:.3}",
            row.network,
            row.loss,
            row.variant.iter().map(|variant| format!(" ({variant})")).collect::<String>(),
            row.map_mean,
            row.map_std,
            row.retention
        );
        Ok(row)
    }

    fn judge(&self, outcome: &Outcome) -> Result<Figures> {
        let network = self.network_of(&outcome.best)?;
        let scores = self.test.task.scores(&network, self.frozen)?;
        let own = self.test.task.symmetric_scores(&network, self.frozen, &self.test.gallery)?;
        Ok(Figures {
            validation_map: outcome.best_map,
            map: scores.map,
            recall_at_1: scores.recall_at_1,
            retention: scores.map / self.test.symmetric.map,
            own_map: own.map,
            best_step: outcome.best_step,
        })
    }

    fn network_of(&self, parameters: &Parameters) -> Result<EmbeddingNetwork> {
        Ok(parameters.apply(self.blueprint.at_random(&Device::flex()))?)
    }

    fn config(&self, learning_rate: f64, seed: u64, steps: u64) -> TrainingConfig {
        TrainingConfig {
            steps,
            batch: self.plan.batch,
            accumulate: 1,
            optimizer: OptimizerName::AdamW,
            learning_rate,
            warm_up: self.plan.warm_up.min(steps / 2),
            weight_decay: self.plan.weight_decay,
            ema: 0.0,
            seed,
            arithmetic: Arithmetic::F32,
        }
    }
}

/// The runs of one row.
struct Series<'a> {
    bench: &'a Bench<'a>,
    row: &'a RowPlan,
    loss: LossConfig,
}

impl Series<'_> {
    /// The rate with the best validation mAP after a share of the steps.
    fn best_rate(&self, rates: &[f64]) -> Result<f64> {
        let plan = self.bench.plan;
        let mut best = (f64::MIN, rates[0]);
        if rates.len() > 1 {
            let steps = (plan.steps / SEARCH_SHARE).max(1);
            for &rate in rates {
                let map = self.figures(rate, plan.seeds[0], steps)?.validation_map;
                if map > best.0 {
                    best = (map, rate);
                }
            }
        }
        Ok(best.1)
    }

    /// The figures of one run, from its folder where it is done.
    fn figures(&self, rate: f64, seed: u64, steps: u64) -> Result<Figures> {
        let Self { bench, row, loss, .. } = self;
        let folder = bench.folder.join(row.folder()).join(format!("{steps}-steps-{rate}-seed-{seed}"));
        let config = bench.config(rate, seed, steps);
        let settings = serde_json::json!({
            "space": bench.space, "blueprint": bench.blueprint, "size": bench.network.size, "loss": loss,
            "training": config, "closed_form": row.closed_form, "frozen_stages": bench.network.frozen_stages,
            "rows": bench.set.len(), "views": bench.plan.views, "ridges": bench.plan.ridges,
        });
        let path = folder.join("result.json");
        if let Some(figures) = finished(&path, &settings) {
            return Ok(figures);
        }
        tracing::info!(
            "{} {}, learning rate {rate}, seed {seed}, {steps} steps",
            bench.network.name,
            row.folder()
        );
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let outcome = self.train(&config, &settings, &folder)?;
        if !outcome.complete {
            bail!("stopped; the same command goes on where it was");
        }
        let figures = bench.judge(&outcome)?;
        let result = serde_json::json!({ "settings": settings, "figures": figures });
        write_whole(&path, serde_json::to_string_pretty(&result)?.as_bytes())?;
        Ok(figures)
    }

    fn train(&self, config: &TrainingConfig, settings: &serde_json::Value, folder: &Path) -> Result<Outcome> {
        let bench = self.bench;
        let (device, set) = (Device::flex(), &bench.set);
        let bank = |count| bench.set.bank(count, config.seed);
        let losses = self.loss.terms(bench.codebook, bank, &device.clone().autodiff());
        let run = Run {
            config,
            settings,
            losses: &losses,
            set,
            validation: &bench.val.task,
            frozen: bench.frozen,
            device: &device,
            folder,
            watch: &plain,
        };
        device.seed(config.seed);
        let network = bench.blueprint.pretrained(&bench.network.weights, &device)?;
        if run.has_checkpoint() {
            match run.resume(network.clone(), bench.stop) {
                Ok(outcome) => return Ok(outcome),
                Err(error) => tracing::warn!("starting anew: {error}"),
            }
        }
        let network = if self.row.closed_form {
            let (rank, ridges) = (bench.network.rank, &bench.plan.ridges);
            initialise(&network, bench.frozen, rank, set, &bench.val.task, ridges)?.0
        } else {
            network
        };
        Ok(run.start(network, bench.stop)?)
    }
}

/// The figures of a run that came to its end under the same settings.
fn finished(path: &Path, settings: &serde_json::Value) -> Option<Figures> {
    let result: serde_json::Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (result.get("settings")? == settings)
        .then(|| serde_json::from_value(result.get("figures")?.clone()).ok())?
}

impl Comparison {
    /// The rows of the main table, or those of the ablation.
    fn rows(&self, ablation: bool) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.variant.is_some() == ablation)
    }

    /// As Markdown: the table of losses and networks, then the ablation.
    pub fn markdown(&self) -> String {
        let mut page = format!(
            "{} test queries; the gallery network on both sides has mAP {:.2}.\n\n",
            self.queries, self.symmetric_map
        );
        let head = "| network, input | loss | start | parameters, M | multiply-adds, M | mAP | recall@1 | retention | own mAP |\n\
                    |---|---|---|---|---|---|---|---|---|\n";
        page += head;
        page.extend(self.rows(false).map(Row::markdown));
        if self.rows(true).next().is_some() {
            page += "\nAblation of ours:\n\n";
            page += head;
            page.extend(self.rows(true).map(Row::markdown));
        }
        page
    }
}

impl Row {
    fn markdown(&self) -> String {
        let variant = self.variant.iter().map(|variant| format!(", {variant}")).collect::<String>();
        format!(
            "| {}, {} px | {}{variant} | {} | {:.2} | {:.0} | {:.2} ± {:.2} | {:.1} % | {:.3} | {:.2} |\n",
            self.network,
            self.input_px,
            self.loss,
            self.start,
            self.parameters as f64 / 1e6,
            self.multiply_adds as f64 / 1e6,
            self.map_mean,
            self.map_std,
            100.0 * self.recall_at_1,
            self.retention,
            self.own_map_mean
        )
    }
}
