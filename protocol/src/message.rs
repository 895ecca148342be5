//! The messages. Each is a map; a key is the field's name, or its number (its place in the lists below) where no
//! person reads, which is what keeps a `pq` query under 100 bytes. Readers take either, ignore unknown keys, and
//! read [`Header`] first so that even a message that cannot be read gets a reply under its id.

use core::fmt;

use heapless::{String, Vec};
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::Payload;
use crate::{
    Codec, EMBEDDING_BYTES_MAX, Embedding, IMAGE_ID_BYTES_MAX, LABEL_BYTES_MAX, ModelId, QueryId, SpaceId,
    TOP_K_MAX, VERSION,
};

/// The number and the name of each field of a message.
pub(crate) type Fields = &'static [(u8, &'static str)];

/// A field's key, from text or from a number, read as its number. `None` is an unknown key.
pub(crate) struct Key(pub(crate) Fields);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<u8>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl de::Visitor<'_> for Key {
    type Value = Option<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name or number")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|field| field.1 == name).map(|field| field.0))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(u8::try_from(number).ok().filter(|number| self.0.iter().any(|field| field.0 == *number)))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(u8::try_from(number).ok().filter(|number| self.0.iter().any(|field| field.0 == *number)))
    }
}

/// Declares how a struct is written and read as a map of its listed fields, each behind its number; `? absent` marks
/// those that may be absent. The numbers are part of the wire format: never reuse one.
macro_rules! keyed_map {
    ($type:ident $(<const $param:ident: usize>)? { $($place:literal $field:ident $(? $optional:ident)? ),+ $(,)? }) => {
        impl $(<const $param: usize>)? $type $(<$param>)? {
            const FIELDS: Fields = &[$(($place, stringify!($field))),+];
        }

        impl $(<const $param: usize>)? Serialize for $type $(<$param>)? {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let named = serializer.is_human_readable();
                let present = 0 $(+ usize::from(keyed_map!(@present self.$field $(, $optional)?)))+;
                let mut map = serializer.serialize_map(Some(present))?;
                $(if keyed_map!(@present self.$field $(, $optional)?) {
                    if named {
                        map.serialize_key(stringify!($field))?;
                    } else {
                        map.serialize_key::<u8>(&$place)?;
                    }
                    map.serialize_value(&self.$field)?;
                })+
                map.end()
            }
        }

        impl<'de $(, const $param: usize)?> Deserialize<'de> for $type $(<$param>)? {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor $(<const $param: usize>)?;
                impl<'de $(, const $param: usize)?> de::Visitor<'de> for Visitor $(<$param>)? {
                    type Value = $type $(<$param>)?;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str(concat!("a map of the fields of ", stringify!($type)))
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                        $(let mut $field = None;)+
                        while let Some(key) = map.next_key_seed(Key(Self::Value::FIELDS))? {
                            match key {
                                $(Some($place) => $field = Some(map.next_value()?),)+
                                _ => { map.next_value::<IgnoredAny>()?; }
                            }
                        }
                        Ok($type { $($field: keyed_map!(@take $field $(, $optional)?)),+ })
                    }
                }
                deserializer.deserialize_map(Visitor)
            }
        }
    };
    (@present $self:ident . $field:ident, $optional:ident) => { $self.$field.is_some() };
    (@present $self:ident . $field:ident) => { true };
    (@take $field:ident, $optional:ident) => { $field.unwrap_or_default() };
    (@take $field:ident) => { $field.ok_or_else(|| de::Error::missing_field(stringify!($field)))? };
}
#[cfg(feature = "models")]
pub(crate) use keyed_map;

/// What every message begins with, whatever else it holds and whatever its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Version of the message.
    pub v: u16,
    /// The query it belongs to.
    pub id: Option<QueryId>,
}

keyed_map!(Header { 0 v, 1 id ? absent });

/// A device asks which gallery images are nearest to an embedding.
///
/// | key | field | meaning |
/// |---|---|---|
/// | 0 | `v` | [`VERSION`] |
/// | 1 | `id` | 16 bytes |
/// | 2 | `space` | 16 bytes |
/// | 3 | `taken_at` | Unix time in ms, absent while the device's clock is not trusted |
/// | 4 | `codec` | `"f32"`, `"f16"`, `"i8"`, `"pq"`; optional where `embedding` is an array of numbers |
/// | 5 | `embedding` | bytes |
/// | 6 | `top_k` | 1 to [`TOP_K_MAX`], 10 if absent |
/// | 7 | `filter` | which images may answer, as the server defines it ([`FilterOf`]); absent: all |
/// | 8 | `uptime_ms` | in place of `taken_at` while the device's clock is not trusted: how long it had been running |
///
/// Without `taken_at` and `uptime_ms` nobody knows when the photo was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Query<const BYTES: usize = EMBEDDING_BYTES_MAX> {
    /// Version of the message; [`Query::new`] writes [`VERSION`].
    pub v: u16,
    /// The query's identity, chosen by the device.
    pub id: QueryId,
    /// The space in which the embedding lives.
    pub space: SpaceId,
    /// When the photo was taken, Unix time in milliseconds; `None` while the clock is not trusted.
    pub taken_at: Option<u64>,
    /// How long the device had been running when the photo was taken, in milliseconds, while its clock is not trusted:
    /// enough to order its photos, and to know the times between them.
    pub uptime_ms: Option<u64>,
    /// The embedding.
    pub embedding: Embedding<BYTES>,
    /// How many matches are wanted.
    pub top_k: u16,
    /// Whether the message carried a `filter`: who offers them reads it by [`FilterOf`], who does not refuses the query.
    pub has_filter: bool,
}

impl<const BYTES: usize> Query<BYTES> {
    const FIELDS: Fields = &[
        (0, "v"),
        (1, "id"),
        (2, "space"),
        (3, "taken_at"),
        (4, "codec"),
        (5, "embedding"),
        (6, "top_k"),
        (7, "filter"),
        (8, "uptime_ms"),
    ];

    /// A query of the current version, without a time.
    pub const fn new(id: QueryId, space: SpaceId, embedding: Embedding<BYTES>, top_k: u16) -> Self {
        Self { v: VERSION, id, space, taken_at: None, uptime_ms: None, embedding, top_k, has_filter: false }
    }
}

/// Matches that a query gets when it does not say how many.
const TOP_K_DEFAULT: u16 = 10;

// Written out, not by `keyed_map!`: codec and embedding are one field of the struct and two keys of the map.
impl<const BYTES: usize> Serialize for Query<BYTES> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Named<M>(M, bool);
        impl<M: SerializeMap> Named<M> {
            fn put<T: Serialize + ?Sized>(&mut self, number: u8, value: &T) -> Result<(), M::Error> {
                match Query::<0>::FIELDS.iter().find(|field| self.1 && field.0 == number) {
                    Some((_, name)) => self.0.serialize_entry(name, value),
                    None => self.0.serialize_entry(&number, value),
                }
            }
        }
        let named = serializer.is_human_readable();
        let times = usize::from(self.taken_at.is_some()) + usize::from(self.uptime_ms.is_some());
        let mut map = Named(serializer.serialize_map(Some(6 + times))?, named);
        map.put(0, &self.v)?;
        map.put(1, &self.id)?;
        map.put(2, &self.space)?;
        if let Some(taken_at) = self.taken_at {
            map.put(3, &taken_at)?;
        }
        map.put(4, &self.embedding.codec)?;
        map.put(5, &self.embedding)?;
        map.put(6, &self.top_k)?;
        if let Some(uptime_ms) = self.uptime_ms {
            map.put(8, &uptime_ms)?;
        }
        map.0.end()
    }
}

impl<'de, const BYTES: usize> Deserialize<'de> for Query<BYTES> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const BYTES: usize>;

        impl<'de, const BYTES: usize> de::Visitor<'de> for Visitor<BYTES> {
            type Value = Query<BYTES>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of the fields of Query")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut v, mut id, mut space, mut taken_at) = (None, None, None, None);
                let (mut codec, mut payload, mut top_k, mut has_filter) =
                    (None, None::<Payload<BYTES>>, None, false);
                let mut uptime_ms = None;
                while let Some(key) = map.next_key_seed(Key(Query::<BYTES>::FIELDS))? {
                    match key {
                        Some(0) => v = Some(map.next_value()?),
                        Some(1) => id = Some(map.next_value()?),
                        Some(2) => space = Some(map.next_value()?),
                        Some(3) => taken_at = map.next_value()?,
                        Some(4) => codec = Some(map.next_value()?),
                        Some(5) => payload = Some(map.next_value()?),
                        Some(6) => {
                            // More than the field holds is still a number: the server answers `bad_top_k`, not `malformed`.
                            let wanted = map.next_value::<Option<u64>>()?;
                            top_k = wanted.map(|wanted| u16::try_from(wanted).unwrap_or(u16::MAX));
                        }
                        Some(7) => {
                            map.next_value::<IgnoredAny>()?;
                            has_filter = true;
                        }
                        Some(8) => uptime_ms = map.next_value()?,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                let missing = |field| move || de::Error::missing_field(field);
                let Payload { bytes, numbers } = payload.ok_or_else(missing("embedding"))?;
                let codec = if numbers { Codec::F32 } else { codec.ok_or_else(missing("codec"))? };
                Ok(Query {
                    v: v.ok_or_else(missing("v"))?,
                    id: id.ok_or_else(missing("id"))?,
                    space: space.ok_or_else(missing("space"))?,
                    taken_at,
                    uptime_ms,
                    embedding: Embedding { codec, bytes },
                    top_k: top_k.unwrap_or(TOP_K_DEFAULT),
                    has_filter,
                })
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

/// The `filter` of a [`Query`], read as the type that a server has for it; the rest of the message is passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterOf<F>(pub Option<F>);

impl<'de, F: Deserialize<'de>> Deserialize<'de> for FilterOf<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<F>(core::marker::PhantomData<F>);

        impl<'de, F: Deserialize<'de>> de::Visitor<'de> for Visitor<F> {
            type Value = FilterOf<F>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of the fields of Query")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut filter = None;
                while let Some(key) = map.next_key_seed(Key(Query::<0>::FIELDS))? {
                    match key {
                        Some(7) => filter = map.next_value()?,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(FilterOf(filter))
            }
        }

        deserializer.deserialize_map(Visitor(core::marker::PhantomData))
    }
}

/// One gallery image that answers a query.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    /// The image's id in the gallery.
    pub image: String<IMAGE_ID_BYTES_MAX>,
    /// What the gallery says the image shows; may be empty.
    pub label: String<LABEL_BYTES_MAX>,
    /// Cosine of the query's and the image's embedding, -1 to 1; larger means nearer.
    pub similarity: f32,
}

keyed_map!(Match { 0 image, 1 label, 2 similarity });

/// The answer to a query, nearest match first.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply<const MATCHES: usize = TOP_K_MAX> {
    /// Version of the message.
    pub v: u16,
    /// The query that is answered.
    pub id: QueryId,
    /// The matches, larger similarity first; fewer than asked for where the gallery is smaller.
    pub matches: Vec<Match, MATCHES>,
    /// Time the server spent on the query, in microseconds.
    pub took_us: u32,
    /// Generation of the gallery that was searched: it grows with every change.
    pub generation: u64,
}

keyed_map!(Reply<const MATCHES: usize> { 0 v, 1 id, 2 matches, 3 took_us, 4 generation });

/// Why a query has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The bytes are no message: truncated, not CBOR or JSON, or a field is missing or of another type.
    Malformed,
    /// The message's version is not served.
    UnknownVersion,
    /// The embedding lives in another space than the gallery.
    WrongSpace,
    /// The embedding has another dimension than the space.
    WrongDimension,
    /// A component of the embedding is NaN or infinite.
    NotFinite,
    /// The embedding is zero, so no direction can be compared.
    ZeroNorm,
    /// The message is larger than the server reads.
    TooLarge,
    /// `top_k` is zero or larger than the server answers.
    BadTopK,
    /// The message asks for something that this server does not offer.
    Unsupported,
    /// The server has more queries than it can answer: try again later.
    Busy,
    /// The server cannot answer now.
    Unavailable,
    /// A code of a newer server.
    #[serde(other)]
    Other,
}

/// What went wrong: a code for programs and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people; says what to do.
    pub message: String<256>,
    /// For programs: how long to wait before asking again, in milliseconds. Comes with [`ErrorCode::Busy`].
    pub retry_after_ms: Option<u32>,
}

keyed_map!(ErrorBody { 0 code, 1 message, 2 retry_after_ms ? absent });

impl ErrorBody {
    /// Cuts `message` to what fits, at a character's edge.
    pub fn new(code: ErrorCode, message: &str) -> Self {
        Self { code, message: cut(message), retry_after_ms: None }
    }

    /// The same, with a time to wait.
    pub fn retry_after(self, retry_after_ms: u32) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..self }
    }
}

fn cut<const BYTES: usize>(text: &str) -> String<BYTES> {
    let mut short = String::new();
    // `push` fails when there is no room: what is left is cut off.
    let _ = text.chars().try_for_each(|c| short.push(c));
    short
}

/// The answer to a query that cannot be answered. Its `error` has a number of its own, so that no reader takes one
/// for a [`Reply`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    /// Version of the message.
    pub v: u16,
    /// The query, or zeros where the message did not tell.
    pub id: QueryId,
    /// What went wrong.
    pub error: ErrorBody,
}

keyed_map!(ErrorReply { 0 v, 1 id, 5 error });

/// What a device says of itself: retained, and sent by the broker as its last will with `online` false.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Whether the device is connected.
    pub online: bool,
    /// Version of its program.
    pub version: String<32>,
    /// The space of its query network.
    pub space: SpaceId,
    /// Queries waiting in its outbox.
    pub outbox: u32,
    /// Its query network, where it tells.
    pub model: Option<ModelId>,
    /// What it says of networks that it was offered; `None`: it takes none.
    pub update: Option<Update>,
}

keyed_map!(DeviceStatus { 0 online, 1 version, 2 space, 3 outbox, 4 model ? absent, 5 update ? absent });

/// What a device says of the query networks that it was offered: part of its status. Its presence says that the
/// device takes networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Update {
    /// Serial number of the last manifest that it took up; 0: none yet.
    pub serial: u64,
    /// What became of it.
    pub state: UpdateState,
    /// How much of the network it has, 0 to 100.
    pub percent: u8,
    /// Why it failed, for people.
    pub reason: String<160>,
}

keyed_map!(Update { 0 serial, 1 state, 2 percent, 3 reason });

impl Update {
    /// A failure; `reason` is cut to what fits, at a character's edge.
    pub fn failed(serial: u64, reason: &str) -> Self {
        Self { serial, state: UpdateState::Failed, percent: 0, reason: cut(reason) }
    }
}

/// What a device does with a network that it was offered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// Nothing: it runs the network that its status names.
    #[default]
    Settled,
    /// It fetches the network's chunks.
    Receiving,
    /// It runs the network, and goes back to the one before where that does not work.
    Trial,
    /// It does not take the network, or went back.
    Failed,
    /// A state of a newer device.
    #[serde(other)]
    Other,
}

impl UpdateState {
    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Receiving => "receiving",
            Self::Trial => "trial",
            Self::Failed => "failed",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for UpdateState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a server says of its gallery: retained, and its last will with `online` false.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GalleryStatus {
    /// Whether the server is connected.
    pub online: bool,
    /// The space that it serves.
    pub space: SpaceId,
    /// Images in the gallery.
    pub size: u64,
    /// Generation of the gallery.
    pub generation: u64,
}

keyed_map!(GalleryStatus { 0 online, 1 space, 2 size, 3 generation });

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec as StdVec;

    fn query(codec: Codec) -> Query {
        let mut query = Query::new(
            QueryId::from_bytes([3; 16]),
            SpaceId::from_bytes([9; 16]),
            Embedding::encode(codec, &[0.25, -0.5, 0.75, 1.0]).unwrap(),
            5,
        );
        query.taken_at = Some(1_795_000_000_000);
        query
    }

    fn cbor<T: Serialize>(message: &T) -> StdVec<u8> {
        let mut bytes = StdVec::new();
        ciborium::into_writer(message, &mut bytes).unwrap();
        bytes
    }

    fn check_both_ways<T: Serialize + de::DeserializeOwned + PartialEq + fmt::Debug>(message: &T) {
        assert_eq!(&ciborium::from_reader::<T, _>(cbor(message).as_slice()).unwrap(), message);
        assert_eq!(&serde_json::from_str::<T>(&serde_json::to_string(message).unwrap()).unwrap(), message);
    }

    #[test]
    fn messages_survive_cbor_and_json() {
        for codec in [Codec::F32, Codec::F16, Codec::I8] {
            check_both_ways(&query(codec));
            check_both_ways(&Query { taken_at: None, uptime_ms: Some(86_400_000), ..query(codec) });
        }
        let id = QueryId::from_bytes([3; 16]);
        let found = Match {
            image: "a/b.jpg".try_into().unwrap(),
            label: "apple".try_into().unwrap(),
            similarity: 0.5,
        };
        let matches = core::iter::repeat_n(found, 3).collect();
        check_both_ways(&Reply::<10> { v: 1, id, matches, took_us: 12, generation: 7 });
        check_both_ways(&ErrorReply {
            v: 1,
            id,
            error: ErrorBody::new(ErrorCode::WrongSpace, "this is space 0909"),
        });
        let space = SpaceId::from_bytes([9; 16]);
        let status = DeviceStatus {
            online: true,
            version: "0.1.0".try_into().unwrap(),
            space,
            outbox: 3,
            model: None,
            update: None,
        };
        check_both_ways(&status);
        let (model, update) = (Some(ModelId::from_bytes([8; 32])), Some(Update::failed(7, "no room")));
        check_both_ways(&DeviceStatus { model, update, ..status });
        check_both_ways(&GalleryStatus { online: false, space, size: 350, generation: 7 });
    }

    #[test]
    fn a_pq_query_of_32_codes_fits_in_100_bytes() {
        let mut query = query(Codec::F32);
        query.embedding = Embedding::from_codes(&[0xff; 32]).unwrap();
        assert_eq!(cbor(&query).len(), 90);
    }

    /// The bars of the design, for the embeddings of the demo and for longer ones.
    #[test]
    fn a_query_takes_few_bytes_with_every_codec() {
        let components: StdVec<f32> = (0..1024).map(|place| ((place % 7) as f32 - 3.0) / 64.0).collect();
        for (dimension, codec, bytes_max) in [
            (1024, Codec::I8, 1200),
            (512, Codec::I8, 600),
            (1024, Codec::F16, 2200),
            (512, Codec::F32, 2200),
        ] {
            let mut query = query(Codec::F32);
            query.embedding = Embedding::encode(codec, &components[..dimension]).unwrap();
            query.top_k = TOP_K_MAX as u16;
            let bytes = cbor(&query).len();
            assert!(bytes <= bytes_max, "{codec} of {dimension}: {bytes}");
        }
        // A device without a clock needs no more, in its first fifty days.
        let mut query = query(Codec::F32);
        query.embedding = Embedding::from_codes(&[0xff; 32]).unwrap();
        (query.taken_at, query.uptime_ms, query.top_k) = (None, Some(u64::from(u32::MAX)), TOP_K_MAX as u16);
        assert!(cbor(&query).len() <= 100);
    }

    #[test]
    fn json_from_any_client_reads_as_f32_numbers() {
        let text = r#"{"v":1,"id":"03030303030303030303030303030303","space":"09090909090909090909090909090909",
                       "embedding":[0.25,-0.5],"comment":{"unknown":[1,2]}}"#;
        let query: Query = serde_json::from_str(text).unwrap();
        let mut components = [0.0; 2];
        query.embedding.decode_into(&mut components).unwrap();
        assert_eq!((components, query.top_k, query.taken_at), ([0.25, -0.5], 10, None));
    }

    #[test]
    fn more_matches_than_the_field_holds_read_as_its_most() {
        for (wanted, read) in
            [("100", Some(100)), ("65536", Some(u16::MAX)), ("null", Some(10)), ("-1", None)]
        {
            let mut value = serde_json::to_value(query(Codec::I8)).unwrap();
            value["top_k"] = serde_json::from_str(wanted).unwrap();
            let by_json = serde_json::from_value::<Query>(value.clone()).ok();
            let by_cbor = ciborium::from_reader::<Query, _>(cbor(&value).as_slice()).ok();
            assert_eq!(by_json.map(|query| query.top_k), read, "{wanted}");
            assert_eq!(by_cbor.map(|query| query.top_k), read, "{wanted}");
        }
    }

    #[test]
    fn cbor_with_names_and_hexadecimal_text_reads_too() {
        let by_name: serde_json::Value = serde_json::to_value(query(Codec::I8)).unwrap();
        assert_eq!(ciborium::from_reader::<Query, _>(cbor(&by_name).as_slice()).unwrap(), query(Codec::I8));
    }

    #[test]
    fn the_header_reads_from_a_message_of_another_version() {
        let text = r#"{"embedding":{"new":"shape"},"v":2,"id":"03030303030303030303030303030303"}"#;
        let header: Header = serde_json::from_str(text).unwrap();
        assert_eq!(header, Header { v: 2, id: Some(QueryId::from_bytes([3; 16])) });
        assert!(serde_json::from_str::<Query>(text).is_err());
    }

    #[test]
    fn an_error_is_no_reply_and_a_reply_no_error() {
        let id = QueryId::from_bytes([3; 16]);
        let error =
            cbor(&ErrorReply { v: 1, id, error: ErrorBody::new(ErrorCode::Busy, "try again in 2 s") });
        assert!(ciborium::from_reader::<Reply, _>(error.as_slice()).is_err());
        let reply = cbor(&Reply::<1> { v: 1, id, matches: Vec::new(), took_us: 1, generation: 1 });
        assert!(ciborium::from_reader::<ErrorReply, _>(reply.as_slice()).is_err());
    }

    #[test]
    fn a_code_of_a_newer_server_is_other() {
        assert_eq!(serde_json::from_str::<ErrorCode>("\"moon_phase\"").unwrap(), ErrorCode::Other);
        assert_eq!(serde_json::to_string(&ErrorCode::BadTopK).unwrap(), "\"bad_top_k\"");
    }

    #[test]
    fn a_filter_is_read_as_the_servers_type_and_the_rest_is_passed_over() {
        let mut value = serde_json::to_value(query(Codec::I8)).unwrap();
        let filter = |value: &serde_json::Value| {
            let by_json: FilterOf<std::string::String> = serde_json::from_value(value.clone()).unwrap();
            let by_cbor: FilterOf<std::string::String> =
                ciborium::from_reader(cbor(value).as_slice()).unwrap();
            assert_eq!(by_json, by_cbor);
            by_json.0
        };
        assert_eq!(filter(&value), None);
        value["filter"] = "red".into();
        assert_eq!(filter(&value).as_deref(), Some("red"));
        assert!(serde_json::from_value::<Query>(value.clone()).unwrap().has_filter);
        assert!(serde_json::from_value::<FilterOf<u32>>(value).is_err());
        let by_number = ciborium::from_reader::<FilterOf<bool>, _>(&b"\xa2\x00\x01\x07\xf5"[..]);
        assert_eq!(by_number.unwrap(), FilterOf(Some(true)));
    }

    #[test]
    fn a_time_to_wait_comes_with_the_error_where_there_is_one() {
        let body = ErrorBody::new(ErrorCode::Busy, "later");
        assert_eq!(cbor(&body).len() + 5, cbor(&body.clone().retry_after(2000)).len() + 1);
        check_both_ways(&body);
        check_both_ways(&body.retry_after(2000));
    }

    #[test]
    fn error_messages_are_cut_at_a_character() {
        let body = ErrorBody::new(ErrorCode::Malformed, &"\u{e9}".repeat(300));
        assert_eq!(body.message.len(), 256);
        assert_eq!(Update::failed(1, &"\u{e9}".repeat(100)).reason.len(), 160);
    }

    #[test]
    fn every_truncation_of_a_query_is_refused() {
        let whole = cbor(&query(Codec::F16));
        for length in 0..whole.len() {
            assert!(
                ciborium::from_reader::<Query, _>(&whole[..length]).is_err(),
                "{length} of {}",
                whole.len()
            );
        }
    }

    /// Golden bytes of version 1. A change here breaks every device in the field: add a version instead.
    #[test]
    fn version_1_on_the_wire_stays_as_it_is() {
        let golden = "a70001015003030303030303030303030303030303025009090909090909090909090909090909031b\
                      000001a1ee565e000462693805480402013c20c05f7f0605";
        let golden: std::string::String = golden.split_whitespace().collect();
        let bytes = cbor(&query(Codec::I8));
        let hex: std::string::String = bytes.iter().map(|byte| std::format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = ciborium::from_reader::<Query, _>(bytes.as_slice());
            let _ = ciborium::from_reader::<Reply, _>(bytes.as_slice());
            let _ = serde_json::from_slice::<Query>(&bytes);
        }

        #[test]
        fn a_damaged_query_never_panics(place in 0..90_usize, value in any::<u8>()) {
            let mut bytes = cbor(&query(Codec::F32));
            let place = place % bytes.len();
            bytes[place] = value;
            let _ = ciborium::from_reader::<Query, _>(bytes.as_slice());
        }
    }
}
