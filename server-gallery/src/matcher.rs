//! A query's bytes in, a reply's bytes out: no socket, no clock but the stop-watch of `took_us`.
//!
//! Every request gets exactly one reply. Requests that come together are searched together ([`Matcher::answer_all`]): they
//! share passes over the codes, and see one generation of the gallery. The checks, in this order, and their error codes:
//!
//! 1. larger than [`MESSAGE_BYTES_MAX`]: `too_large`
//! 2. no header (`v` and `id`): `malformed`
//! 3. a version that is not ours: `unknown_version`
//! 4. no query: `malformed`
//! 5. a filter that is none, or too large: `malformed`
//! 6. an embedding of another space: `wrong_space`
//! 7. `top_k` not within 1 to [`TOP_K_MAX`]: `bad_top_k`
//! 8. the embedding: `wrong_dimension`, `not_finite`, `zero_norm`; any other norm is divided away. `pq` codes are read
//!    with the codebook; without one they are `unsupported`
//!
//! A query that passes is *accepted*. Its reply is kept for a while, so that the same device sending the same id again
//! (QoS 1 does that, and so do devices after a time-out) gets the same reply without another search.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use glimpse_protocol::{
    Codec, CodecError, DeviceId, ErrorBody, ErrorCode, ErrorReply, FilterOf, Header, MESSAGE_BYTES_MAX,
    Match, Query, QueryId, Reply, TOP_K_MAX, VERSION,
};
use glimpse_quantizer::Expansion;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cache::{Key, ReplyCache};
use crate::filter::{Condition, RawCondition};
use crate::index::{Hit, Index, SearchOptions};
use crate::live::Live;
use crate::monitor::{Nearest, SeenMatch};
use crate::view::{QueryOptions, View};

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
    pub fn search(&self, top_k: usize, index: &Index) -> QueryOptions {
        let vectors = index.vectors();
        let recall = self.recall.zip(vectors.recall());
        QueryOptions {
            search: SearchOptions {
                top_k,
                exact: self.exact,
                rerank: self.rerank,
                probes: recall.map(|(wanted, measured)| measured.probes_for(wanted)),
            },
            unknown_below: match self.unknown {
                UnknownPhotos::Matched => None,
                UnknownPhotos::Learned => vectors.unknown().map(|unknown| unknown.below),
                UnknownPhotos::Below(similarity) => Some(similarity),
            },
            expansion: (self.expand > 0).then(|| Expansion::new(self.expand)),
        }
    }
}

/// Filters of one batch that nobody has asked for in this generation: each is held against every image, and everybody waits for
/// that.
const NEW_CONDITIONS_MAX: usize = 2;

/// When a query with one more may come again.
const NEW_CONDITION_RETRY: Duration = Duration::from_secs(1);

/// Answers queries against one gallery. Shared between threads by reference.
pub struct Matcher {
    live: Arc<Live>,
    config: RwLock<MatcherConfig>,
    replies: Mutex<ReplyCache>,
}

impl Matcher {
    /// A matcher with an empty cache.
    pub fn new(live: Arc<Live>, config: MatcherConfig) -> Self {
        let replies = Mutex::new(ReplyCache::new(config.replies_kept_max));
        Self { live, config: RwLock::new(config), replies }
    }

    /// The gallery that it searches.
    pub const fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// How it searches from now on. The number of replies kept stays as it was.
    pub fn set_config(&self, config: MatcherConfig) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// The reply to a request.
    pub fn answer(&self, request: Request<'_>) -> Response {
        self.answer_all(&[request]).pop().expect("a reply to each request")
    }

    /// The reply to each of some requests, in their order.
    pub fn answer_all(&self, requests: &[Request<'_>]) -> Vec<Response> {
        let started = Instant::now();
        let view = self.live.view();
        let mut responses: Vec<Option<Response>> = requests.iter().map(|_| None).collect();
        let mut asked: HashMap<Key, usize> = HashMap::new();
        // Each with its place; those that can be searched together, together.
        let mut groups: BTreeMap<(usize, Option<Condition>), Vec<(usize, Accepted)>> = BTreeMap::new();
        let mut again = Vec::new();
        for (place, request) in requests.iter().enumerate() {
            let encoding = Encoding::of(request.content_type, request.payload);
            let query = match accept(&view, encoding, request.payload) {
                Ok(query) => query,
                Err(refusal) => {
                    responses[place] = Some(refusal.response(encoding));
                    continue;
                }
            };
            let id = query.id;
            let key = (request.device.clone(), id, encoding);
            if let Some(payload) = self.replies().get(&key) {
                responses[place] = Some(Response { payload, encoding, id, outcome: Outcome::Repeated });
            } else if let Some(first) = asked.get(&key) {
                again.push((place, *first));
            } else {
                asked.insert(key, place);
                groups.entry((query.top_k, query.condition.clone())).or_default().push((place, query));
            }
        }
        let config = self.config();
        let mut new_conditions = 0;
        for ((top_k, condition), group) in groups {
            if condition.as_ref().is_some_and(|condition| !view.remembers(condition)) {
                new_conditions += 1;
                if new_conditions > NEW_CONDITIONS_MAX {
                    for (place, _) in group {
                        responses[place] = Some(Self::busy(requests[place], NEW_CONDITION_RETRY));
                    }
                    continue;
                }
            }
            let queries: Vec<f32> =
                group.iter().flat_map(|(_, query)| query.embedding.iter().copied()).collect();
            let options = config.search(top_k, view.base());
            let found = view.search(&queries, &options, condition.as_ref());
            for ((place, query), hits) in group.into_iter().zip(found) {
                let request = requests[place];
                let encoding = Encoding::of(request.content_type, request.payload);
                let payload = encoding.write(&reply(query.id, hits, started, view.meta().generation));
                self.replies().put((request.device.clone(), query.id, encoding), payload.clone());
                let outcome = Outcome::Answered;
                responses[place] = Some(Response { payload, encoding, id: query.id, outcome });
            }
        }
        for (place, first) in again {
            let response = responses[first].clone();
            responses[place] = response.map(|first| Response { outcome: Outcome::Repeated, ..first });
        }
        responses
            .into_iter()
            .map(|response| response.expect("each is refused, searched or a repeat"))
            .collect()
    }

    /// Searches again for a query as it was sent, comparing with every image; `None` where it would be refused. It costs as much
    /// as it takes, and is not remembered.
    pub fn search_exactly(
        &self,
        content_type: Option<&str>,
        payload: &[u8],
        top_k: usize,
    ) -> Option<Nearest> {
        let view = self.live.view();
        let query = accept(&view, Encoding::of(content_type, payload), payload).ok()?;
        let config = MatcherConfig { exact: true, ..self.config() };
        let options = config.search(top_k, view.base());
        let found = view.search(&query.embedding, &options, query.condition.as_ref()).pop()?;
        let images = found.into_iter().map(|hit| (hit.image.id.to_owned(), hit.similarity)).collect();
        Some(Nearest { generation: view.meta().generation, images })
    }

    /// The images nearest to a unit embedding, as a query of a device would be answered.
    pub fn search_embedding(&self, embedding: &[f32], top_k: usize) -> Vec<SeenMatch> {
        let view = self.live.view();
        let found = view.search(embedding, &self.config().search(top_k, view.base()), None).pop();
        let seen = |hit: Hit<'_>| SeenMatch {
            image: hit.image.id.to_owned(),
            label: hit.image.label.to_owned(),
            similarity: hit.similarity,
        };
        found.unwrap_or_default().into_iter().map(seen).collect()
    }

    /// The reply when there are more queries than can be answered: it costs no search and is not remembered. The device is
    /// told when to ask again.
    pub fn busy(request: Request<'_>, retry_after: Duration) -> Response {
        let encoding = Encoding::of(request.content_type, request.payload);
        let header: Option<Header> = encoding.read(request.payload).ok();
        let id = header.and_then(|header| header.id).unwrap_or(NO_ID);
        let message = "the server has more queries than it can answer: try again later";
        let retry_after_ms = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX).max(1);
        let body = ErrorBody::new(ErrorCode::Busy, message).retry_after(retry_after_ms);
        let payload = encoding.write(&ErrorReply { v: VERSION, id, error: body });
        Response { payload, encoding, id, outcome: Outcome::Refused(ErrorCode::Busy) }
    }

    fn config(&self) -> MatcherConfig {
        *self.config.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn replies(&self) -> std::sync::MutexGuard<'_, ReplyCache> {
        // A panic elsewhere leaves the cache whole: it is changed in steps that each keep it consistent.
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reply(id: QueryId, hits: Vec<Hit<'_>>, started: Instant, generation: u64) -> Reply {
    let matches = hits.into_iter().map(|hit| Match {
        image: hit.image.id.try_into().expect("the store refuses longer ids"),
        label: hit.image.label.try_into().expect("the store refuses longer labels"),
        similarity: hit.similarity,
    });
    let took_us = u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX);
    Reply { v: VERSION, id, matches: matches.collect(), took_us, generation }
}

/// What replies carry when the request does not tell its id.
const NO_ID: QueryId = QueryId::from_bytes([0; 16]);

/// A query that passed all checks.
struct Accepted {
    id: QueryId,
    /// Unit norm, `[D]`.
    embedding: Vec<f32>,
    top_k: usize,
    /// Which images it may be answered with.
    condition: Option<Condition>,
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

fn accept(view: &View, encoding: Encoding, payload: &[u8]) -> Result<Accepted, Refusal> {
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
    let condition = if query.has_filter {
        let filter: FilterOf<RawCondition> = encoding.read(payload).map_err(malformed)?;
        let condition = filter.0.map(Condition::try_from).transpose();
        condition.map_err(|error| refuse(ErrorCode::Malformed, error.to_string()))?
    } else {
        None
    };
    let meta = view.meta();
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
    decode(view, &query, &mut embedding).map_err(|(code, message)| refuse(code, message))?;
    normalise(&mut embedding).map_err(|()| {
        refuse(ErrorCode::ZeroNorm, "the embedding is zero: it has no direction to compare".to_owned())
    })?;
    Ok(Accepted { id, embedding, top_k, condition })
}

fn decode(view: &View, query: &Query, embedding: &mut [f32]) -> Result<(), (ErrorCode, String)> {
    if query.embedding.codec == Codec::Pq {
        let unsupported =
            "this gallery has no codebook to read pq codes with: send f32, f16 or i8".to_owned();
        let codebook = view.codebook().ok_or((ErrorCode::Unsupported, unsupported))?;
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
