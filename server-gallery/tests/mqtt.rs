//! The server over real MQTT: the embedded broker on port 0, and clients as devices would be.
#![cfg(feature = "embedded-broker")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use glimpse_gallery::config::{RawConfig, RawSecurity, ServeConfig};
use glimpse_gallery::index::{Index, IndexOptions};
use glimpse_gallery::live::Live;
use glimpse_gallery::matcher::{Encoding, Matcher, MatcherConfig};
use glimpse_gallery::monitor::Monitor;
use glimpse_gallery::serve::{self, Ready};
use glimpse_gallery::store::{Attributes, Features, Image, Meta, Snapshot, State};
use glimpse_gallery::view::View;
use glimpse_protocol::{
    Codec, DeviceId, DeviceStatus, Embedding, ErrorCode, ErrorReply, GalleryStatus, Query, QueryId, Reply,
    SpaceId, topics::GALLERY_STATUS,
};
use rumqttc::{
    AsyncClient, Event, Incoming, LastWill, MqttOptions, NetworkOptions, PubAckReason, Publish,
    PublishOptions, PublishProperties, QoS, SubscribeReasonCode,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::{self, RootCertStore, server::WebPkiClientVerifier};

const SPACE: SpaceId = SpaceId::from_bytes([9; 16]);
const D: usize = 8;
const WAIT: Duration = Duration::from_secs(10);

/// Eight images, one along each axis.
fn matcher() -> Arc<Matcher> {
    let image = |n: usize| Image {
        id: format!("image-{n}.jpg"),
        path: String::new(),
        label: format!("label {n}"),
        attributes: Attributes::default(),
        photo_hash: [0; 32],
    };
    let images: Vec<Image> = (0..D).map(image).collect();
    let snapshot = Snapshot {
        meta: Meta { space: SPACE, dimension: D, generation: 5 },
        state: State { generation: 5, ..State::default() },
        images: images.iter().collect(),
        features: Features::Memory((0..D * D).map(|i| f32::from(u8::from(i / D == i % D))).collect()),
    };
    let index = Index::build(snapshot, None, &IndexOptions::default(), &mut |_, _, _| true).unwrap();
    let live = Live::fixed(View::of(Arc::new(index)));
    Arc::new(Matcher::new(live, MatcherConfig::default()))
}

struct Server {
    address: SocketAddr,
    monitor: Arc<Monitor>,
    stop: oneshot::Sender<()>,
    running: tokio::task::JoinHandle<()>,
    /// For the audit log.
    _access: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        Self::with_rate(10_000.0).await
    }

    /// A server that takes so many queries a second from each device.
    async fn with_rate(device_rate_max: f64) -> Self {
        let access = tempfile::tempdir().unwrap();
        let config: ServeConfig = RawConfig {
            gallery: Some("unused".into()),
            bundle: Some("unused".into()),
            listen: Some("127.0.0.1:0".to_owned()),
            clients_max: Some(20),
            device_rate_max: Some(device_rate_max),
            security: RawSecurity { access: Some(access.path().into()), ..RawSecurity::default() },
            ..RawConfig::default()
        }
        .validate(Vec::new())
        .unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel();
        let monitor = Arc::new(Monitor::new());
        let watching = monitor.clone();
        let running = tokio::spawn(async move {
            let say = |now: Ready| ready.send(now).unwrap();
            let stopped = async move { drop(stopped.await) };
            let (_reload, reloads) = watch::channel(config);
            serve::serve(matcher(), reloads, watching, say, stopped).await.unwrap();
        });
        let ready: Ready = tokio::time::timeout(WAIT, is_ready).await.unwrap().unwrap();
        assert_eq!((ready.space, ready.size), (SPACE, D));
        Self { address: ready.mqtt.parse().unwrap(), monitor, stop, running, _access: access }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(WAIT, self.running).await.unwrap().unwrap();
    }
}

/// A client whose events are collected; `events` ends when its connection does.
struct Device {
    client: AsyncClient,
    events: mpsc::UnboundedReceiver<Incoming>,
}

impl Device {
    fn options(server: &Server, name: &str) -> MqttOptions {
        let mut options = MqttOptions::new(name, (server.address.ip().to_string(), server.address.port()));
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options.set_network_options(network).set_max_packet_size(Some(2 << 20)).set_keep_alive(5);
        options
    }

    async fn connect(server: &Server, name: &str) -> Self {
        let mut device = Self::with(Self::options(server, name));
        assert!(matches!(device.next().await, Some(Incoming::ConnAck(_))));
        device
    }

    fn with(options: MqttOptions) -> Self {
        let (client, mut event_loop) = AsyncClient::builder(options).capacity(64).build();
        let (sender, events) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(event) = event_loop.poll().await {
                if let Event::Incoming(packet) = event
                    && sender.send(packet).is_err()
                {
                    return;
                }
            }
        });
        Self { client, events }
    }

    async fn next(&mut self) -> Option<Incoming> {
        tokio::time::timeout(WAIT, self.events.recv()).await.expect("an event in time")
    }

    async fn publish_received(&mut self) -> Publish {
        loop {
            if let Incoming::Publish(publish) = self.next().await.expect("still connected") {
                return publish;
            }
        }
    }

    async fn subscribe(&mut self, filter: &str) -> SubscribeReasonCode {
        self.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        loop {
            if let Incoming::SubAck(ack) = self.next().await.expect("still connected") {
                return ack.return_codes[0];
            }
        }
    }

    async fn ask(&self, topic: &str, payload: Vec<u8>, properties: PublishProperties) {
        let options = PublishOptions::new(QoS::AtLeastOnce).properties(properties);
        self.client.publish(topic, payload, options).await.unwrap();
    }

    /// The reason code that the broker gives for a publish.
    async fn publish_reason(&mut self, topic: &str) -> PubAckReason {
        self.ask(topic, b"x".to_vec(), PublishProperties::default()).await;
        loop {
            if let Incoming::PubAck(ack) = self.next().await.expect("still connected") {
                return ack.reason;
            }
        }
    }
}

fn query(id: u8, axis: usize) -> Query {
    let mut components = [0.0; D];
    components[axis] = 2.0;
    Query::new(QueryId::from_bytes([id; 16]), SPACE, Embedding::encode(Codec::I8, &components).unwrap(), 2)
}

fn cbor<T: serde::Serialize>(query: &T) -> Vec<u8> {
    Encoding::Cbor.write(query)
}

fn reply(publish: &Publish) -> Reply {
    ciborium::from_reader(&*publish.payload).expect("a reply")
}

fn topic(publish: &Publish) -> &str {
    std::str::from_utf8(&publish.topic).unwrap()
}

const QUERY: &str = "glimpse/v1/devices/cam-1/query";
const REPLY: &str = "glimpse/v1/devices/cam-1/reply";

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_answered_once_under_its_correlation_data() {
    let server = Server::start().await;
    let mut device = Device::connect(&server, "cam-1").await;
    assert!(matches!(device.subscribe(&format!("{REPLY}/#")).await, SubscribeReasonCode::Success(_)));
    assert!(matches!(device.subscribe(REPLY).await, SubscribeReasonCode::Success(_)));

    let properties = PublishProperties {
        response_topic: Some(format!("{REPLY}/here")),
        correlation_data: Some(vec![1, 2, 3].into()),
        content_type: Some("application/cbor".to_owned()),
        message_expiry_interval: Some(60),
        ..PublishProperties::default()
    };
    device.ask(QUERY, cbor(&query(1, 3)), properties).await;
    let answer = device.publish_received().await;
    assert_eq!(topic(&answer), format!("{REPLY}/here"));
    let properties = answer.properties.clone().unwrap();
    assert_eq!(properties.correlation_data.as_deref(), Some(&[1, 2, 3][..]));
    assert_eq!(properties.content_type.as_deref(), Some("application/cbor"));
    assert!(properties.message_expiry_interval.is_some_and(|seconds| seconds <= 60));
    let first = reply(&answer);
    assert_eq!((first.id, first.generation, first.matches.len()), (QueryId::from_bytes([1; 16]), 5, 2));
    assert_eq!(
        (first.matches[0].image.as_str(), first.matches[0].label.as_str()),
        ("image-3.jpg", "label 3")
    );

    // The same query again: the same bytes, on the default topic this time.
    device.ask(QUERY, cbor(&query(1, 3)), PublishProperties::default()).await;
    let again = device.publish_received().await;
    assert_eq!((topic(&again), &again.payload), (REPLY, &answer.payload));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_is_answered_in_json_and_errors_name_the_query() {
    let server = Server::start().await;
    let mut device = Device::connect(&server, "cam-1").await;
    device.subscribe(REPLY).await;
    let text =
        format!(r#"{{"v":1,"id":"{}","space":"{SPACE}","embedding":[0,1,0,0,0,0,0,0]}}"#, "ab".repeat(16));
    device.ask(QUERY, text.clone().into_bytes(), PublishProperties::default()).await;
    let answer = device.publish_received().await;
    assert_eq!(answer.properties.clone().unwrap().content_type.as_deref(), Some("application/json"));
    let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(answer["matches"][0]["image"], "image-1.jpg");
    assert_eq!(answer["matches"].as_array().unwrap().len(), 8);

    let wrong = text.replace("\"v\":1", "\"v\":9");
    device.ask(QUERY, wrong.into_bytes(), PublishProperties::default()).await;
    let error: ErrorReply = serde_json::from_slice(&device.publish_received().await.payload).unwrap();
    assert_eq!((error.id.to_string(), error.error.code), ("ab".repeat(16), ErrorCode::UnknownVersion));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_topics_are_refused_and_replies_stay_home() {
    let server = Server::start().await;
    let mut device = Device::connect(&server, "cam-1").await;
    let mut other = Device::connect(&server, "cam-2").await;
    for filter in [
        "#",
        "glimpse/v1/devices/cam-2/reply",
        "glimpse/v1/devices/+/query",
        "$share/gallery/glimpse/v1/devices/+/query",
    ] {
        assert!(!matches!(device.subscribe(filter).await, SubscribeReasonCode::Success(_)), "{filter}");
    }
    for topic in
        ["glimpse/v1/devices/cam-2/query", "glimpse/v1/devices/cam-2/reply", REPLY, GALLERY_STATUS, "other"]
    {
        assert_eq!(device.publish_reason(topic).await, PubAckReason::NotAuthorized, "{topic}");
    }
    assert!(matches!(device.subscribe(REPLY).await, SubscribeReasonCode::Success(_)));
    assert!(matches!(
        other.subscribe("glimpse/v1/devices/cam-2/reply").await,
        SubscribeReasonCode::Success(_)
    ));

    // A foreign response topic is replaced: the asker gets the reply, the other device does not.
    let foreign = PublishProperties {
        response_topic: Some("glimpse/v1/devices/cam-2/reply".to_owned()),
        ..PublishProperties::default()
    };
    device.ask(QUERY, cbor(&query(1, 0)), foreign).await;
    assert_eq!(topic(&device.publish_received().await), REPLY);
    other.ask("glimpse/v1/devices/cam-2/query", cbor(&query(2, 1)), PublishProperties::default()).await;
    assert_eq!(reply(&other.publish_received().await).id, QueryId::from_bytes([2; 16]));

    // Neither may a last will speak for others, nor a stranger as the server.
    let mut options = Device::options(&server, "cam-3");
    options.set_last_will(LastWill::new(GALLERY_STATUS, b"lie".to_vec(), QoS::AtLeastOnce, true, None));
    assert!(Device::with(options).next().await.is_none());
    let mut options = Device::options(&server, "cam-4");
    options.set_last_will(LastWill::new(
        "glimpse/v1/devices/cam-4/status",
        b"gone".to_vec(),
        QoS::AtLeastOnce,
        true,
        None,
    ));
    assert!(matches!(Device::with(options).next().await, Some(Incoming::ConnAck(_))));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_retained_status_says_online_and_then_offline() {
    let server = Server::start().await;
    let mut device = Device::connect(&server, "cam-1").await;
    device.subscribe(GALLERY_STATUS).await;
    let publish = device.publish_received().await;
    assert!(publish.retain);
    let status: GalleryStatus = ciborium::from_reader(&*publish.payload).unwrap();
    assert_eq!(status, GalleryStatus { online: true, space: SPACE, size: 8, generation: 5 });
    server.stop().await;
    let status: GalleryStatus = ciborium::from_reader(&*device.publish_received().await.payload).unwrap();
    assert!(!status.online);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_monitor_sees_every_query_and_what_devices_say_of_themselves() {
    let server = Server::start().await;
    assert!(server.monitor.subscribed());
    let mut device = Device::connect(&server, "cam-1").await;
    device.subscribe(REPLY).await;
    let status = |online, outbox| {
        let version = "9.8.7".try_into().unwrap();
        cbor(&DeviceStatus { online, version, space: SPACE, outbox, model: None, update: None })
    };
    let say = |payload: Vec<u8>| {
        let options = PublishOptions::new(QoS::AtLeastOnce).retained();
        device.client.publish("glimpse/v1/devices/cam-1/status", payload, options)
    };
    say(status(true, 3)).await.unwrap();
    // None of these is a status, and none does harm.
    say(b"\xff\xff".to_vec()).await.unwrap();
    device.ask(QUERY, cbor(&query(1, 3)), PublishProperties::default()).await;
    device.ask(QUERY, cbor(&query(1, 3)), PublishProperties::default()).await;
    device.ask(QUERY, b"no query".to_vec(), PublishProperties::default()).await;
    for _ in 0..3 {
        device.publish_received().await;
    }
    let cam = DeviceId::new("cam-1").unwrap();
    let known = || server.monitor.device(&cam);
    until(|| known().is_some_and(|known| known.online == Some(true))).await;
    let seen = known().unwrap();
    assert_eq!((seen.version.as_deref(), seen.space, seen.outbox), (Some("9.8.7"), Some(SPACE), Some(3)));
    assert_eq!((seen.queries, seen.refused), (3, 1));
    assert_eq!(server.monitor.totals().counts, [1, 1, 1, 0, 0]);
    let first = server.monitor.queries()[2].view(10);
    assert_eq!((first.matches[0].image.as_str(), first.generation), ("image-3.jpg", Some(5)));

    let options = PublishOptions::new(QoS::AtLeastOnce).retained();
    device
        .client
        .publish("glimpse/v1/devices/cam-1/status", status(false, 0), options.clone())
        .await
        .unwrap();
    until(|| known().is_some_and(|known| known.online == Some(false))).await;
    device.client.publish("glimpse/v1/devices/cam-1/status", Vec::new(), options).await.unwrap();
    until(|| known().is_none()).await;
    let monitor = server.monitor.clone();
    server.stop().await;
    assert!(!monitor.subscribed());
}

async fn until(holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < WAIT, "it did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_packet_costs_its_sender_the_connection_and_nobody_else() {
    let server = Server::start().await;
    let mut device = Device::connect(&server, "cam-1").await;
    device.subscribe(REPLY).await;
    // Over our message limit, within the broker's: an answer.
    device.ask(QUERY, vec![b' '; 900 << 10], PublishProperties::default()).await;
    let error: ErrorReply = ciborium::from_reader(&*device.publish_received().await.payload).unwrap();
    assert_eq!(error.error.code, ErrorCode::TooLarge);

    let mut raw = tokio::net::TcpStream::connect(server.address).await.unwrap();
    oversized_publish(&mut raw).await;

    device.ask(QUERY, cbor(&query(3, 2)), PublishProperties::default()).await;
    assert_eq!(reply(&device.publish_received().await).matches[0].image, "image-2.jpg");
    server.stop().await;
}

/// MQTT 3.1.1 by hand, because clients keep to the limit that the broker announces: connects, announces a packet of 2 MiB, and
/// expects to be disconnected.
async fn oversized_publish(stream: &mut tokio::net::TcpStream) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    stream.write_all(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05cam-9").await.unwrap();
    let mut acknowledged = [0; 4];
    stream.read_exact(&mut acknowledged).await.unwrap();
    assert_eq!(acknowledged, [0x20, 2, 0, 0]);
    // Remaining length 2 MiB, as four bytes of seven bits.
    stream.write_all(&[0x30, 0x80, 0x80, 0x80, 0x01]).await.unwrap();
    let _ = stream.write_all(&vec![0; 100_000]).await;
    let mut rest = Vec::new();
    let ended =
        tokio::time::timeout(WAIT, stream.read_to_end(&mut rest)).await.expect("disconnected in time");
    assert!(ended.is_err() || rest.is_empty(), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_mqtt_3_1_1_is_answered_on_the_default_topic() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let server = Server::start().await;
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05cam-1").await.unwrap();
    let mut subscribe = vec![0x82, (2 + 2 + REPLY.len() + 1) as u8, 0, 1, 0, REPLY.len() as u8];
    subscribe.extend_from_slice(REPLY.as_bytes());
    subscribe.push(0);
    stream.write_all(&subscribe).await.unwrap();
    let mut acknowledged = [0; 4 + 5];
    stream.read_exact(&mut acknowledged).await.unwrap();
    assert_eq!(acknowledged, [0x20, 2, 0, 0, 0x90, 3, 0, 1, 0]);

    let payload = cbor(&query(4, 6));
    let mut publish = vec![0x30, (2 + QUERY.len() + payload.len()) as u8, 0, QUERY.len() as u8];
    assert!(publish[1] < 128, "one byte of length");
    publish.extend_from_slice(QUERY.as_bytes());
    publish.extend_from_slice(&payload);
    stream.write_all(&publish).await.unwrap();
    let mut received = vec![0; 1024];
    let mut length = 0;
    // Header, two bytes of length at most, topic, payload.
    let found = loop {
        let read = tokio::time::timeout(WAIT, stream.read(&mut received[length..])).await.unwrap().unwrap();
        assert!(read > 0);
        length += read;
        let start = received[..length].windows(REPLY.len()).position(|window| window == REPLY.as_bytes());
        if let Some(start) = start
            && let Ok(reply) = ciborium::from_reader::<Reply, _>(&received[start + REPLY.len()..length])
        {
            break reply;
        }
    };
    assert_eq!(found.matches[0].image, "image-6.jpg");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_queries_at_once_are_each_answered_once() {
    let server = Server::start().await;
    let mut device = Device::connect(&server, "cam-1").await;
    device.subscribe(REPLY).await;
    let asker = device.client.clone();
    tokio::spawn(async move {
        for id in 0..200 {
            let query = query(id, usize::from(id) % D);
            asker.publish(QUERY, cbor(&query), PublishOptions::new(QoS::AtLeastOnce)).await.unwrap();
        }
    });
    let mut answered = [0; 200];
    for _ in 0..200 {
        let reply = reply(&device.publish_received().await);
        let id = reply.id.as_bytes()[0];
        assert_eq!(reply.matches[0].image, format!("image-{}.jpg", usize::from(id) % D).as_str());
        answered[usize::from(id)] += 1;
    }
    assert!(answered.iter().all(|times| *times == 1));
    server.stop().await;
}

/// A broker by hand that says that it kept our session: the server must subscribe in it all the same, after a start and
/// after a lost connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_asks_too_often_is_told_to_wait_and_others_are_not() {
    let server = Server::with_rate(5.0).await;
    let mut hasty = Device::connect(&server, "cam-1").await;
    hasty.subscribe(REPLY).await;
    let mut patient = Device::connect(&server, "cam-2").await;
    patient.subscribe("glimpse/v1/devices/cam-2/reply").await;
    for id in 0..40 {
        hasty.ask(QUERY, cbor(&query(id, 1)), PublishProperties::default()).await;
    }
    let (mut answered, mut busy) = (0, 0);
    for _ in 0..40 {
        let publish = hasty.publish_received().await;
        match ciborium::from_reader::<ErrorReply, _>(&*publish.payload) {
            Err(_) => answered += 1,
            Ok(error) => {
                assert_eq!(error.error.code, ErrorCode::Busy);
                assert!(
                    error.error.retry_after_ms.is_some_and(|wait| (1..=1000).contains(&wait)),
                    "{error:?}"
                );
                busy += 1;
            }
        }
    }
    assert!(answered >= 20 && busy >= 10, "{answered} answered, {busy} busy");
    patient.ask("glimpse/v1/devices/cam-2/query", cbor(&query(1, 1)), PublishProperties::default()).await;
    assert_eq!(reply(&patient.publish_received().await).matches.len(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_takes_up_the_session_that_its_broker_kept() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let broker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = RawConfig {
        gallery: Some("unused".into()),
        bundle: Some("unused".into()),
        broker: Some(broker.local_addr().unwrap().to_string()),
        ..RawConfig::default()
    }
    .validate(Vec::new())
    .unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move { drop(stopped.await) };
    let monitor = Arc::new(Monitor::new());
    let running = tokio::spawn(async move {
        serve::serve(matcher(), watch::channel(config).1, monitor, |_| (), stopped).await
    });
    for connection in 0..2 {
        let (mut stream, _) = tokio::time::timeout(WAIT, broker.accept()).await.unwrap().unwrap();
        // MQTT 5: session present, success, no properties.
        stream.write_all(&[0x20, 3, 1, 0, 0]).await.unwrap();
        let mut received = Vec::new();
        while !received.windows(10).any(|window| window == b"$share/gal") {
            let read =
                tokio::time::timeout(WAIT, stream.read_buf(&mut received)).await.expect("a subscription");
            assert!(read.unwrap() > 0, "connection {connection} was closed");
        }
    }
    stop.send(()).unwrap();
    tokio::time::timeout(WAIT, running).await.unwrap().unwrap().unwrap();
}

/// A broker by hand, by TLS 1.3 alone, that looks at who comes: our client shows its certificate, then user name and
/// password.
#[tokio::test(flavor = "multi_thread")]
async fn an_external_broker_is_met_by_tls_with_a_login_and_a_certificate() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let place = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        Some(path)
    };
    let made = || rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (theirs, ours) = (made(), made());
    let mut roots = RootCertStore::empty();
    roots.add(ours.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let wants_ours =
        WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
    let key = theirs.signing_key.serialize_der().try_into().unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(wants_ours)
        .with_single_cert(vec![theirs.cert.der().clone()], key)
        .unwrap();
    let broker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = RawConfig {
        gallery: Some("unused".into()),
        bundle: Some("unused".into()),
        broker: Some(format!("mqtts://{}", broker.local_addr().unwrap())),
        security: RawSecurity {
            broker_username: Some("museum".to_owned()),
            broker_password_file: file("password", "open sesame\n"),
            broker_ca: file("ca.pem", &theirs.cert.pem()),
            broker_certificate: file("our.pem", &ours.cert.pem()),
            broker_key: file("our.key", &ours.signing_key.serialize_pem()),
            ..RawSecurity::default()
        },
        ..RawConfig::default()
    }
    .validate(Vec::new())
    .unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move { drop(stopped.await) };
    let running = tokio::spawn(async move {
        serve::serve(matcher(), watch::channel(config).1, Arc::new(Monitor::new()), |_| (), stopped).await
    });
    let (stream, _) = tokio::time::timeout(WAIT, broker.accept()).await.unwrap().unwrap();
    let mut stream = TlsAcceptor::from(Arc::new(tls)).accept(stream).await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], *ours.cert.der());
    let mut received = Vec::new();
    while !received.windows(11).any(|window| window == b"open sesame") {
        let read = tokio::time::timeout(WAIT, stream.read_buf(&mut received)).await.expect("a login");
        assert!(read.unwrap() > 0, "closed: {received:?}");
    }
    assert!(received.windows(8).any(|window| window == b"\x00\x06museum"));
    stream.write_all(&[0x20, 3, 0, 0, 0]).await.unwrap();
    stop.send(()).unwrap();
    drop(stream);
    tokio::time::timeout(WAIT, running).await.unwrap().unwrap().unwrap();
}

/// Printed, not asserted: the machine may be busy. `cargo test -- --nocapture latency`.
#[tokio::test(flavor = "multi_thread")]
async fn reply_latency_is_printed() {
    let server = Server::start().await;
    let mut device = Device::connect(&server, "cam-1").await;
    device.subscribe(REPLY).await;
    let mut times = Vec::new();
    for id in 0..200 {
        let started = Instant::now();
        device.ask(QUERY, cbor(&query(id, 1)), PublishProperties::default()).await;
        device.publish_received().await;
        times.push(started.elapsed());
    }
    times.sort();
    println!("reply latency over loopback: p50 {:?}, p95 {:?}, max {:?}", times[100], times[190], times[199]);
    server.stop().await;
}
