//! What the console shows of a gallery, behind a trait: [`Source`], and its one implementation over the gallery that is served.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use glimpse_embedder::{Embedder, EmbedderOptions, SpaceBundle, decode_photo};
use glimpse_protocol::SpaceId;
use serde::Serialize;
use thiserror::Error;

use crate::catalogue;
use crate::matcher::Matcher;
use crate::monitor::{Exact, Nearest, SeenMatch};
use crate::told::told;

/// A gallery, as far as the console looks at it. Everything may block and take a while: callers are on threads for that.
pub trait Source: Exact {
    /// What there is of it now.
    fn describe(&self) -> Description;

    /// Images in the order of their ids: the first `limit` that come after the id `after` and of which id or label contain
    /// `text`, in whatever case.
    fn page(&self, after: Option<&str>, text: &str, limit: usize) -> Page;

    /// An image by its id.
    fn image(&self, id: &str) -> Option<Picture>;

    /// The images nearest to a photo, by the gallery's own network.
    ///
    /// # Errors
    /// Where there are no pixels in these bytes, or the network cannot be run.
    fn search_photo(&self, photo: &[u8], top_k: usize) -> Result<Vec<SeenMatch>, SearchError>;
}

/// What a gallery is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// Name of its space's bundle.
    pub name: String,
    /// The space.
    pub space: SpaceId,
    /// Components of an embedding.
    pub dimension: usize,
    /// Images in it.
    pub size: usize,
    /// Grows with every change.
    pub generation: u64,
    /// How it is searched, in a few words.
    pub index: String,
    /// Images that have changed since the index was made, and are compared exactly.
    pub changes: usize,
    /// Whether a new index is being made.
    pub indexing: bool,
    /// Why the newest changes cannot be seen, where they cannot.
    pub trouble: Option<String>,
}

/// One page of images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Page {
    /// The images.
    pub images: Vec<Entry>,
    /// What to come after for the next page; `None` on the last.
    pub next: Option<String>,
}

/// An image in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Its id.
    pub image: String,
    /// What it shows.
    pub label: String,
}

/// An image and where its photo is. The path stays in the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// What it shows.
    pub label: String,
    /// Where the photo was when it was ingested.
    pub path: PathBuf,
    /// BLAKE3 of the photo then.
    pub photo_hash: [u8; 32],
}

/// Why a photo cannot be searched for.
#[derive(Debug, Error)]
pub enum SearchError {
    /// The bytes are no photo.
    #[error("this is no photo that can be read: {0}; send a JPEG or a PNG")]
    Photo(String),
    /// The gallery's network cannot be loaded or run.
    #[error("the gallery's network cannot be run: {0}")]
    Network(String),
}

/// The gallery that a [`Matcher`] searches.
pub struct ServedGallery {
    matcher: Arc<Matcher>,
    bundle: SpaceBundle,
    /// Loaded by the first search for a photo: a server that nobody asks so saves its memory.
    embedder: OnceLock<Result<Embedder, String>>,
}

impl ServedGallery {
    /// The gallery of a matcher; `bundle` is that of its space.
    pub const fn new(matcher: Arc<Matcher>, bundle: SpaceBundle) -> Self {
        Self { matcher, bundle, embedder: OnceLock::new() }
    }

    fn embedder(&self) -> Result<&Embedder, SearchError> {
        let load = || {
            self.bundle.verify().map_err(|error| told(&error.into()))?;
            Embedder::load_preferred(&self.bundle.gallery_model(), &EmbedderOptions::default())
                .map_err(|error| told(&error.into()))
        };
        self.embedder.get_or_init(load).as_ref().map_err(|reason| SearchError::Network(reason.clone()))
    }
}

impl Source for ServedGallery {
    fn describe(&self) -> Description {
        let live = self.matcher.live();
        let view = live.view();
        let meta = view.meta();
        Description {
            name: self.bundle.name.clone(),
            space: meta.space,
            dimension: meta.dimension,
            size: view.len(),
            generation: meta.generation,
            index: view.base().vectors().describe(),
            changes: view.changes(),
            indexing: live.is_indexing(),
            trouble: live.trouble(),
        }
    }

    fn page(&self, after: Option<&str>, text: &str, limit: usize) -> Page {
        let view = self.matcher.live().view();
        let text = text.to_lowercase();
        let wanted = |image: &catalogue::Entry<'_>| {
            text.is_empty() || contains(image.id, &text) || contains(image.label, &text)
        };
        let mut found: Vec<Entry> = view
            .images_after(after)
            .filter(wanted)
            .take(limit + 1)
            .map(|image| Entry { image: image.id.to_owned(), label: image.label.to_owned() })
            .collect();
        let more = found.len() > limit;
        found.truncate(limit);
        let next = found.last().filter(|_| more).map(|last| last.image.clone());
        Page { images: found, next }
    }

    fn image(&self, id: &str) -> Option<Picture> {
        let view = self.matcher.live().view();
        let catalogue::Entry { label, path, photo_hash, .. } = view.image(id)?;
        Some(Picture { label: label.to_owned(), path: PathBuf::from(path), photo_hash: *photo_hash })
    }

    fn search_photo(&self, photo: &[u8], top_k: usize) -> Result<Vec<SeenMatch>, SearchError> {
        let photo = decode_photo(photo).map_err(|error| SearchError::Photo(reason(error)))?;
        let embedder = self.embedder()?;
        let embedding = embedder.embed(&photo).map_err(|error| SearchError::Network(error.to_string()))?;
        Ok(self.matcher.search_embedding(&embedding, top_k))
    }
}

fn contains(text: &str, lowercase: &str) -> bool {
    text.to_lowercase().contains(lowercase)
}

fn reason(error: impl std::error::Error) -> String {
    std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl Exact for ServedGallery {
    fn exact(&self, content_type: Option<&str>, query: &[u8], count: usize) -> Option<Nearest> {
        self.matcher.search_exactly(content_type, query, count)
    }
}
