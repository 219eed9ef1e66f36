//! Stories of questions and answers, and one through real sockets.

use super::index::{self, Index};
use super::wire::{self, Step};
use super::*;
use crate::orchestrator::network::testing::in_own_namespace;
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use proptest::prelude::*;
use serde_json::{Value, json};

fn service(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec})).expect("a service")
}

fn slice(service: &str, endpoints: Value) -> Arc<EndpointSlice> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": format!("{service}-x"), "labels": {SERVICE_NAME: service}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
        }))
        .expect("a slice"),
    )
}

fn objects() -> Vec<(Service, Vec<Arc<EndpointSlice>>)> {
    let pods = json!([
        {"addresses": ["10.244.1.5"], "hostname": "db-0", "conditions": {"ready": true}},
        {"addresses": ["10.244.2.6"], "conditions": {"ready": true}},
        {"addresses": ["10.244.2.7"], "hostname": "db-2", "conditions": {"ready": false}},
    ]);
    vec![
        (
            service(
                "web",
                json!({"clusterIP": "10.96.0.80", "clusterIPs": ["10.96.0.80", "fd00::80"], "ports": [{"name": "http", "port": 80}, {"port": 53, "protocol": "UDP"}]}),
            ),
            vec![],
        ),
        (service("db", json!({"clusterIP": "None"})), vec![slice("db", pods.clone())]),
        (service("all", json!({"clusterIP": "None", "publishNotReadyAddresses": true})), vec![slice("all", pods)]),
        (service("none", json!({"clusterIP": "None"})), vec![]),
        (service("young", json!({"clusterIP": ""})), vec![]),
        (service("outside", json!({"type": "ExternalName", "externalName": "www.example.org"})), vec![]),
        (service("alias", json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"})), vec![]),
        (service("lost", json!({"type": "ExternalName", "externalName": "gone.shop.svc.cluster.local."})), vec![]),
        (service("circle", json!({"type": "ExternalName", "externalName": "circle.shop.svc.cluster.local"})), vec![]),
    ]
}

fn index() -> Index {
    let ranges = ["10.96.0.0/16", "10.244.0.0/16"].map(|range| range.parse().expect("a range")).to_vec();
    let mut index = Index::new("cluster.local", "10.96.0.10".parse().expect("an address"), ranges);
    index.complete = true;
    for (service, slices) in objects() {
        let name = service.metadata.name.clone().expect("a name");
        index.put(("shop".into(), name), index::entry(&service, &slices));
    }
    index
}

fn request(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 0;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().expect("encodes")
}

/// One line for a reply: its code where it is not NOERROR, then answers, then "| " and additionals; authorities are only counted on.
fn told(step: Step) -> String {
    match step {
        Step::Reply(bytes) => {
            let message = Message::from_vec(&bytes).expect("a message");
            assert!(message.metadata.recursion_available);
            let show = |records: &[hickory_proto::rr::Record]| {
                let mut lines: Vec<String> = records.iter().map(|record| format!("{} {}", record.record_type(), record.data)).collect();
                if !lines.iter().any(|line| line.starts_with("CNAME")) {
                    lines.sort();
                }
                lines.join(", ")
            };
            let negative = message.answers.is_empty() && message.metadata.authoritative;
            assert_eq!(message.authorities.len(), usize::from(negative), "a negative answer has its SOA, others have none");
            let code = match message.metadata.response_code {
                ResponseCode::NoError if message.metadata.truncation => "truncated ".into(),
                ResponseCode::NoError if negative => "no data".into(),
                ResponseCode::NoError => String::new(),
                code => format!("{code:?}"),
            };
            let more = if message.additionals.is_empty() { String::new() } else { format!(" | {}", show(&message.additionals)) };
            format!("{code}{}{more}", show(&message.answers))
        }
        Step::Forward => "forward".into(),
        Step::Resolve { query, aliases, .. } => format!("resolve {} after {}", query.name(), aliases.len()),
        Step::Ignore => "ignored".into(),
    }
}

fn check(name: &str, kind: RecordType, expected: &str) {
    assert_eq!(told(wire::handle(&index(), &request(name, kind, None), true)), expected, "{name} {kind}");
}

use RecordType::{A, AAAA, ANY, CNAME, MX, NS, PTR, SRV, TXT};

#[test]
fn services_answer_with_their_address() {
    check("web.shop.svc.cluster.local.", A, "A 10.96.0.80");
    check("WEB.Shop.SVC.cluster.LOCAL.", A, "A 10.96.0.80");
    check("web.shop.svc.cluster.local.", AAAA, "AAAA fd00::80");
    check("web.shop.svc.cluster.local.", MX, "no data");
    check("web.shop.svc.cluster.local.", ANY, "A 10.96.0.80, AAAA fd00::80");
    check("10-96-0-80.web.shop.svc.cluster.local.", A, "NXDomain");
    check("gone.shop.svc.cluster.local.", A, "NXDomain");
    check("young.shop.svc.cluster.local.", A, "NXDomain");
}

#[test]
fn headless_services_answer_with_their_ready_pods() {
    check("db.shop.svc.cluster.local.", A, "A 10.244.1.5, A 10.244.2.6");
    check("db.shop.svc.cluster.local.", AAAA, "no data");
    check("all.shop.svc.cluster.local.", A, "A 10.244.1.5, A 10.244.2.6, A 10.244.2.7");
    check("none.shop.svc.cluster.local.", A, "no data");
    check("db-0.db.shop.svc.cluster.local.", A, "A 10.244.1.5");
    check("10-244-2-6.db.shop.svc.cluster.local.", A, "A 10.244.2.6");
    check("db-2.db.shop.svc.cluster.local.", A, "NXDomain");
    check("db-2.all.shop.svc.cluster.local.", A, "A 10.244.2.7");
}

#[test]
fn named_ports_have_service_records() {
    check("_http._tcp.web.shop.svc.cluster.local.", SRV, "SRV 0 100 80 web.shop.svc.cluster.local. | A 10.96.0.80, AAAA fd00::80");
    check("_http._tcp.web.shop.svc.cluster.local.", A, "no data");
    check("_http._udp.web.shop.svc.cluster.local.", SRV, "NXDomain");
    check("_._udp.web.shop.svc.cluster.local.", SRV, "NXDomain");
    check("_tcp.web.shop.svc.cluster.local.", SRV, "no data");
    check("_sctp.web.shop.svc.cluster.local.", SRV, "NXDomain");
    check(
        "_http._tcp.db.shop.svc.cluster.local.",
        SRV,
        "SRV 0 50 8080 10-244-2-6.db.shop.svc.cluster.local., SRV 0 50 8080 db-0.db.shop.svc.cluster.local. | A 10.244.1.5, A 10.244.2.6",
    );
    check("_tcp.db.shop.svc.cluster.local.", A, "no data");
}

#[test]
fn pods_namespaces_and_the_domain_itself_have_names() {
    check("10-244-1-5.shop.pod.cluster.local.", A, "A 10.244.1.5");
    check("10-244-1-5.shop.pod.cluster.local.", AAAA, "no data");
    check("fd00--1.shop.pod.cluster.local.", AAAA, "AAAA fd00::1");
    check("web.shop.pod.cluster.local.", A, "NXDomain");
    check("shop.svc.cluster.local.", A, "no data");
    check("empty.svc.cluster.local.", A, "NXDomain");
    check("svc.cluster.local.", A, "no data");
    check("cluster.local.", A, "no data");
    check("cluster.local.", NS, "NS ns.dns.cluster.local.");
    check("ns.dns.cluster.local.", A, "A 10.96.0.10");
    check("dns-version.cluster.local.", TXT, "TXT 1.1.0");
    check("nonsense.cluster.local.", A, "NXDomain");
}

#[test]
fn aliases_are_followed_inside_and_outside() {
    check("alias.shop.svc.cluster.local.", A, "CNAME web.shop.svc.cluster.local., A 10.96.0.80");
    check("alias.shop.svc.cluster.local.", CNAME, "CNAME web.shop.svc.cluster.local.");
    check("alias.shop.svc.cluster.local.", MX, "CNAME web.shop.svc.cluster.local.");
    check("lost.shop.svc.cluster.local.", A, "CNAME gone.shop.svc.cluster.local.");
    check("outside.shop.svc.cluster.local.", A, "resolve www.example.org. after 1");
    check("x.outside.shop.svc.cluster.local.", A, "NXDomain");
    check("circle.shop.svc.cluster.local.", A, &["CNAME circle.shop.svc.cluster.local."; 8].join(", "));
}

#[test]
fn addresses_lead_back_to_names() {
    check("80.0.96.10.in-addr.arpa.", PTR, "PTR web.shop.svc.cluster.local.");
    check("5.1.244.10.in-addr.arpa.", PTR, "PTR db-0.all.shop.svc.cluster.local., PTR db-0.db.shop.svc.cluster.local.");
    check("99.0.96.10.in-addr.arpa.", PTR, "NXDomain");
    check("0.96.10.in-addr.arpa.", PTR, "no data");
    check("1.2.0.192.in-addr.arpa.", PTR, "forward");
}

#[test]
fn other_names_are_for_others() {
    check("www.example.org.", A, "forward");
    check("local.", A, "forward");
    check("web.shop.svc.cluster.local.example.org.", A, "forward");
    check(".", NS, "forward");
}

#[test]
fn a_removed_service_leaves_no_names_behind() {
    let mut index = index();
    for (service, _) in objects() {
        index.put(("shop".into(), service.metadata.name.expect("a name")), None);
    }
    for (name, kind) in [
        ("web.shop.svc.cluster.local.", A),
        ("shop.svc.cluster.local.", A),
        ("80.0.96.10.in-addr.arpa.", PTR),
        ("5.1.244.10.in-addr.arpa.", PTR),
    ] {
        assert_eq!(told(wire::handle(&index, &request(name, kind, None), true)), "NXDomain", "{name}");
    }
}

#[test]
fn only_another_entry_is_a_change() {
    let mut index = index();
    let key = |name: &str| ("shop".to_string(), name.to_string());
    for (service, slices) in objects() {
        let name = service.metadata.name.clone().expect("a name");
        assert!(!index.put(key(&name), index::entry(&service, &slices)), "{name} is known");
    }
    let moved = || index::entry(&service("web", json!({"clusterIP": "10.96.0.81"})), &[]);
    assert!(index.put(key("web"), moved()));
    assert!(!index.put(key("web"), moved()));
    assert!(index.put(key("web"), None));
    assert!(!index.put(key("web"), None), "gone already");
}

#[test]
fn nothing_is_denied_before_everything_is_known() {
    let mut index = index();
    index.complete = false;
    for (name, kind) in [("gone.shop.svc.cluster.local.", A), ("99.0.96.10.in-addr.arpa.", PTR)] {
        assert_eq!(told(wire::handle(&index, &request(name, kind, None), true)), "ServFail", "{name}");
    }
}

#[test]
fn large_answers_are_truncated_for_udp_and_whole_for_tcp() {
    let mut index = index();
    let endpoints: Vec<Value> = (0..60).map(|number| json!({"addresses": [format!("10.244.3.{number}")]})).collect();
    let entry = index::entry(&service("big", json!({"clusterIP": "None"})), &[slice("big", json!(endpoints))]);
    index.put(("shop".into(), "big".into()), entry);
    let ask = |payload, udp| match wire::handle(&index, &request("big.shop.svc.cluster.local.", A, payload), udp) {
        Step::Reply(bytes) => (bytes.len(), Message::from_vec(&bytes).expect("a message")),
        other => panic!("{other:?}"),
    };
    let (length, plain) = ask(None, true);
    assert!(length <= 512 && plain.metadata.truncation && plain.answers.is_empty() && plain.edns.is_none());
    let (length, wide) = ask(Some(4096), true);
    assert!(length <= 1232 && !wide.metadata.truncation && wide.answers.len() == 60 && wide.edns.is_some());
    let (_, whole) = ask(None, false);
    assert!(!whole.metadata.truncation && whole.answers.len() == 60);
    let first = |id: u16| {
        let mut bytes = request("big.shop.svc.cluster.local.", A, None);
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        match wire::handle(&index, &bytes, false) {
            Step::Reply(bytes) => Message::from_vec(&bytes).expect("a message").answers[0].clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_ne!(first(1), first(2));
}

#[test]
fn odd_requests_get_the_right_refusal() {
    let index = index();
    let good = request("web.shop.svc.cluster.local.", A, None);
    let change = |position: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[position] = value;
        told(wire::handle(&index, &bytes, true))
    };
    assert_eq!(change(2, 0x80), "ignored");
    assert_eq!(change(2, 0x28), "NotImp");
    assert_eq!(change(5, 0), "FormErr");
    let class = good.len() - 1;
    assert_eq!(change(class, 3), "Refused");
    assert!(matches!(wire::handle(&index, &good[..11], true), Step::Ignore));
    let cut = wire::handle(&index, &good[..20], true);
    let Step::Reply(cut) = cut else { panic!("{cut:?}") };
    assert_eq!(Message::from_vec(&cut).expect("a message").metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn sockets_follow_the_informers_and_forward_the_rest() {
    in_own_namespace(async {
        let config = Arc::new(crate::orchestrator::network::wanted::tests::config());
        let (services, slices) = (Informer::<Service>::detached(), Informer::<EndpointSlice>::detached());
        Door::open().await.expect("netlink").ensure_loopback_address(std::net::Ipv4Addr::new(192, 0, 2, 53)).await.expect("added");
        let upstream = UdpSocket::bind("192.0.2.53:53").await.expect("free");
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, client)) = upstream.recv_from(&mut buffer).await {
                let mut answer = Message::from_vec(&buffer[..length]).expect("a message").into_response();
                let name = answer.queries[0].name().clone();
                answer.add_answer(hickory_proto::rr::Record::from_rdata(
                    name,
                    60,
                    hickory_proto::rr::RData::A("192.0.2.80".parse().expect("an address")),
                ));
                upstream.send_to(&answer.to_vec().expect("encodes"), client).await.expect("sent");
            }
        });
        let folder = tempfile::tempdir().expect("a folder");
        let resolv_conf = folder.path().join("resolv.conf");
        std::fs::write(&resolv_conf, "nameserver 10.96.0.10\nnameserver 192.0.2.53\n").expect("written");
        Door::open().await.expect("netlink").ensure_loopback_address(std::net::Ipv4Addr::new(10, 96, 0, 10)).await.expect("added");
        let index = Arc::new(RwLock::new(Index::new("cluster.local", config.dns_address, vec![config.service_cidr])));
        let server = Arc::new(Server {
            index: index.clone(),
            own: config.dns_address,
            resolv_conf,
            forwarding: Semaphore::new(8),
            connections: Arc::new(Semaphore::new(8)),
        });
        let address: SocketAddr = "10.96.0.10:53".parse().expect("an address");
        tokio::spawn(server.clone().serve_udp(address));
        tokio::spawn(server.serve_tcp(address));
        let memory = folder.path().join("dns.json");
        index.write().put(("old".into(), "gone".into()), index::entry(&objects()[0].0, &[]));
        tokio::spawn(follow(index, services.clone(), slices.clone(), memory.clone()));

        let udp = |name: &'static str| async move {
            let socket = UdpSocket::bind("0.0.0.0:0").await.expect("a socket");
            socket.connect("10.96.0.10:53").await.expect("connected");
            let mut buffer = vec![0; 1500];
            // The server may not be bound yet: the kernel says so at once, and the question is asked again.
            loop {
                if socket.send(&request(name, A, None)).await.is_ok()
                    && let Ok(length) = socket.recv(&mut buffer).await
                {
                    let message = Message::from_vec(&buffer[..length]).expect("a message");
                    let list: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
                    return format!("{:?} {}", message.metadata.response_code, list.join(" "));
                }
                tokio::task::yield_now().await;
            }
        };
        assert_eq!(udp("web.shop.svc.cluster.local.").await, "ServFail ");
        for (service, list) in objects() {
            services.put(service);
            for slice in list {
                slices.put((*slice).clone());
            }
        }
        services.mark_synced();
        slices.mark_synced();
        while udp("gone.shop.svc.cluster.local.").await != "NXDomain " {}
        assert_eq!(udp("web.shop.svc.cluster.local.").await, "NoError 10.96.0.80");
        assert!(udp("db-0.db.shop.svc.cluster.local.").await.ends_with("10.244.1.5"));
        assert_eq!(udp("www.example.org.").await, "NoError 192.0.2.80");
        assert_eq!(udp("outside.shop.svc.cluster.local.").await, "NoError www.example.org. 192.0.2.80");
        slices.apply(super::super::client::informer::Key::new("shop", "db-x"), None);
        while udp("db-0.db.shop.svc.cluster.local.").await != "NXDomain " {}

        // What is remembered holds what was told, and nothing that was gone before the API answered.
        let bytes = loop {
            match std::fs::read(&memory) {
                Ok(bytes) => break bytes,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let mut restored = Index::new("cluster.local", config.dns_address, vec![config.service_cidr]);
        assert!(restored.restore(&bytes) && restored.complete);
        assert!(restored.service("shop", "web").is_some() && restored.service("old", "gone").is_none());
        assert!(!restored.restore(b"[1]"));

        let mut stream = TcpStream::connect(address).await.expect("connected");
        for _ in 0..2 {
            upstream::write_framed(&mut stream, &request("web.shop.svc.cluster.local.", A, None)).await.expect("sent");
            let answer = Message::from_vec(&upstream::read_framed(&mut stream).await.expect("answered")).expect("a message");
            assert_eq!(answer.answers.len(), 1);
        }
        // Upstream has no TCP here: asked and refused, the client is told.
        upstream::write_framed(&mut stream, &request("www.example.org.", A, None)).await.expect("sent");
        let answer = Message::from_vec(&upstream::read_framed(&mut stream).await.expect("answered")).expect("a message");
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    });
}

proptest! {
    #[test]
    fn any_bytes_are_answered_or_ignored(bytes in proptest::collection::vec(any::<u8>(), 0..120), udp: bool) {
        wire::handle(&index(), &bytes, udp);
        let _ = wire::failure(&bytes);
    }

    #[test]
    fn damaged_requests_are_answered_or_ignored(position in 0_usize..60, value: u8) {
        let mut bytes = request("_http._tcp.db.shop.svc.cluster.local.", SRV, Some(4096));
        let position = position % bytes.len();
        bytes[position] = value;
        if let Step::Reply(answer) = wire::handle(&index(), &bytes, true) {
            prop_assert!(answer.len() <= 1232);
            prop_assert_eq!(&answer[..2], &bytes[..2]);
        }
    }
}
