//! The server and an MQTT client that is not ours: paho, in Python. Good queries are answered, bad ones get their named
//! error, and the server is still the same process afterwards.

use anyhow::Context as _;
use glimpse_embedder::SpaceBundle;
use glimpse_protocol::{Codec, Embedding, ErrorCode, ErrorReply, Query, QueryId, Reply, SpaceId};
use glimpse_tests::fixture::Fixture;
use glimpse_tests::foreign::Python;
use glimpse_tests::server::Server;
use glimpse_tests::workspace;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Serialize)]
struct Request {
    payload: String,
    content_type: Option<&'static str>,
}

impl Request {
    fn json(value: &Value) -> Self {
        Self::new(value.to_string().as_bytes(), "application/json")
    }

    fn cbor(payload: &[u8]) -> Self {
        Self::new(payload, "application/cbor")
    }

    fn new(payload: &[u8], content_type: &'static str) -> Self {
        let payload = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { payload, content_type: Some(content_type) }
    }
}

#[derive(Deserialize)]
struct Answer {
    payload: String,
    topic: String,
    content_type: Option<String>,
    correlated: Option<bool>,
}

impl Answer {
    fn payload(&self) -> Vec<u8> {
        let digits = self.payload.as_bytes().chunks(2);
        digits.map(|two| u8::from_str_radix(&String::from_utf8_lossy(two), 16).unwrap()).collect()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.payload()).unwrap()
    }

    /// A CBOR or JSON error; anything else fails the test.
    fn error(&self) -> ErrorReply {
        let payload = self.payload();
        let read = if self.content_type.as_deref() == Some("application/json") {
            serde_json::from_slice(&payload).context("no JSON error")
        } else {
            ciborium::from_reader(payload.as_slice()).context("no CBOR error")
        };
        read.with_context(|| String::from_utf8_lossy(&payload).into_owned()).unwrap()
    }
}

fn ask(python: &Python, server: &Server, version: &str, requests: &[Request]) -> Vec<Answer> {
    let lines: Vec<String> = requests.iter().map(|request| serde_json::to_string(request).unwrap()).collect();
    let arguments = [server.address().unwrap(), "paho-1", "--version", version];
    let output = python.run("mqtt_client.py", &arguments, lines.join("\n").as_bytes()).unwrap();
    let answers: Vec<Answer> =
        String::from_utf8(output).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), requests.len(), "one answer a request");
    answers
}

fn good_query(id: u8, space: SpaceId, embedding: &[f32]) -> Value {
    json!({ "v": 1, "id": format!("{id:02x}").repeat(16), "space": space.to_string(), "embedding": embedding, "top_k": 3 })
}

#[test]
fn paho_is_answered_in_json_over_mqtt_5_and_over_3_1_1() {
    let Some(python) = Python::find("paho_is_answered_in_json_over_mqtt_5_and_over_3_1_1") else { return };
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve().unwrap();
    let space = SpaceBundle::load(&workspace::bundle()).unwrap().space;
    let queries = &fixture.queries[..4];
    let requests: Vec<Request> = (1..)
        .zip(queries)
        .map(|(id, query)| Request::json(&good_query(id, space, &fixture.embedding(&query.photo).unwrap())))
        .collect();
    for version in ["5", "3.1.1"] {
        let answers = ask(&python, &server, version, &requests);
        for (answer, query) in answers.iter().zip(queries) {
            let reply = answer.json();
            let matches = reply["matches"].as_array().unwrap();
            assert_eq!(matches.len(), 3);
            assert!(matches.iter().any(|found| found["image"] == query.answer), "{}: {reply}", query.label);
            let similarity = |n: usize| matches[n]["similarity"].as_f64().unwrap();
            assert!(1.0 >= similarity(0) && similarity(0) >= similarity(1) && similarity(1) >= similarity(2));
            let (topic, kind, correlated) = match version {
                "5" => ("glimpse/v1/devices/paho-1/reply/paho", Some("application/json"), Some(true)),
                _ => ("glimpse/v1/devices/paho-1/reply", None, None),
            };
            assert_eq!((answer.topic.as_str(), answer.content_type.as_deref()), (topic, kind));
            assert_eq!(answer.correlated, correlated);
        }
        let ids: Vec<Value> = answers.iter().map(|answer| answer.json()["id"].clone()).collect();
        assert_eq!(ids, ["01", "02", "03", "04"].map(|id| json!(id.repeat(16))));
    }
}

#[test]
fn each_bad_message_gets_its_named_error_and_the_server_stays_up() {
    let Some(python) = Python::find("each_bad_message_gets_its_named_error_and_the_server_stays_up") else {
        return;
    };
    let fixture = Fixture::ingested().unwrap();
    let mut server = fixture.serve().unwrap();
    let bundle = SpaceBundle::load(&workspace::bundle()).unwrap();
    let photo = &fixture.queries[0];
    let embedding = fixture.embedding(&photo.photo).unwrap();
    let query = |id: u8, space: SpaceId, components: &[f32]| -> Query {
        Query::new(
            QueryId::from_bytes([id; 16]),
            space,
            Embedding::encode(Codec::F32, components).unwrap(),
            3,
        )
    };
    let cbor = |query: &Query| -> Vec<u8> {
        let mut bytes = Vec::new();
        ciborium::into_writer(query, &mut bytes).unwrap();
        bytes
    };
    let good = cbor(&query(1, bundle.space, &embedding));
    let with = |change: &dyn Fn(&mut Value)| {
        let mut value = good_query(2, bundle.space, &embedding);
        change(&mut value);
        Request::json(&value)
    };
    // The F32 payload of a CBOR query is its components' bytes: NaN goes in through them, since JSON has none.
    let first = embedding[0].to_le_bytes();
    let at = good.windows(4).position(|window| window == first).unwrap();
    let mut not_finite = good.clone();
    not_finite[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let other_space = SpaceId::from_bytes([7; 16]);
    let short = &embedding[..embedding.len() - 1];

    use ErrorCode::{
        BadTopK, Malformed, NotFinite, TooLarge, UnknownVersion, Unsupported, WrongDimension, WrongSpace,
        ZeroNorm,
    };
    let cases = [
        ("wrong space, CBOR", WrongSpace, Request::cbor(&cbor(&query(3, other_space, &embedding)))),
        ("wrong space, JSON", WrongSpace, with(&|q| q["space"] = json!(other_space.to_string()))),
        ("wrong dimension, CBOR", WrongDimension, Request::cbor(&cbor(&query(4, bundle.space, short)))),
        ("wrong dimension, JSON", WrongDimension, with(&|q| q["embedding"] = json!(short))),
        ("NaN", NotFinite, Request::cbor(&not_finite)),
        ("zero", ZeroNorm, with(&|q| q["embedding"] = json!(vec![0.0; embedding.len()]))),
        ("truncated CBOR", Malformed, Request::cbor(&good[..good.len() / 2])),
        ("CBOR that is cut after its first byte", Malformed, Request::cbor(&good[..1])),
        ("truncated JSON", Malformed, Request::new(br#"{"v":1,"id":"#, "application/json")),
        ("no text at all", Malformed, Request::new(b"\xff\xfe\x00", "application/json")),
        ("nothing", Malformed, Request::cbor(b"")),
        ("deep nesting", Malformed, Request::new(&vec![b'['; 60_000], "application/json")),
        ("oversized", TooLarge, Request::cbor(&vec![0; 900 << 10])),
        ("unknown version", UnknownVersion, with(&|q| q["v"] = json!(2))),
        ("no matches wanted", BadTopK, with(&|q| q["top_k"] = json!(0))),
        ("too many matches wanted", BadTopK, with(&|q| q["top_k"] = json!(101))),
        ("filter", Unsupported, with(&|q| q["filter"] = json!({"colour": "red"}))),
    ];
    let (names, requests): (Vec<_>, Vec<_>) =
        cases.into_iter().map(|(name, code, request)| ((name, code), request)).unzip();
    let answers = ask(&python, &server, "5", &requests);
    for ((name, code), answer) in names.into_iter().zip(&answers) {
        let error = answer.error().error;
        assert_eq!(error.code, code, "{name}: {}", error.message);
        assert!(!error.message.is_empty(), "{name} says nothing");
        assert_eq!(answer.correlated, Some(true), "{name}");
    }

    let answers = ask(&python, &server, "5", &[Request::cbor(&good)]);
    let reply: Reply = ciborium::from_reader(answers[0].payload().as_slice()).unwrap();
    assert!(reply.matches.iter().any(|found| *found.image == photo.answer), "{reply:?}");
    assert!(server.is_alive());
}
