use super::*;
use glimpse_protocol::{ErrorReply, Match};
use proptest::prelude::*;

fn id(n: u8) -> QueryId {
    QueryId::from_bytes([n; 16])
}

fn reply(id: QueryId, similarity: f32) -> Vec<u8> {
    let found =
        Match { image: "a/b.jpg".try_into().unwrap(), label: "apple".try_into().unwrap(), similarity };
    let reply =
        Reply::<1> { v: VERSION, id, matches: [found].into_iter().collect(), took_us: 9, generation: 2 };
    cbor(&reply).unwrap()
}

fn check_malformed(bytes: &[u8], correlation: Option<&[u8]>, expected: Option<QueryId>) {
    let (id, answer) = read_reply(bytes, correlation);
    assert!(matches!(answer, Answer::Malformed(_)), "{answer:?}");
    assert_eq!(id, expected);
}

#[test]
fn reads_replies_and_refusals_by_correlation_data_or_their_own_id() {
    for correlation in [None, Some([3; 16].as_slice()), Some(&[1, 2])] {
        let (of, answer) = read_reply(&reply(id(3), 0.5), correlation);
        assert_eq!(of, Some(id(3)));
        assert!(matches!(answer, Answer::Matches(reply) if reply.matches[0].label == "apple"));
    }
    let error = ErrorBody::new(ErrorCode::WrongSpace, "no");
    let refused = cbor(&ErrorReply { v: VERSION, id: id(0), error: error.clone() }).unwrap();
    assert_eq!(read_reply(&refused, Some(&[3; 16])), (Some(id(3)), Answer::Refused(error)));
}

#[test]
fn a_malformed_reply_still_ends_its_query() {
    let whole = reply(id(3), 0.5);
    check_malformed(&whole[..whole.len() - 1], Some(&[3; 16]), Some(id(3)));
    check_malformed(&whole, Some(&[4; 16]), Some(id(4)));
    check_malformed(&reply(id(3), f32::NAN), None, Some(id(3)));
    check_malformed(b"", Some(&[3; 16]), Some(id(3)));
    check_malformed(&vec![0x81; MESSAGE_BYTES_MAX], Some(&[3; 16]), Some(id(3)));
    check_malformed(&vec![0; MESSAGE_BYTES_MAX + 1], None, None);
    let newer = Reply::<1> { v: 2, id: id(3), matches: heapless::Vec::new(), took_us: 0, generation: 0 };
    check_malformed(&cbor(&newer).unwrap(), None, Some(id(3)));
}

proptest! {
    #[test]
    fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), place in 0..60_usize, value in any::<u8>()) {
        let _ = read_reply(&bytes, None);
        let mut damaged = reply(id(3), 0.5);
        let place = place % damaged.len();
        damaged[place] = value;
        let _ = read_reply(&damaged, None);
    }
}

#[test]
fn connection_errors_say_what_to_do() {
    let (server, device) = ("127.0.0.1:1883".parse().unwrap(), DeviceId::new("door").unwrap());
    let refused = ConnectionError::Io(io::ErrorKind::ConnectionRefused.into());
    assert_eq!(
        UplinkError::from_rumqttc(refused, &server, &device).to_string(),
        "connection to 127.0.0.1:1883 refused: is glimpse-gallery serve running?"
    );
    let taken = ConnectionError::MqttState(StateError::ServerDisconnect {
        reason_code: DisconnectReasonCode::SessionTakenOver,
        reason_string: None,
    });
    let taken = UplinkError::from_rumqttc(taken, &server, &device);
    assert_eq!(taken.kind(), ErrorKind::Configuration);
    assert!(taken.to_string().contains("--device"));
}

#[test]
fn a_certificate_that_is_not_valid_now_is_told_with_the_devices_clock() {
    let (server, device) = ("mqtts://a:8883".parse().unwrap(), DeviceId::new("door").unwrap());
    for (problem, expected) in
        [(CertificateError::NotValidYet, "not valid yet"), (CertificateError::Expired, "no longer valid")]
    {
        let error = rustls::Error::InvalidCertificate(problem);
        for error in
            [TlsError::TLS(error.clone()), TlsError::Io(io::Error::new(io::ErrorKind::InvalidData, error))]
        {
            let error = UplinkError::from_rumqttc(ConnectionError::Tls(error), &server, &device);
            let text = error.to_string();
            assert!(text.contains(expected) && text.contains("this device's clock says (20"), "{text}");
        }
    }
    let early = UplinkError::NotNow {
        server: server.clone(),
        problem: "not valid yet",
        clock_ms: 61_000,
        is_trusted: false,
    };
    assert_eq!(
        early.to_string(),
        "no TLS to mqtts://a:8883: a certificate is not valid yet at the time that this device's clock says \
         (1970-01-01T00:01:01Z): nobody has set this clock yet, so wait for the time from the network, or set it"
    );
    assert_eq!(early.kind(), ErrorKind::Unavailable, "it mends itself");
    let other = ConnectionError::Tls(TlsError::TLS(rustls::Error::InvalidCertificate(
        CertificateError::UnknownIssuer,
    )));
    assert!(matches!(UplinkError::from_rumqttc(other, &server, &device), UplinkError::Untrusted { .. }));
    assert!(shown(u64::MAX).to_string().starts_with("9999"));
}

#[test]
fn an_address_without_a_server_is_refused_and_tried_again() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let connection = Connection {
        server: format!("127.0.0.1:{port}").parse().unwrap(),
        device: DeviceId::new("door").unwrap(),
        space: SpaceId::from_bytes([1; 16]),
        expiry: Duration::from_secs(5),
        has_status: true,
        keep_alive_s: 60,
        credentials: Credentials::default(),
        presence: Presence::default(),
        updating: Updating::default(),
    };
    let mut uplink = MqttUplink::start(connection, Jitter::new(1)).unwrap();
    for _ in 0..2 {
        let received = uplink.receive(Duration::from_secs(5)).unwrap();
        assert!(
            matches!(received, Some(Received::Disconnected(UplinkError::Refused { .. }))),
            "{received:?}"
        );
    }
    uplink.waker().wake();
    assert!(matches!(uplink.receive(Duration::from_mins(1)), Ok(None)));
    uplink.close(0);
}
