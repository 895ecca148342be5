//! The query network, and its embeddings as they go into a query.

use std::fs;
use std::path::{Path, PathBuf};

use glimpse_embedder::{
    EmbedError, EmbedderOptions, Frame, ModelError, PlanCache, Preprocessing, RgbImage, SelfTestError,
    SpaceBundle, SpaceError, Threads, read_metadata,
};
use glimpse_protocol::{Codec, CodecError, Embedding, ModelId, SpaceId};
use glimpse_quantizer::Codebook;
use thiserror::Error;

use crate::ports::{Embedder, Error, ErrorKind};

/// The largest codebook file that is read: 256 centroids of 8192 dimensions and a rotation of as many.
const CODEBOOK_BYTES_MAX: u64 = 320 << 20;

/// Where the query network and the codebook are, and how the network is run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelFiles {
    /// A space bundle, for what is not named below.
    pub bundle: Option<PathBuf>,
    /// The query network.
    pub model: Option<PathBuf>,
    /// The quantizer's codebook.
    pub codebook: Option<PathBuf>,
    /// Threads that run the network together.
    pub threads: Threads,
}

/// Why there is no embedding, or no way to write one.
#[derive(Debug, Error)]
pub enum QueryModelError {
    /// Neither a model nor a bundle was named.
    #[error("no query network: name one with --model FILE or --bundle DIR")]
    NoModel,
    /// The model cannot be used.
    #[error("cannot use the model")]
    Model(#[from] ModelError),
    /// The bundle cannot be used.
    #[error("cannot use the space bundle")]
    Bundle(#[from] SpaceError),
    /// The model cannot be read.
    #[error("cannot read the model {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The model lives in another space than the bundle.
    #[error(
        "{model} lives in the space {found} and the bundle is the space {expected}: take the bundle's own model"
    )]
    OtherSpace {
        /// The model.
        model: PathBuf,
        /// Its space.
        found: SpaceId,
        /// The bundle's space.
        expected: SpaceId,
    },
    /// `pq` without a codebook.
    #[error("the codec pq needs the quantizer's codebook: name it with --codebook FILE or --bundle DIR")]
    NoCodebook,
    /// The codebook cannot be read.
    #[error("cannot read the codebook {path}")]
    ReadCodebook {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is no codebook, or not this model's.
    #[error("{path} is no codebook for this model: {reason}")]
    Codebook {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The embedding of one photo cannot be made.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The embedding cannot be written in this codec.
    #[error("cannot write the embedding as {codec}: {reason}")]
    Encode {
        /// The codec.
        codec: Codec,
        /// Why.
        reason: String,
    },
}

impl Error for QueryModelError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Embed(_) => ErrorKind::Input,
            _ => ErrorKind::Configuration,
        }
    }
}

impl ModelFiles {
    /// The query network's file, and the space that it must be of where a bundle says so.
    ///
    /// # Errors
    /// Where none is named, or the bundle cannot be used.
    pub fn network(&self) -> Result<(PathBuf, Option<SpaceId>), QueryModelError> {
        let bundle = self.bundle.as_deref().map(SpaceBundle::load).transpose()?;
        let path = match (&self.model, &bundle) {
            (Some(model), _) => model.clone(),
            (None, Some(bundle)) => bundle.query_model(),
            (None, None) => return Err(QueryModelError::NoModel),
        };
        Ok((path, bundle.map(|bundle| bundle.space)))
    }

    /// What the query network is, without loading it.
    ///
    /// # Errors
    /// As [`QueryModel::load`], as far as the file tells.
    pub fn describe(&self) -> Result<Described, QueryModelError> {
        let (path, expected) = self.network()?;
        let metadata = read_metadata(&path)?;
        // A network without a space is refused when it is loaded.
        let space = metadata.space.or(expected).unwrap_or(SpaceId::from_bytes([0; 16]));
        check_space(&path, space, expected)?;
        let id = model_id(&path);
        let id = id.map_err(|source| QueryModelError::Read { path: path.clone(), source })?;
        Ok(Described { id, space, dimension: metadata.dimension })
    }
}

fn check_space(path: &Path, found: SpaceId, expected: Option<SpaceId>) -> Result<(), QueryModelError> {
    match expected {
        Some(expected) if expected != found => {
            Err(QueryModelError::OtherSpace { model: path.to_owned(), found, expected })
        }
        _ => Ok(()),
    }
}

/// What a query network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// Its file.
    pub id: ModelId,
    /// The space of its embeddings.
    pub space: SpaceId,
    /// Their dimension.
    pub dimension: usize,
}

/// The query network in tract.
pub struct QueryModel {
    embedder: glimpse_embedder::Embedder,
    id: ModelId,
}

/// Loads a network as it is run on a device, from its plan where that was kept.
///
/// # Errors
/// One that cannot be used.
pub fn load(path: &Path, threads: Threads) -> Result<glimpse_embedder::Embedder, ModelError> {
    let options = EmbedderOptions { threads, ..EmbedderOptions::default() };
    match PlanCache::of_environment("glimpse-edge") {
        Some(cache) => glimpse_embedder::Embedder::load_cached(path, &options, &cache),
        None => glimpse_embedder::Embedder::load_with(path, &options),
    }
}

impl QueryModel {
    /// Loads the network that `files` name.
    ///
    /// # Errors
    /// No model named, an unusable one, or one of another space than the bundle named beside it.
    pub fn load(files: &ModelFiles) -> Result<Self, QueryModelError> {
        let (path, space) = files.network()?;
        let model = Self::load_file(&path, files.threads)?;
        check_space(&path, model.embedder.space(), space)?;
        Ok(model)
    }

    /// Loads this network.
    ///
    /// # Errors
    /// One that cannot be used.
    pub fn load_file(path: &Path, threads: Threads) -> Result<Self, QueryModelError> {
        let embedder = load(path, threads)?;
        let id = model_id(path);
        let id = id.map_err(|source| QueryModelError::Read { path: path.to_owned(), source })?;
        Ok(Self { embedder, id })
    }

    /// Which network it is.
    pub const fn id(&self) -> ModelId {
        self.id
    }

    /// How it wants photos.
    pub const fn preprocessing(&self) -> Preprocessing {
        self.embedder.metadata().preprocessing
    }

    /// Compares its embeddings of the test photos with what they should be, `[photos, dimension]`.
    ///
    /// # Errors
    /// [`SelfTestError`].
    pub fn self_test(&self, expected: &[f32]) -> Result<(), SelfTestError> {
        self.embedder.self_test(expected)
    }

    /// The unit embedding of a photo, `[dimension]`.
    ///
    /// # Errors
    /// [`QueryModelError::Embed`].
    pub fn embedding(&self, photo: &RgbImage) -> Result<Vec<f32>, QueryModelError> {
        Ok(self.embedder.embed(photo)?)
    }

    /// The unit embedding of a camera's frame, `[dimension]`.
    ///
    /// # Errors
    /// [`QueryModelError::Embed`].
    pub fn embedding_of(&self, frame: &Frame<'_>) -> Result<Vec<f32>, QueryModelError> {
        Ok(self.embedder.embed_frame(frame)?)
    }
}

impl Embedder for QueryModel {
    type Photo = RgbImage;
    type Error = QueryModelError;

    fn space(&self) -> SpaceId {
        self.embedder.space()
    }

    fn dimension(&self) -> usize {
        self.embedder.dimension()
    }

    fn embed(&mut self, photo: &RgbImage, embedding: &mut [f32]) -> Result<(), QueryModelError> {
        let made = self.embedding(photo)?;
        let wrong = || QueryModelError::Encode {
            codec: Codec::F32,
            reason: format!("{} dimensions asked for, and the model gives {}", embedding.len(), made.len()),
        };
        if embedding.len() != made.len() {
            return Err(wrong());
        }
        embedding.copy_from_slice(&made);
        Ok(())
    }
}

/// Writes embeddings in one codec.
pub struct Encoder {
    codec: Codec,
    codebook: Option<Codebook>,
}

impl Encoder {
    /// An encoder for embeddings of `dimension`; reads the codebook that `files` name if the codec needs it.
    ///
    /// # Errors
    /// `pq` without a codebook, and a codebook that cannot be used.
    pub fn new(codec: Codec, files: &ModelFiles, dimension: usize) -> Result<Self, QueryModelError> {
        if codec != Codec::Pq {
            return Ok(Self { codec, codebook: None });
        }
        let path = match (&files.codebook, &files.bundle) {
            (Some(codebook), _) => codebook.clone(),
            (None, Some(bundle)) => SpaceBundle::load(bundle)?.codebook(),
            (None, None) => return Err(QueryModelError::NoCodebook),
        };
        let codebook = read_codebook(&path)?;
        if codebook.dimension() != dimension {
            let reason = format!("it has {} dimensions and the model {dimension}", codebook.dimension());
            return Err(QueryModelError::Codebook { path, reason });
        }
        Ok(Self { codec, codebook: Some(codebook) })
    }

    /// The codec.
    pub const fn codec(&self) -> Codec {
        self.codec
    }

    /// An embedding, `[dimension]`, as the bytes of a query.
    ///
    /// # Errors
    /// [`QueryModelError::Encode`].
    pub fn encode(&self, embedding: &[f32]) -> Result<Embedding, QueryModelError> {
        let failed = |reason: String| QueryModelError::Encode { codec: self.codec, reason };
        let Some(codebook) = &self.codebook else {
            return Embedding::encode(self.codec, embedding)
                .map_err(|error: CodecError| failed(error.to_string()));
        };
        let mut code = vec![0; codebook.sub_spaces()];
        codebook.encode(embedding, &mut code).map_err(|error| failed(error.to_string()))?;
        Embedding::from_codes(&code).map_err(|error| failed(error.to_string()))
    }
}

/// The BLAKE3 hash of a network's file.
///
/// # Errors
/// A file that cannot be read.
pub fn model_id(path: &Path) -> std::io::Result<ModelId> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path)?)?;
    Ok(ModelId::from_bytes(*hasher.finalize().as_bytes()))
}

fn read_codebook(path: &Path) -> Result<Codebook, QueryModelError> {
    let failed = |source| QueryModelError::ReadCodebook { path: path.to_owned(), source };
    let wrong = |reason| QueryModelError::Codebook { path: path.to_owned(), reason };
    let bytes = fs::metadata(path).map_err(failed)?.len();
    if bytes > CODEBOOK_BYTES_MAX {
        return Err(wrong(format!("it has {bytes} bytes")));
    }
    Codebook::from_safetensors(&fs::read(path).map_err(failed)?).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sub-spaces of two centroids: -1 and 1.
    fn codebook_file(dir: &Path) -> PathBuf {
        let path = dir.join("codebook.safetensors");
        let codebook = Codebook::new(2, 2, 2, vec![-1.0, 1.0, -1.0, 1.0], None).unwrap();
        fs::write(&path, codebook.to_safetensors().unwrap()).unwrap();
        path
    }

    #[test]
    fn every_codec_writes_what_the_server_reads() {
        let dir = tempfile::tempdir().unwrap();
        let files = ModelFiles { codebook: Some(codebook_file(dir.path())), ..ModelFiles::default() };
        for codec in Codec::ALL {
            let embedding = Encoder::new(codec, &files, 2).unwrap().encode(&[0.6, -0.8]).unwrap();
            assert_eq!(embedding.codec, codec);
            if codec == Codec::Pq {
                assert_eq!(embedding.bytes, [1, 0]);
            } else {
                let mut back = [0.0; 2];
                embedding.decode_into(&mut back).unwrap();
                assert!((back[0] - 0.6).abs() < 0.01 && (back[1] + 0.8).abs() < 0.01, "{codec}: {back:?}");
            }
        }
    }

    fn check_refused(files: &ModelFiles, dimension: usize, expected: &str) {
        let error = Encoder::new(Codec::Pq, files, dimension).err().expect("refused");
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn pq_without_a_fitting_codebook_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = codebook_file(dir.path());
        let named = |path: &Path| ModelFiles { codebook: Some(path.to_owned()), ..ModelFiles::default() };
        check_refused(&ModelFiles::default(), 2, "--codebook FILE");
        check_refused(&named(&path), 4, "2 dimensions and the model 4");
        check_refused(&named(Path::new("/no/such/file")), 2, "/no/such/file");
        fs::write(&path, "no codebook").unwrap();
        check_refused(&named(&path), 2, "is no codebook for this model");
    }

    #[test]
    fn a_missing_or_foreign_model_is_refused_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.onnx");
        fs::write(&file, "no model").unwrap();
        for path in [file, "/no/such/model.onnx".into()] {
            let files = ModelFiles { model: Some(path.clone()), ..ModelFiles::default() };
            let error = QueryModel::load(&files).err().expect("refused");
            let chain = format!("{:#}", anyhow::Error::from(error));
            assert!(chain.contains(path.to_str().unwrap()), "{chain}");
        }
        let error = QueryModel::load(&ModelFiles::default()).err().expect("refused");
        assert!(error.to_string().contains("--model FILE"));
    }
}
