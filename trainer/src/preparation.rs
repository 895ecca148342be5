//! From photos to what a run learns from: frozen maps and teacher embeddings, computed once and kept.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Result, ensure};
use glimpse_embedder::{ModelMetadata, Preprocessing, Role, SpaceBundle};

use crate::features::{Extraction, Features};
use crate::networks::{Architecture, Backbone, EmbeddingNetwork, Frozen};
use crate::onnx;
use crate::photos::{Augmentation, PhotoList};
use crate::retrieval::{Scores, Task, score};
use crate::training::{Inputs, TrainingSet, Validation};

/// What to prepare.
pub struct Preparation<'a> {
    /// The space, with its gallery model.
    pub bundle: &'a SpaceBundle,
    /// The query network's architecture.
    pub network: Architecture,
    /// Side of its input.
    pub size: u32,
    /// What does not learn.
    pub frozen: Frozen,
    /// Training photos.
    pub photos: &'a Path,
    /// Labelled validation photos.
    pub val: &'a Path,
    /// Views of each training photo.
    pub views: usize,
    /// What the student sees where nothing is frozen.
    pub augmentation: Augmentation,
    /// Of the views.
    pub seed: u64,
    /// Gallery embeddings of the training views, where they are kept elsewhere than in `cache`.
    pub embeddings: Option<&'a Path>,
    /// Where maps and embeddings are kept.
    pub cache: &'a Path,
    /// Raised by Ctrl-C.
    pub stop: &'a AtomicBool,
}

/// What a run needs.
pub struct Prepared {
    /// To learn from.
    pub set: TrainingSet,
    /// To be judged by.
    pub validation: Validation,
    /// Gallery model on both sides of the validation.
    pub symmetric: Scores,
}

impl Preparation<'_> {
    /// Computes what is not there yet. `network` gives the frozen stages; it may have live norms, which are folded here.
    ///
    /// # Errors
    /// With what failed.
    pub fn run(&self, network: &EmbeddingNetwork) -> Result<Prepared> {
        let val = PhotoList::read(self.val)?;
        let stages = self.frozen_stages(network)?;
        let teacher = self.bundle.preprocessing;
        let gallery = self.bundle.gallery_model();

        let embeddings = self.extract("validation-embeddings", &gallery, teacher, &val, 1, false)?;
        let queries = self.inputs("validation-maps", stages.as_deref(), &val, 1, Augmentation::Views)?;
        let queries_present = queries.items().to_vec();
        let present = |number: u32| {
            queries_present.binary_search(&number).is_ok() && embeddings.items.binary_search(&number).is_ok()
        };
        let task = Task::new(val.photos(), present);
        ensure!(
            !task.queries.is_empty(),
            "{} has no query with an answer in the gallery: validation needs the columns role and object",
            self.val.display()
        );
        let validation = Validation {
            queries: queries.keep(&task.queries),
            gallery: embeddings.keep(&task.gallery).to_f32(),
            answers: task.answers,
        };
        let symmetric = score(
            &embeddings.keep(&task.queries).to_f32(),
            &validation.gallery,
            self.bundle.dimension,
            &validation.answers,
        );

        let train = PhotoList::read(self.photos)?;
        let maps = self.inputs("training-maps", stages.as_deref(), &train, self.views, self.augmentation)?;
        let targets = match self.embeddings {
            Some(out) => {
                self.extract_to(out, "training-embeddings", &gallery, teacher, &train, self.views, false)?
            }
            None => self.extract("training-embeddings", &gallery, teacher, &train, self.views, false)?,
        };
        ensure!(
            targets.shape == [self.bundle.dimension],
            "the teacher's features have shape {:?}, and the space has {} dimensions",
            targets.shape,
            self.bundle.dimension
        );
        Ok(Prepared { set: TrainingSet::new(maps, targets)?, validation, symmetric })
    }

    /// The frozen stages as ONNX (tract runs them several times faster than Burn), or `None` where nothing is frozen.
    fn frozen_stages(&self, network: &EmbeddingNetwork) -> Result<Option<PathBuf>> {
        let Frozen::Stages(stage) = self.frozen else { return Ok(None) };
        let backbone = network.backbone.clone().fold();
        let model =
            onnx::export(&backbone, "maps", |backbone: &Backbone, image| backbone.forward_to(stage, image))?;
        let path = self.cache.join(format!("{}-{stage}.onnx", self.network));
        let metadata = ModelMetadata {
            role: Role::Features,
            space: None,
            dimension: backbone.channels_after(stage),
            preprocessing: self.network.preprocessing(self.size),
        };
        onnx::write(model, &metadata, &path)?;
        Ok(Some(path))
    }

    fn inputs(
        &self,
        name: &str,
        stages: Option<&Path>,
        photos: &PhotoList,
        views: usize,
        augmentation: Augmentation,
    ) -> Result<Inputs> {
        let preprocessing = self.network.preprocessing(self.size);
        Ok(match stages {
            Some(model) => Inputs::Maps(self.extract(name, model, preprocessing, photos, views, true)?),
            None => Inputs::Photos {
                list: photos.clone(),
                preprocessing,
                items: (0..(photos.photos().len() * views) as u32).collect(),
                augmentation,
                seed: self.seed,
            },
        })
    }

    fn extract(
        &self,
        name: &str,
        model: &Path,
        preprocessing: Preprocessing,
        photos: &PhotoList,
        views: usize,
        half: bool,
    ) -> Result<Features> {
        let out = self.cache.join(format!("{name}.safetensors"));
        self.extract_to(&out, name, model, preprocessing, photos, views, half)
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of an extraction")]
    fn extract_to(
        &self,
        out: &Path,
        name: &str,
        model: &Path,
        preprocessing: Preprocessing,
        photos: &PhotoList,
        views: usize,
        half: bool,
    ) -> Result<Features> {
        let name = name.replace('-', " ");
        let extraction =
            Extraction { name: &name, model, preprocessing, photos, views, seed: self.seed, half };
        Ok(extraction.run(out, self.stop)?)
    }
}
