//! Names that are not the cluster's: asked of the servers that the node itself uses.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// Per server. Clients ask again after five seconds (resolv.conf's default), so two servers get their turn before.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Like the C library.
const MOST_SERVERS: usize = 3;

/// The `nameserver` lines of a resolv.conf, without `own`: asking oneself would never end.
pub fn servers(resolv_conf: &Path, own: IpAddr) -> Vec<SocketAddr> {
    // Read every time: it is a small file in memory, and it changes under the agent (DHCP, VPNs).
    parse(&std::fs::read_to_string(resolv_conf).unwrap_or_default(), own)
}

fn parse(text: &str, own: IpAddr) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.split('%').next()?.parse::<IpAddr>().ok())?
    });
    addresses.filter(|address| *address != own).take(MOST_SERVERS).map(|address| SocketAddr::new(address, 53)).collect()
}

/// The first answer that any of the servers gives; its id is the request's.
pub async fn ask(servers: &[SocketAddr], request: &[u8], udp: bool) -> Option<Vec<u8>> {
    for server in servers {
        // A fresh id and a fresh port for each try: an answer that was not asked for is hard to forge.
        let mut bytes = request.to_vec();
        bytes.get_mut(..2)?.copy_from_slice(&rand::random::<[u8; 2]>());
        let exchange = async { if udp { over_udp(*server, &bytes).await } else { over_tcp(*server, &bytes).await } };
        match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(Ok(mut answer)) => {
                answer[..2].copy_from_slice(&request[..2]);
                return Some(answer);
            }
            Ok(Err(error)) => tracing::debug!(%server, %error, "an upstream DNS server could not be asked"),
            Err(_) => tracing::debug!(%server, "an upstream DNS server did not answer in time"),
        }
    }
    None
}

async fn over_udp(server: SocketAddr, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    socket.send(request).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(request, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_framed(&mut stream, request).await?;
    let answer = read_framed(&mut stream).await?;
    if answers(request, &answer) { Ok(answer) } else { Err(std::io::Error::other("it answered another question")) }
}

/// The same id, an answer, and the same question (letters' case aside).
fn answers(request: &[u8], answer: &[u8]) -> bool {
    let question = |bytes: &[u8]| {
        let end = 12 + bytes.get(12..)?.iter().position(|byte| *byte == 0)? + 5;
        Some(bytes.get(12..end)?.to_ascii_lowercase())
    };
    answer.len() >= 12
        && answer[..2] == request[..2]
        && answer[2] & 0x80 != 0
        && question(request).is_some_and(|asked| question(answer) == Some(asked))
}

/// A message over TCP has its length before it (RFC 1035, 4.2.2).
pub async fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

pub async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    let framed = [&length.to_be_bytes()[..], message].concat();
    stream.write_all(&framed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_servers_are_read_but_never_this_server() {
        let text = "# made by hand\nsearch example.org\nnameserver 192.0.2.1\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver 192.0.2.2\nnameserver 192.0.2.3\noptions ndots:2\n";
        let servers: Vec<String> = parse(text, "10.96.0.10".parse().expect("an address")).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[fe80::1]:53", "192.0.2.2:53"]);
    }

    #[test]
    fn an_answer_to_another_question_is_no_answer() {
        let request = [&[1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x03www\x00\x00\x01\x00\x01"].concat();
        let mut answer = request.to_ascii_uppercase();
        assert!(!answers(&request, &answer));
        answer[2] |= 0x80;
        assert!(answers(&request, &answer));
        answer[14] = b'x';
        assert!(!answers(&request, &answer));
        assert!(!answers(&request, &answer[..11]));
    }
}
