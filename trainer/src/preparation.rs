//! From photos to what a run learns from: frozen maps and teacher embeddings, computed once and kept.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Result, ensure};
use glimpse_embedder::{ModelMetadata, Role, SpaceBundle};

use crate::features::{Extraction, Features, Sight};
use crate::matrix::{MatrixFile, Rows};
use crate::networks::{Architecture, Backbone, EmbeddingNetwork, Frozen};
use crate::onnx;
use crate::photos::{Augmentation, PhotoList};
use crate::projection::to_unit_unless_it_is;
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
    /// Where its embeddings come from.
    pub teacher: &'a Teacher,
    /// Views of each training photo.
    pub views: usize,
    /// What the student sees where nothing is frozen.
    pub augmentation: Augmentation,
    /// Of the views.
    pub seed: u64,
    /// Gallery embeddings of the training views.
    pub embeddings: &'a Path,
    /// Where maps and the other embeddings are kept.
    pub cache: &'a Path,
    /// Raised by Ctrl-C.
    pub stop: &'a AtomicBool,
}

/// Labelled photos, ready to judge networks by.
pub struct Labelled {
    /// The queries, against the gallery model's embeddings.
    pub task: Validation,
    /// The gallery's photos as the query network sees them, for its own symmetric accuracy.
    pub gallery: Inputs,
    /// Gallery model on both sides.
    pub symmetric: Scores,
}

/// Where the teacher's embeddings come from: the bundle's gallery model, or files that a model of any size made elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Teacher {
    /// At which sizes the gallery model looks.
    pub sight: Sight,
    /// Embeddings of the training photos, instead of the gallery model.
    pub training: Option<PathBuf>,
    /// Embeddings of the validation photos.
    pub validation: Option<PathBuf>,
}

/// The frozen stages as a file.
pub struct Stages(Option<PathBuf>);

impl Preparation<'_> {
    /// Writes the frozen stages as ONNX: tract runs them several times faster than Burn. `network` may have live norms,
    /// which are folded here.
    ///
    /// # Errors
    /// With what failed.
    pub fn stages(&self, network: &EmbeddingNetwork) -> Result<Stages> {
        let Frozen::Stages(stage) = self.frozen else { return Ok(Stages(None)) };
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
        Ok(Stages(Some(path)))
    }

    /// What the student learns from; labels are not used.
    ///
    /// # Errors
    /// With what failed.
    pub fn training(&self, stages: &Stages, photos: &Path) -> Result<TrainingSet> {
        let photos = PhotoList::read(photos)?;
        let maps = self.inputs("training-maps", stages, &photos, self.views, self.augmentation)?;
        let made = self.teacher.training.as_deref();
        let teacher = self.embeddings("training embeddings", made, &photos, self.views, self.embeddings)?;
        ensure!(
            teacher.shape == [self.bundle.dimension],
            "the teacher's features have shape {:?}, and the space has {} dimensions",
            teacher.shape,
            self.bundle.dimension
        );
        Ok(TrainingSet::new(maps, teacher)?)
    }

    /// Labelled photos, as a table with the columns path, role and object. `name` is that of their files in the cache.
    ///
    /// # Errors
    /// With what failed.
    pub fn labelled(&self, stages: &Stages, name: &str, photos: &Path) -> Result<Labelled> {
        let list = PhotoList::read(photos)?;
        let out = self.cache.join(format!("{name}-embeddings.safetensors"));
        let made = self.teacher.validation.as_deref();
        let embeddings = self.embeddings(&format!("{name} embeddings"), made, &list, 1, &out)?;
        let maps = self.inputs(&format!("{name}-maps"), stages, &list, 1, Augmentation::Views)?;
        let present = |number: u32| {
            maps.items().binary_search(&number).is_ok() && embeddings.items.binary_search(&number).is_ok()
        };
        let task = Task::new(list.photos(), present);
        ensure!(
            !task.queries.is_empty(),
            "{} has no query with an answer in the gallery: it needs the columns role and object",
            photos.display()
        );
        let gallery = embeddings.keep(&task.gallery).to_f32();
        let queries = embeddings.keep(&task.queries).to_f32();
        let symmetric = score(&queries, &gallery, self.bundle.dimension, &task.answers);
        let gallery_maps = maps.clone().keep(&task.gallery);
        let task = Validation { queries: maps.keep(&task.queries), gallery, answers: task.answers };
        Ok(Labelled { task, gallery: gallery_maps, symmetric })
    }

    fn inputs(
        &self,
        name: &str,
        stages: &Stages,
        photos: &PhotoList,
        views: usize,
        augmentation: Augmentation,
    ) -> Result<Inputs> {
        let preprocessing = self.network.preprocessing(self.size);
        let Some(model) = &stages.0 else {
            return Ok(Inputs::Photos {
                list: photos.clone(),
                preprocessing,
                items: (0..(photos.photos().len() * views) as u32).collect(),
                augmentation,
                seed: self.seed,
            });
        };
        let title = name.replace('-', " ");
        let extraction = Extraction {
            name: &title,
            model,
            preprocessing,
            sight: &Sight::default(),
            photos,
            views,
            seed: self.seed,
            half: true,
        };
        Ok(Inputs::Maps(extraction.run(&self.cache.join(format!("{name}.safetensors")), self.stop)?))
    }

    /// The teacher's embeddings, `made` elsewhere or by the bundle's gallery model.
    fn embeddings(
        &self,
        title: &str,
        made: Option<&Path>,
        photos: &PhotoList,
        views: usize,
        out: &Path,
    ) -> Result<Features> {
        if let Some(path) = made {
            return self.made_elsewhere(path, photos.photos().len(), views);
        }
        let extraction = Extraction {
            name: title,
            model: &self.bundle.gallery_model(),
            preprocessing: self.bundle.preprocessing,
            sight: &self.teacher.sight,
            photos,
            views,
            seed: self.seed,
            half: false,
        };
        Ok(extraction.run(out, self.stop)?)
    }

    /// One row for each photo, view after view; made unit here.
    fn made_elsewhere(&self, path: &Path, photos: usize, views: usize) -> Result<Features> {
        let matrix = MatrixFile::open(path)?;
        let (rows, dimension) = (matrix.count(), self.bundle.dimension);
        ensure!(
            rows == photos * views,
            "{} has {rows} rows, and there are {photos} photos in {views} views: one row each is needed, in their order, \
             view after view",
            path.display()
        );
        ensure!(
            matrix.dimension() == dimension,
            "{} has {} dimensions, and the space has {dimension}: `glimpse-trainer whiten` reduces them",
            path.display(),
            matrix.dimension()
        );
        let mut values = matrix.read(0..rows)?;
        values.chunks_exact_mut(dimension).for_each(to_unit_unless_it_is);
        Ok(Features::from_f32(vec![dimension], (0..rows as u32).collect(), values))
    }
}
