//! The address at which AWS tells a machine about itself (IMDSv2), for the machines of a rig: each is known by where it asks from.

use super::http::{Request, answer};
use super::namespace::{METADATA, Namespace};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, Clone)]
pub struct Identity {
    pub instance: String,
    pub region: String,
    pub zone: String,
    /// The role of its instance profile.
    pub role: Option<String>,
}

#[derive(Clone, Default)]
pub struct Metadata {
    known: Arc<Mutex<BTreeMap<Ipv4Addr, Identity>>>,
}

/// No secret: it only has to be asked for.
const TOKEN: &str = "rig-metadata-token";

impl Metadata {
    pub fn start(namespace: &Namespace) -> Metadata {
        let metadata = Metadata::default();
        let serving = metadata.clone();
        let listener = namespace.run(|| std::net::TcpListener::bind((METADATA, 80))).expect("the metadata address is free");
        // A hop limit of 1: answers reach the machine itself, and die on the way into its pods.
        let hops: libc::c_int = 1;
        // SAFETY: the descriptor is open, the value lives through the call and has the size told.
        unsafe { libc::setsockopt(listener.as_raw_fd(), libc::IPPROTO_IP, libc::IP_TTL, (&raw const hops).cast(), 4) };
        namespace.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(serving.serve(listener)).expect("the metadata service serves");
        });
        metadata
    }

    pub fn tell(&self, address: Ipv4Addr, identity: Identity) {
        self.known.lock().expect("metadata").insert(address, identity);
    }

    pub fn forget(&self, address: Ipv4Addr) {
        self.known.lock().expect("metadata").remove(&address);
    }

    async fn serve(self, listener: std::net::TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, client) = listener.accept().await?;
            let metadata = self.clone();
            tokio::spawn(async move {
                let _ = metadata.reply(stream, client).await;
            });
        }
    }

    async fn reply(self, mut stream: TcpStream, client: std::net::SocketAddr) -> io::Result<()> {
        let Some(request) = Request::read(&mut stream).await? else { return Ok(()) };
        let IpAddr::V4(address) = client.ip() else { return Ok(()) };
        let identity = self.known.lock().expect("metadata").get(&address).cloned();
        let reply = match identity {
            Some(identity) => identity.answer(&request),
            None => answer(404, "text/plain", "no machine of this cloud"),
        };
        stream.write_all(&reply).await
    }
}

impl Identity {
    fn answer(&self, request: &Request) -> Vec<u8> {
        let good = |body: &str| answer(200, "text/plain", body);
        let path = request.path.trim_end_matches('/');
        if request.method == "PUT" && path == "/latest/api/token" {
            return match request.header("x-aws-ec2-metadata-token-ttl-seconds") {
                Some(seconds) => {
                    let body = format!(
                        "HTTP/1.1 200 OK\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: {seconds}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{TOKEN}",
                        TOKEN.len()
                    );
                    body.into_bytes()
                }
                None => answer(400, "text/plain", ""),
            };
        }
        if request.header("x-aws-ec2-metadata-token") != Some(TOKEN) {
            return answer(401, "text/plain", "IMDSv2 is required");
        }
        const ROLES: &str = "/latest/meta-data/iam/security-credentials";
        match (path, &self.role) {
            ("/latest/meta-data/instance-id", _) => good(&self.instance),
            ("/latest/meta-data/placement/region", _) => good(&self.region),
            ("/latest/meta-data/placement/availability-zone", _) => good(&self.zone),
            ("/latest/dynamic/instance-identity/document", _) => good(&self.document()),
            (ROLES, Some(role)) => good(role),
            (path, Some(role)) if path.strip_prefix(ROLES) == Some(&format!("/{role}")) => good(&credentials(role)),
            _ => answer(404, "text/plain", ""),
        }
    }

    fn document(&self) -> String {
        serde_json::json!({"instanceId": self.instance, "region": self.region, "availabilityZone": self.zone}).to_string()
    }
}

/// Temporary ones, whose access key says which role they are.
fn credentials(role: &str) -> String {
    serde_json::json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": "2099-01-01T00:00:00Z",
        "AccessKeyId": format!("ASIA{role}"), "SecretAccessKey": "rig", "Token": "rig",
    })
    .to_string()
}
