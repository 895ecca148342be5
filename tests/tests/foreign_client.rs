//! The server and an MQTT client that is not ours: paho, in Python. Good queries are answered, bad ones get their named
//! error, and the server is still the same process afterwards.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context as _;
use glimpse_embedder::SpaceBundle;
use glimpse_protocol::{Codec, Embedding, ErrorCode, ErrorReply, Query, QueryId, Reply, SpaceId, TOP_K_MAX};
use glimpse_tests::demo::ground_truth::Query as DemoQuery;
use glimpse_tests::fixture::Fixture;
use glimpse_tests::foreign::Python;
use glimpse_tests::queries::{self, Found};
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
        Self { content_type: Some(content_type), ..Self::unnamed(payload) }
    }

    /// Whether it is CBOR or JSON is for the server to see.
    fn unnamed(payload: &[u8]) -> Self {
        Self { payload: payload.iter().map(|byte| format!("{byte:02x}")).collect(), content_type: None }
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
    json!({ "v": 1, "id": id_text(id), "space": space.to_string(), "embedding": embedding, "top_k": 3 })
}

fn id_text(id: u8) -> String {
    format!("{id:02x}").repeat(16)
}

#[test]
fn paho_is_answered_in_json_over_mqtt_5_and_over_3_1_1() {
    let Some(python) = Python::find("paho_is_answered_in_json_over_mqtt_5_and_over_3_1_1") else { return };
    let fixture = Fixture::ingested().unwrap();
    let server = fixture.serve().unwrap();
    let space = SpaceBundle::load(&workspace::bundle()).unwrap().space;
    let queries = &fixture.queries[..4];
    let embeddings: Vec<_> = queries.iter().map(|query| fixture.embedding(&query.photo).unwrap()).collect();
    let expected = own_answers(&fixture, &server, queries);
    // Other ids each time: a query that is repeated is answered from memory.
    for (version, first_id) in [("5", 1), ("3.1.1", 11)] {
        let ids = first_id..first_id + 4;
        let requests: Vec<Request> = ids
            .clone()
            .zip(&embeddings)
            .map(|(id, embedding)| Request::json(&good_query(id, space, embedding)))
            .collect();
        let answers = ask(&python, &server, version, &requests);
        for ((answer, query), expected) in answers.iter().zip(queries).zip(&expected) {
            let reply = answer.json();
            let matches: Vec<Found> = serde_json::from_value(reply["matches"].clone()).unwrap();
            assert!(matches.iter().any(|found| found.image == query.answer), "{}: {reply}", query.label);
            // The same embedding, bit for bit, over the same gallery.
            let shown = |matches: &[Found]| -> Vec<_> {
                matches
                    .iter()
                    .map(|found| (found.image.clone(), found.label.clone(), found.similarity))
                    .collect()
            };
            assert_eq!(shown(&matches), shown(&expected.matches), "{}", query.label);
            let (topic, kind, correlated) = match version {
                "5" => ("glimpse/v1/devices/paho-1/reply/paho", Some("application/json"), Some(true)),
                _ => ("glimpse/v1/devices/paho-1/reply", None, None),
            };
            assert_eq!((answer.topic.as_str(), answer.content_type.as_deref()), (topic, kind));
            assert_eq!(answer.correlated, correlated);
        }
        let answered: Vec<Value> = answers.iter().map(|answer| answer.json()["id"].clone()).collect();
        assert_eq!(answered, ids.map(|id| json!(id_text(id))).collect::<Vec<_>>());
    }
}

/// What our own device is answered, in CBOR, about the same photos.
fn own_answers(fixture: &Fixture, server: &Server, queries: &[DemoQuery]) -> Vec<queries::Answer> {
    let photos: Vec<_> = queries.iter().map(|query| query.photo.clone()).collect();
    let mut command = fixture.programs.edge();
    command.args(["query", "--json", "--codec", "f32", "--top-k", "3", "--device", "cam-1"]);
    command.args(["--server", server.address().unwrap(), "--bundle"]).arg(workspace::bundle());
    let answers = queries::ask(command, &photos, &fixture.path("edge.log"), &mut |_| ()).unwrap();
    assert!(answers.iter().all(|answer| answer.matches.len() == 3), "{answers:?}");
    answers
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
        BadTopK, Malformed, NotFinite, TooLarge, UnknownVersion, WrongDimension, WrongSpace, ZeroNorm,
    };
    let coded = |codec: Codec, bytes: usize| {
        with(&|q| {
            q["codec"] = json!(codec.name());
            q["embedding"] = json!("01".repeat(bytes));
        })
    };
    let dimension = bundle.dimension;
    let sub_spaces = bundle.quantizer.unwrap().sub_spaces;
    let mut infinite: Vec<f64> = embedding.iter().copied().map(f64::from).collect();
    infinite[0] = 1e39;
    // Each with the id under which its error comes back: zeros where the message does not tell.
    let cases = [
        ("wrong space, CBOR", WrongSpace, 3, Request::cbor(&cbor(&query(3, other_space, &embedding)))),
        ("wrong space, JSON", WrongSpace, 2, with(&|q| q["space"] = json!(other_space.to_string()))),
        ("wrong dimension, CBOR", WrongDimension, 4, Request::cbor(&cbor(&query(4, bundle.space, short)))),
        ("wrong dimension, JSON", WrongDimension, 2, with(&|q| q["embedding"] = json!(short))),
        ("f32 without its last byte", WrongDimension, 2, coded(Codec::F32, 4 * dimension - 1)),
        ("f16 with a byte too many", WrongDimension, 2, coded(Codec::F16, 2 * dimension + 1)),
        ("i8 without its whole scale", WrongDimension, 2, coded(Codec::I8, 3)),
        ("i8 with a level too many", WrongDimension, 2, coded(Codec::I8, 4 + dimension + 1)),
        ("pq without its last code", WrongDimension, 2, coded(Codec::Pq, sub_spaces - 1)),
        (
            "unknown codec",
            Malformed,
            2,
            with(&|q| (q["codec"], q["embedding"]) = (json!("f64"), json!("01"))),
        ),
        ("NaN", NotFinite, 1, Request::cbor(&not_finite)),
        ("a number beyond f32", NotFinite, 2, with(&|q| q["embedding"] = json!(infinite))),
        ("zero", ZeroNorm, 2, with(&|q| q["embedding"] = json!(vec![0.0; dimension]))),
        ("truncated CBOR", Malformed, 0, Request::cbor(&good[..good.len() / 2])),
        ("CBOR that is cut after its first byte", Malformed, 0, Request::cbor(&good[..1])),
        ("CBOR with a byte too many", Malformed, 0, Request::cbor(&[good.as_slice(), &[0]].concat())),
        ("truncated JSON", Malformed, 0, Request::new(br#"{"v":1,"id":"#, "application/json")),
        ("garbage that looks like JSON", Malformed, 0, Request::unnamed(b"{garbage")),
        ("no text at all", Malformed, 0, Request::new(b"\xff\xfe\x00", "application/json")),
        ("nothing", Malformed, 0, Request::cbor(b"")),
        ("nothing, and no content type", Malformed, 0, Request::unnamed(b"")),
        // Good queries but for what they are called: the name counts, not the looks.
        (
            "JSON called CBOR",
            Malformed,
            0,
            Request::cbor(good_query(6, bundle.space, &embedding).to_string().as_bytes()),
        ),
        ("CBOR called JSON", Malformed, 0, Request::new(&good, "application/json")),
        ("deep nesting", Malformed, 0, Request::new(&vec![b'['; 60_000], "application/json")),
        ("oversized, unreadable", TooLarge, 0, Request::cbor(&vec![0; 900 << 10])),
        ("oversized", TooLarge, 2, with(&|q| q["comment"] = json!("x".repeat(64 << 10)))),
        ("unknown version", UnknownVersion, 2, with(&|q| q["v"] = json!(2))),
        (
            "unknown version, CBOR",
            UnknownVersion,
            5,
            Request::cbor(&{
                let mut query = query(5, bundle.space, &embedding);
                query.v = 0;
                cbor(&query)
            }),
        ),
        ("no matches wanted", BadTopK, 2, with(&|q| q["top_k"] = json!(0))),
        ("too many matches wanted", BadTopK, 2, with(&|q| q["top_k"] = json!(TOP_K_MAX + 1))),
        ("more matches wanted than 16 bits tell", BadTopK, 2, with(&|q| q["top_k"] = json!(100_000))),
        ("a filter without values", Malformed, 2, with(&|q| q["filter"] = json!({"colour": []}))),
        ("no filter", Malformed, 2, with(&|q| q["filter"] = json!("red"))),
    ];
    let mut requests = Vec::new();
    let mut expected = Vec::new();
    for (name, code, id, request) in cases {
        expected.push((name, code, QueryId::from_bytes([id; 16]), request.content_type));
        requests.push(request);
    }
    let answers = ask(&python, &server, "5", &requests);
    for ((name, code, id, content_type), answer) in expected.into_iter().zip(&answers) {
        let error = answer.error();
        assert_eq!((error.error.code, error.id), (code, id), "{name}: {}", error.error.message);
        assert!(!error.error.message.is_empty(), "{name} says nothing");
        assert_eq!(answer.correlated, Some(true), "{name}");
        // In kind, also where the bytes look like something else.
        assert!(content_type.is_none_or(|kind| answer.content_type.as_deref() == Some(kind)), "{name}");
    }

    // More than the broker takes costs the connection, before any of it is kept.
    packet_beyond_the_brokers_limit(server.address().unwrap());

    let answers = ask(&python, &server, "5", &[Request::cbor(&good)]);
    let reply: Reply = ciborium::from_reader(answers[0].payload().as_slice()).unwrap();
    assert!(reply.matches.iter().any(|found| *found.image == photo.answer), "{reply:?}");
    assert!(server.is_alive());
}

/// MQTT 3.1.1 by hand, since a client keeps to what its broker announces: connects, announces a packet of 2 MiB, and expects
/// the connection to be closed.
fn packet_beyond_the_brokers_limit(address: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05cam-9").unwrap();
    let mut accepted = [0; 4];
    stream.read_exact(&mut accepted).unwrap();
    assert_eq!(accepted, [0x20, 2, 0, 0]);
    // PUBLISH, then its length as four groups of seven bits.
    stream.write_all(&[0x30, 0x80, 0x80, 0x80, 0x01]).unwrap();
    // It may be cut off while it still sends.
    let _ = stream.write_all(&vec![0; 100_000]);
    match stream.read(&mut [0; 16]) {
        Ok(length) => assert_eq!(length, 0, "an answer instead of the end"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
}
