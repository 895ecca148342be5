use glimpse_protocol::{Embedding, SpaceId};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{SPACE, codebook, random_units, view};

const D: usize = 16;

fn matcher(with_codebook: bool) -> Matcher {
    let features = random_units(500, D, 1);
    let codebook = with_codebook.then(|| codebook(D, 4, 16, &features));
    Matcher::new(Live::fixed(view(D, &features, codebook)), MatcherConfig::default())
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

fn ask(matcher: &Matcher, content_type: Option<&str>, payload: &[u8]) -> Response {
    matcher.answer(Request { device: &device("cam-1"), content_type, payload })
}

/// A good query in JSON, which the cases below spoil.
fn good(id: u8) -> Value {
    let components: Vec<f32> = random_units(500, D, 1)[3 * D..4 * D].to_vec();
    json!({"v": 1, "id": format!("{id:032x}"), "space": SPACE.to_string(), "embedding": components, "top_k": 3})
}

fn query(id: u8, codec: Codec) -> Query {
    let components = &random_units(500, D, 1)[3 * D..4 * D];
    Query::new(QueryId::from_bytes([id; 16]), SPACE, Embedding::encode(codec, components).unwrap(), 3)
}

#[test]
fn every_defect_gets_its_code_and_keeps_its_id() {
    type Spoil = Box<dyn FnOnce(&mut Value)>;
    let matcher = matcher(true);
    let set = |field: &'static str, value: Value| move |query: &mut Value| query[field] = value;
    let cases: Vec<(&str, ErrorCode, Spoil)> = vec![
        ("65536", ErrorCode::TooLarge, Box::new(set("note", json!("x".repeat(70_000))))),
        (
            "version 2",
            ErrorCode::UnknownVersion,
            Box::new(|q| *q = json!({"v": 2, "id": q["id"], "new": "shape"})),
        ),
        (
            "embedding",
            ErrorCode::Malformed,
            Box::new(|q| drop(q.as_object_mut().unwrap().remove("embedding"))),
        ),
        ("this is no query", ErrorCode::Malformed, Box::new(set("top_k", json!("ten")))),
        ("this is no query", ErrorCode::Malformed, Box::new(set("top_k", json!(-1)))),
        ("this is no query", ErrorCode::Malformed, Box::new(set("space", json!("abc")))),
        ("no query", ErrorCode::Malformed, Box::new(set("filter", json!("pear")))),
        ("no value for `room`", ErrorCode::Malformed, Box::new(set("filter", json!({"room": []})))),
        ("serves space 0909", ErrorCode::WrongSpace, Box::new(set("space", json!("07".repeat(16))))),
        ("top_k is 0", ErrorCode::BadTopK, Box::new(set("top_k", json!(0)))),
        ("top_k is 101", ErrorCode::BadTopK, Box::new(set("top_k", json!(101)))),
        ("15 dimensions", ErrorCode::WrongDimension, Box::new(set("embedding", json!(vec![0.5; 15])))),
        ("0 dimensions", ErrorCode::WrongDimension, Box::new(set("embedding", json!([])))),
        ("not finite", ErrorCode::NotFinite, Box::new(set("embedding", json!(vec![1e39; D])))),
        ("zero", ErrorCode::ZeroNorm, Box::new(set("embedding", json!(vec![0.0; D])))),
        (
            "3 codes",
            ErrorCode::WrongDimension,
            Box::new(|q| {
                q["codec"] = json!("pq");
                q["embedding"] = json!("010203");
            }),
        ),
        (
            "no codes",
            ErrorCode::Malformed,
            Box::new(|q| {
                q["codec"] = json!("pq");
                q["embedding"] = json!("01020310");
            }),
        ),
        (
            "whole embedding",
            ErrorCode::WrongDimension,
            Box::new(|q| {
                q["codec"] = json!("f16");
                q["embedding"] = json!("010203");
            }),
        ),
        // What comes first in the module's list wins.
        (
            "no query",
            ErrorCode::Malformed,
            Box::new(|q| {
                q["filter"] = json!([]);
                q["space"] = json!("07".repeat(16));
            }),
        ),
        (
            "serves",
            ErrorCode::WrongSpace,
            Box::new(|q| {
                q["space"] = json!("07".repeat(16));
                q["top_k"] = json!(0);
            }),
        ),
        (
            "top_k",
            ErrorCode::BadTopK,
            Box::new(|q| {
                q["top_k"] = json!(0);
                q["embedding"] = json!([]);
            }),
        ),
    ];
    for (number, (named, code, spoil)) in cases.into_iter().enumerate() {
        let mut message = good(number as u8 + 1);
        spoil(&mut message);
        let bytes = serde_json::to_vec(&message).unwrap();
        let response = ask(&matcher, Some("application/json"), &bytes);
        let reply: ErrorReply = serde_json::from_slice(&response.payload).expect("an error in JSON");
        assert_eq!(
            (reply.error.code, response.outcome),
            (code, Outcome::Refused(code)),
            "{named}: {reply:?}"
        );
        assert_eq!(reply.id.to_string(), format!("{:032x}", number + 1), "{named}");
        assert!(reply.error.message.contains(named), "{named}: {}", reply.error.message);
    }
}

#[test]
fn bytes_that_are_no_message_are_malformed_under_the_zero_id() {
    let matcher = matcher(false);
    let mut trailing = Encoding::Cbor.write(&query(1, Codec::I8));
    trailing.push(0);
    let cases: [(Option<&str>, &[u8]); 6] = [
        (None, b""),
        (None, b"\xff\xff\xff"),
        (None, b"{\"v\":1,"),
        (Some("application/json"), b"\xa2\x00\x01"),
        (Some("application/cbor"), b"{}"),
        (None, &trailing),
    ];
    for (content_type, payload) in cases {
        let response = ask(&matcher, content_type, payload);
        assert_eq!(response.outcome, Outcome::Refused(ErrorCode::Malformed), "{payload:?}");
        assert_eq!(response.id, NO_ID);
    }
}

#[test]
fn a_good_query_finds_its_image_in_every_codec_and_encoding() {
    let matcher = matcher(true);
    let mut id = 0;
    for encoding in [Encoding::Cbor, Encoding::Json] {
        for codec in Codec::ALL {
            id += 1;
            let mut message = query(id, if codec == Codec::Pq { Codec::F32 } else { codec });
            if codec == Codec::Pq {
                let mut code = [0; 4];
                let components = &random_units(500, D, 1)[3 * D..4 * D];
                matcher.live().view().codebook().unwrap().encode(components, &mut code).unwrap();
                message.embedding = Embedding::from_codes(&code).unwrap();
            }
            for content_type in [None, Some(encoding.content_type())] {
                let response = ask(&matcher, content_type, &encoding.write(&message));
                assert_eq!(response.encoding, encoding);
                let reply: Reply = encoding.read(&response.payload).unwrap();
                assert_eq!((reply.v, reply.id, reply.generation), (1, message.id, 3));
                assert_eq!(reply.matches.len(), 3);
                assert!(reply.matches.windows(2).all(|pair| pair[0].similarity >= pair[1].similarity));
                if codec != Codec::Pq {
                    assert_eq!(reply.matches[0].image, "000003");
                    assert_eq!(reply.matches[0].label, "label 3");
                    // i8 rounds 16 components by at most 1/254 each.
                    assert!((reply.matches[0].similarity - 1.0).abs() < 1e-3, "{codec}");
                }
            }
        }
    }
}

#[test]
fn the_content_type_decides_before_the_first_byte() {
    for (content_type, payload, expected) in [
        (Some("application/json; charset=utf-8"), &b"\xa0"[..], Encoding::Json),
        (Some("Application/JSON"), b"\xa0", Encoding::Json),
        (Some("application/cbor"), b"{", Encoding::Cbor),
        (Some("text/plain"), b" \n{", Encoding::Json),
        (None, b"", Encoding::Cbor),
    ] {
        assert_eq!(Encoding::of(content_type, payload), expected, "{content_type:?}");
    }
}

#[test]
fn the_norm_of_the_query_does_not_matter() {
    let matcher = matcher(false);
    let similarities: Vec<f32> = [1.0_f32, 1e-30, 3e37]
        .into_iter()
        .enumerate()
        .map(|(number, scale)| {
            let components: Vec<f32> =
                random_units(500, D, 1)[3 * D..4 * D].iter().map(|x| x * scale).collect();
            let embedding = Embedding::encode(Codec::F32, &components).unwrap();
            let query: Query = Query::new(QueryId::from_bytes([number as u8; 16]), SPACE, embedding, 1);
            let response = ask(&matcher, None, &Encoding::Cbor.write(&query));
            Encoding::Cbor.read::<Reply>(&response.payload).unwrap().matches[0].similarity
        })
        .collect();
    // Features are kept in half precision, within 2^-11.
    assert!(similarities.iter().all(|similarity| (similarity - 1.0).abs() < 5e-4), "{similarities:?}");
}

#[test]
fn a_repeat_is_answered_from_the_cache_with_the_same_bytes() {
    let matcher = matcher(false);
    let payload = Encoding::Cbor.write(&query(1, Codec::I8));
    let first = ask(&matcher, None, &payload);
    let again = ask(&matcher, None, &payload);
    assert_eq!((first.outcome, again.outcome), (Outcome::Answered, Outcome::Repeated));
    assert_eq!(first.payload, again.payload);
    let other = matcher.answer(Request { device: &device("cam-2"), content_type: None, payload: &payload });
    assert_eq!(other.outcome, Outcome::Answered, "the same id of another device is another query");
    let json = ask(&matcher, None, &Encoding::Json.write(&query(1, Codec::I8)));
    assert_eq!((json.outcome, json.encoding), (Outcome::Answered, Encoding::Json));
}

#[test]
fn a_refused_query_may_be_corrected_under_its_id() {
    let matcher = matcher(false);
    let mut message = query(1, Codec::I8);
    message.space = SpaceId::from_bytes([1; 16]);
    let refused = ask(&matcher, None, &Encoding::Cbor.write(&message));
    assert_eq!(refused.outcome, Outcome::Refused(ErrorCode::WrongSpace));
    let corrected = ask(&matcher, None, &Encoding::Cbor.write(&query(1, Codec::I8)));
    assert_eq!(corrected.outcome, Outcome::Answered);
}

#[test]
fn pq_without_a_codebook_says_what_to_send_instead() {
    let mut message = query(1, Codec::F32);
    message.embedding = Embedding::from_codes(&[0; 4]).unwrap();
    let response = ask(&matcher(false), None, &Encoding::Cbor.write(&message));
    let reply: ErrorReply = Encoding::Cbor.read(&response.payload).unwrap();
    assert_eq!(reply.error.code, ErrorCode::Unsupported);
    assert!(reply.error.message.contains("i8"));
}

#[test]
fn queries_that_come_together_are_answered_as_alone() {
    let (alone, together) = (matcher(true), matcher(true));
    let features = random_units(500, D, 1);
    let mut payloads: Vec<Vec<u8>> = (0..40_u8)
        .map(|id| {
            let components = &features[usize::from(id) * D..][..D];
            let codec = [Codec::F32, Codec::F16, Codec::I8][usize::from(id) % 3];
            let mut message: Query = Query::new(
                QueryId::from_bytes([id; 16]),
                SPACE,
                Embedding::encode(codec, components).unwrap(),
                1 + u16::from(id % 4),
            );
            message.taken_at = Some(u64::from(id));
            if id % 7 == 0 { Encoding::Json.write(&message) } else { Encoding::Cbor.write(&message) }
        })
        .collect();
    // A repeat within the batch, and two that are refused.
    payloads.push(payloads[3].clone());
    payloads.push(b"nothing".to_vec());
    payloads.push(Encoding::Json.write(&json!({"v": 1, "id": "00".repeat(16), "filter": 5})));
    let name = device("cam-1");
    let requests: Vec<Request<'_>> =
        payloads.iter().map(|payload| Request { device: &name, content_type: None, payload }).collect();
    let answers = together.answer_all(&requests);
    assert_eq!(answers.len(), requests.len());
    for (request, answer) in requests.iter().zip(&answers) {
        let expected = alone.answer(*request);
        assert_eq!(
            (answer.id, answer.outcome, answer.encoding),
            (expected.id, expected.outcome, expected.encoding)
        );
        let matches = |response: &Response| {
            response.encoding.read::<Reply>(&response.payload).map(|reply| reply.matches)
        };
        assert_eq!(matches(answer), matches(&expected));
    }
    assert_eq!(answers[40].payload, answers[3].payload);
    assert!(together.answer_all(&[]).is_empty());
}

#[test]
fn a_filter_is_followed_in_either_encoding() {
    let matcher = matcher(false);
    let labels = |filter: Value, id: u8, encoding: Encoding| {
        let mut message = good(id);
        message["filter"] = filter;
        // As a device would write it in CBOR: names instead of numbers read too.
        let response = ask(&matcher, None, &encoding.write(&message));
        let reply: Reply = response.encoding.read(&response.payload).unwrap();
        reply.matches.iter().map(|one| one.label.to_string()).collect::<Vec<_>>()
    };
    for (id, encoding) in [(1, Encoding::Json), (2, Encoding::Cbor)] {
        assert_eq!(labels(json!({"label": ["label 7", "label 3"]}), id, encoding), ["label 3", "label 7"]);
        assert_eq!(labels(json!({"room": "7"}), id + 10, encoding), [""; 0]);
        assert_eq!(labels(json!({}), id + 20, encoding).len(), 3);
        assert_eq!(labels(Value::Null, id + 30, encoding).len(), 3);
    }
}

#[test]
fn a_batch_follows_few_filters_that_nobody_has_asked_for() {
    let matcher = matcher(false);
    let payloads: Vec<Vec<u8>> = (0..9_u8)
        .map(|id| {
            let mut message = good(id);
            message["filter"] = json!({"label": format!("label {}", id % 3)});
            Encoding::Json.write(&message)
        })
        .collect();
    let name = device("cam-1");
    let requests: Vec<Request<'_>> =
        payloads.iter().map(|payload| Request { device: &name, content_type: None, payload }).collect();
    let count = |outcome: Outcome| {
        matcher.answer_all(&requests).iter().filter(|response| response.outcome == outcome).count()
    };
    assert_eq!(count(Outcome::Refused(ErrorCode::Busy)), 3, "the third filter waits");
    assert_eq!(count(Outcome::Repeated), 6, "and is followed now");
    assert_eq!(count(Outcome::Repeated), 9);
}

#[test]
fn busy_keeps_the_id_and_is_not_remembered() {
    let matcher = matcher(false);
    let payload = Encoding::Json.write(&query(5, Codec::I8));
    let busy = Matcher::busy(
        Request { device: &device("cam-1"), content_type: None, payload: &payload },
        Duration::from_millis(1500),
    );
    let reply: ErrorReply = Encoding::Json.read(&busy.payload).unwrap();
    assert_eq!((reply.id, reply.error.code), (QueryId::from_bytes([5; 16]), ErrorCode::Busy));
    assert_eq!(reply.error.retry_after_ms, Some(1500));
    assert_eq!(ask(&matcher, None, &payload).outcome, Outcome::Answered);
}

#[test]
fn the_largest_embedding_and_the_longest_reply_fit() {
    let features = random_units(200, 2048, 1);
    let matcher = Matcher::new(Live::fixed(view(2048, &features, None)), MatcherConfig::default());
    let embedding = Embedding::encode(Codec::F32, &features[..2048]).unwrap();
    let query: Query = Query::new(QueryId::from_bytes([1; 16]), SPACE, embedding, 100);
    for encoding in [Encoding::Cbor, Encoding::Json] {
        let response = ask(&matcher, None, &encoding.write(&query));
        let reply: Reply = encoding.read(&response.payload).unwrap();
        assert_eq!((reply.matches.len(), reply.matches[0].image.as_str()), (100, "000000"));
    }
}

proptest! {
    #[test]
    fn any_bytes_get_exactly_one_readable_reply(bytes in proptest::collection::vec(any::<u8>(), 0..300), json: bool) {
        let matcher = matcher(false);
        let content_type = json.then_some("application/json");
        let response = ask(&matcher, content_type, &bytes);
        prop_assert!(response.encoding.read::<ErrorReply>(&response.payload).is_ok());
    }

    #[test]
    fn a_damaged_query_gets_a_reply_or_an_error(place in 0..90_usize, value in any::<u8>()) {
        let matcher = matcher(false);
        let mut bytes = Encoding::Cbor.write(&query(1, Codec::I8));
        let place = place % bytes.len();
        bytes[place] = value;
        let response = ask(&matcher, None, &bytes);
        let encoding = response.encoding;
        prop_assert!(encoding.read::<Reply>(&response.payload).is_ok() || encoding.read::<ErrorReply>(&response.payload).is_ok());
    }
}
