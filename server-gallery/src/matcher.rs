//! A query's bytes in, a reply's bytes out: no socket, no clock but the stop-watch of `took_us`.
//!
//! Every call of [`Matcher::answer`] gives exactly one reply. The checks, in this order, and their error codes:
//!
//! 1. larger than [`MESSAGE_BYTES_MAX`]: `too_large`
//! 2. no header (`v` and `id`): `malformed`
//! 3. a version that is not ours: `unknown_version`
//! 4. no query: `malformed`
//! 5. a filter: `unsupported`
//! 6. an embedding of another space: `wrong_space`
//! 7. `top_k` not within 1 to [`TOP_K_MAX`]: `bad_top_k`
//! 8. the embedding: `wrong_dimension`, `not_finite`, `zero_norm`; any other norm is divided away. `pq` codes are read
//!    with the codebook; without one they are `unsupported`
//!
//! A query that passes is *accepted*. Its reply is kept for a while, so that the same device sending the same id again
//! (QoS 1 does that, and so do devices after a time-out) gets the same reply without another search.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use glimpse_protocol::{
    Codec, CodecError, DeviceId, ErrorBody, ErrorCode, ErrorReply, Header, MESSAGE_BYTES_MAX, Match, Query,
    QueryId, Reply, TOP_K_MAX, VERSION,
};
use glimpse_quantizer::Expansion;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::ReplyCache;
use crate::index::{Hit, Index, SearchOptions};
use crate::monitor::SeenMatch;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// `application/cbor`, the default.
    Cbor,
    /// `application/json`, for clients without CBOR.
    Json,
}

impl Encoding {
    /// The MQTT 5 content type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Cbor => "application/cbor",
            Self::Json => "application/json",
        }
    }

    /// From the content type where it is one of ours, else from the payload: a JSON object begins with `{`, and no
    /// CBOR map does.
    pub(crate) fn of(content_type: Option<&str>, payload: &[u8]) -> Self {
        let named = content_type.and_then(|text| {
            let essence = text.split(';').next().unwrap_or_default().trim();
            [Self::Cbor, Self::Json].into_iter().find(|one| essence.eq_ignore_ascii_case(one.content_type()))
        });
        named.unwrap_or_else(|| match payload.trim_ascii_start().first() {
            Some(b'{') => Self::Json,
            _ => Self::Cbor,
        })
    }

    /// Reads a message, and says for people why it cannot.
    pub(crate) fn read<T: DeserializeOwned>(self, payload: &[u8]) -> Result<T, String> {
        match self {
            Self::Json => serde_json::from_slice(payload).map_err(|error| error.to_string()),
            Self::Cbor => {
                let mut rest = payload;
                let message = ciborium::from_reader(&mut rest).map_err(|error| match error {
                    ciborium::de::Error::Semantic(_, reason) => reason,
                    ciborium::de::Error::Io(_) => "it ends too early".to_owned(),
                    _ => "it is not CBOR".to_owned(),
                })?;
                if rest.is_empty() { Ok(message) } else { Err(format!("{} bytes follow it", rest.len())) }
            }
        }
    }

    /// Writes a message.
    pub fn write<T: Serialize>(self, message: &T) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Cbor => ciborium::into_writer(message, &mut bytes)
                .expect("our messages are CBOR, and memory takes them"),
            Self::Json => serde_json::to_writer(&mut bytes, message)
                .expect("our messages are JSON, and memory takes them"),
        }
        bytes
    }
}

/// A query as it came from a device.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The device, from the topic.
    pub device: &'a DeviceId,
    /// The MQTT 5 content type, if there is one.
    pub content_type: Option<&'a str>,
    /// The message.
    pub payload: &'a [u8],
}

/// The one reply to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The message.
    pub payload: Vec<u8>,
    /// How it is written: as the request was.
    pub encoding: Encoding,
    /// The query, or zeros where the request did not tell.
    pub id: QueryId,
    /// What it says, for logs and counters.
    pub outcome: Outcome,
}

/// What became of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Searched.
    Answered,
    /// Answered from the cache.
    Repeated,
    /// Refused.
    Refused(ErrorCode),
}

/// How the matcher searches, and how much it remembers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatcherConfig {
    /// Compare every query with every feature.
    pub exact: bool,
    /// Candidates that are ranked exactly; `None`: as many as the index has measured that its recall takes.
    pub rerank: Option<usize>,
    /// Share of the nearest images to be found, where the index has inverted lists; `None`: what the index was made for.
    pub recall: Option<f32>,
    /// Which photos show nothing of the gallery.
    pub unknown: UnknownPhotos,
    /// Images by which each query is expanded before it is answered (alpha query expansion); 0 is none.
    pub expand: usize,
    /// Replies kept for repeats.
    pub replies_kept_max: usize,
}

/// Which photos get no match, since they show nothing of the gallery.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum UnknownPhotos {
    /// None: the nearest images are always told.
    Matched,
    /// Those whose nearest image is less similar than the index has learned that images of different things are.
    Learned,
    /// Those whose nearest image is less similar than this.
    Below(f32),
}

impl Default for MatcherConfig {
    fn default() -> Self {
        let unknown = UnknownPhotos::Matched;
        Self { exact: false, rerank: None, recall: None, unknown, expand: 0, replies_kept_max: 4096 }
    }
}

impl MatcherConfig {
    /// How to search `index` for `top_k` matches.
    pub fn search(&self, top_k: usize, index: &Index) -> SearchOptions {
        let vectors = index.vectors();
        let recall = self.recall.zip(vectors.recall());
        SearchOptions {
            exact: self.exact,
            rerank: self.rerank,
            probes: recall.map(|(wanted, measured)| measured.probes_for(wanted)),
            unknown_below: match self.unknown {
                UnknownPhotos::Matched => None,
                UnknownPhotos::Learned => vectors.unknown().map(|unknown| unknown.below),
                UnknownPhotos::Below(similarity) => Some(similarity),
            },
            expansion: (self.expand > 0).then(|| Expansion::new(self.expand)),
            ..SearchOptions::top(top_k)
        }
    }
}

/// Answers queries against one gallery. Shared between threads by reference.
pub struct Matcher {
    index: Index,
    config: MatcherConfig,
    replies: Mutex<ReplyCache>,
}

impl Matcher {
    /// A matcher with an empty cache.
    pub fn new(index: Index, config: MatcherConfig) -> Self {
        Self { index, config, replies: Mutex::new(ReplyCache::new(config.replies_kept_max)) }
    }

    /// The gallery that it searches.
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// The reply to a request.
    pub fn answer(&self, request: Request<'_>) -> Response {
        let started = Instant::now();
        let encoding = Encoding::of(request.content_type, request.payload);
        let query = match accept(&self.index, encoding, request.payload) {
            Ok(query) => query,
            Err(refusal) => return refusal.response(encoding),
        };
        let id = query.id;
        let key = (request.device.clone(), id, encoding);
        if let Some(payload) = self.replies().get(&key) {
            return Response { payload, encoding, id, outcome: Outcome::Repeated };
        }
        let options = self.config.search(query.top_k, &self.index);
        let hits = self.index.search(&query.embedding, &options, None);
        let matches = hits.into_iter().map(|hit| Match {
            image: hit.image.id.as_str().try_into().expect("the store refuses longer ids"),
            label: hit.image.label.as_str().try_into().expect("the store refuses longer labels"),
            similarity: hit.similarity,
        });
        let reply: Reply = Reply {
            v: VERSION,
            id,
            matches: matches.collect(),
            took_us: u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX),
            generation: self.index.meta().generation,
        };
        let payload = encoding.write(&reply);
        self.replies().put(key, payload.clone());
        Response { payload, encoding, id, outcome: Outcome::Answered }
    }

    /// Searches again for a query as it was sent, comparing with every image; `None` where it would be refused. It costs as much
    /// as it takes, and is not remembered.
    pub fn search_exactly(
        &self,
        content_type: Option<&str>,
        payload: &[u8],
        top_k: usize,
    ) -> Option<Vec<Hit<'_>>> {
        let query = accept(&self.index, Encoding::of(content_type, payload), payload).ok()?;
        let options = SearchOptions { exact: true, ..self.config.search(top_k, &self.index) };
        Some(self.index.search(&query.embedding, &options, None))
    }

    /// The images nearest to a unit embedding, as a query of a device would be answered.
    pub fn search_embedding(&self, embedding: &[f32], top_k: usize) -> Vec<SeenMatch> {
        let hits = self.index.search(embedding, &self.config.search(top_k, &self.index), None);
        let seen = |hit: Hit<'_>| SeenMatch {
            image: hit.image.id.clone(),
            label: hit.image.label.clone(),
            similarity: hit.similarity,
        };
        hits.into_iter().map(seen).collect()
    }

    /// The reply when there are more queries than can be answered: it costs no search and is not remembered.
    pub fn busy(request: Request<'_>) -> Response {
        let encoding = Encoding::of(request.content_type, request.payload);
        let header: Option<Header> = encoding.read(request.payload).ok();
        let id = header.and_then(|header| header.id).unwrap_or(NO_ID);
        let message = "the server has more queries than it can answer: try again in a few seconds";
        Refusal { id, code: ErrorCode::Busy, message: message.to_owned() }.response(encoding)
    }

    fn replies(&self) -> std::sync::MutexGuard<'_, ReplyCache> {
        // A panic elsewhere leaves the cache whole: it is changed in steps that each keep it consistent.
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What replies carry when the request does not tell its id.
const NO_ID: QueryId = QueryId::from_bytes([0; 16]);

/// A query that passed all checks.
struct Accepted {
    id: QueryId,
    /// Unit norm, `[D]`.
    embedding: Vec<f32>,
    top_k: usize,
}

struct Refusal {
    id: QueryId,
    code: ErrorCode,
    message: String,
}

impl Refusal {
    fn response(self, encoding: Encoding) -> Response {
        let Self { id, code, message } = self;
        let reply = ErrorReply { v: VERSION, id, error: ErrorBody::new(code, &message) };
        Response { payload: encoding.write(&reply), encoding, id, outcome: Outcome::Refused(code) }
    }
}

fn accept(index: &Index, encoding: Encoding, payload: &[u8]) -> Result<Accepted, Refusal> {
    // Read even from a message that is too large (the broker bounds it): its sender waits for this id.
    let header: Result<Header, String> = encoding.read(payload);
    let id = header.as_ref().ok().and_then(|header| header.id).unwrap_or(NO_ID);
    let refuse = |code, message: String| Refusal { id, code, message };

    if payload.len() > MESSAGE_BYTES_MAX {
        let bytes = payload.len();
        return Err(refuse(
            ErrorCode::TooLarge,
            format!("the query has {bytes} bytes, and at most {MESSAGE_BYTES_MAX} are read"),
        ));
    }
    let malformed = |reason| refuse(ErrorCode::Malformed, format!("this is no query: {reason}"));
    let header = header.map_err(malformed)?;
    if header.v != VERSION {
        let message = format!("version {} is not served here, only version {VERSION}", header.v);
        return Err(refuse(ErrorCode::UnknownVersion, message));
    }
    let query: Query = encoding.read(payload).map_err(malformed)?;
    if query.has_filter {
        return Err(refuse(
            ErrorCode::Unsupported,
            "this server offers no filters: leave `filter` out".to_owned(),
        ));
    }
    let meta = index.meta();
    if query.space != meta.space {
        let message = format!(
            "this gallery serves space {}, and the query is of space {}: install the model of that space",
            meta.space, query.space
        );
        return Err(refuse(ErrorCode::WrongSpace, message));
    }
    let top_k = usize::from(query.top_k);
    if !(1..=TOP_K_MAX).contains(&top_k) {
        return Err(refuse(ErrorCode::BadTopK, format!("top_k is {top_k}, and must be 1 to {TOP_K_MAX}")));
    }
    let mut embedding = vec![0.0; meta.dimension];
    decode(index, &query, &mut embedding).map_err(|(code, message)| refuse(code, message))?;
    normalise(&mut embedding).map_err(|()| {
        refuse(ErrorCode::ZeroNorm, "the embedding is zero: it has no direction to compare".to_owned())
    })?;
    Ok(Accepted { id, embedding, top_k })
}

fn decode(index: &Index, query: &Query, embedding: &mut [f32]) -> Result<(), (ErrorCode, String)> {
    if query.embedding.codec == Codec::Pq {
        let unsupported =
            "this gallery has no codebook to read pq codes with: send f32, f16 or i8".to_owned();
        let codebook = index.codebook().ok_or((ErrorCode::Unsupported, unsupported))?;
        let (got, expected) = (query.embedding.bytes.len(), codebook.sub_spaces());
        if got != expected {
            let message =
                format!("the embedding has {got} codes, and the codebook has {expected} sub-spaces");
            return Err((ErrorCode::WrongDimension, message));
        }
        return codebook.decode(&query.embedding.bytes, embedding).map_err(|error| {
            (ErrorCode::Malformed, format!("these are no codes of this codebook: {error}"))
        });
    }
    query.embedding.decode_into(embedding).map_err(|error| {
        let code = match error {
            CodecError::NotFinite => ErrorCode::NotFinite,
            CodecError::Dimension { .. } | CodecError::Length { .. } => ErrorCode::WrongDimension,
            _ => ErrorCode::Malformed,
        };
        (code, error.to_string())
    })
}

/// Divides by the norm, in double precision: the square of a large finite component does not fit in single precision.
fn normalise(embedding: &mut [f32]) -> Result<(), ()> {
    let norm = embedding.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if norm == 0.0 {
        return Err(());
    }
    for x in embedding {
        *x = (f64::from(*x) / norm) as f32;
    }
    Ok(())
}

#[cfg(test)]
#[path = "matcher_tests.rs"]
mod tests;
