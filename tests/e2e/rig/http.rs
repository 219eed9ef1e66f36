//! HTTP/1.1 as far as a proxy that lies needs it: whole requests in, raw bytes out. A library would repair what is broken on purpose.

use std::io;
use std::net::{IpAddr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// As it came.
    raw: Vec<u8>,
}

impl Request {
    /// `None` when the client closed instead.
    pub async fn read(stream: &mut TcpStream) -> io::Result<Option<Request>> {
        let mut raw = Vec::new();
        let head = loop {
            if let Some(end) = raw.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut raw).await? == 0 {
                return Ok(None);
            }
        };
        let text = String::from_utf8_lossy(&raw[..head]).into_owned();
        let mut lines = text.split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ').map(String::from);
        let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
        let headers =
            lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_string()));
        let mut request = Request { method, path, headers: headers.collect(), body: Vec::new(), raw: Vec::new() };
        if request.header("expect").is_some() {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        assert_eq!(request.header("transfer-encoding"), None, "chunked requests are not read here");
        let length: usize = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        while raw.len() < head + length {
            if stream.read_buf(&mut raw).await? == 0 {
                return Ok(None);
            }
        }
        request.body = raw[head..head + length].to_vec();
        request.raw = raw;
        Ok(Some(request))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// A value of a body that is a form.
    pub fn form(&self, name: &str) -> Option<String> {
        form_urlencoded::parse(&self.body).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// To somebody else, on a connection of its own, with the word whose it is; the whole answer as it came, with the word that the
    /// connection ends.
    pub async fn forward(&self, upstream: SocketAddr, client: IpAddr) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(upstream).await?;
        let end = self.raw.windows(2).position(|window| window == b"\r\n").unwrap_or(0) + 2;
        stream.write_all(&self.raw[..end]).await?;
        stream.write_all(format!("Connection: close\r\nX-Forwarded-For: {client}\r\n").as_bytes()).await?;
        let rest = without_header(&self.raw[end..], "connection");
        stream.write_all(&rest).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    }
}

/// Of a head and what follows it.
fn without_header(bytes: &[u8], name: &str) -> Vec<u8> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(bytes.len(), |end| end + 2);
    let mut kept = Vec::with_capacity(bytes.len());
    for line in bytes[..head].split_inclusive(|byte| *byte == b'\n') {
        let is_it = line.len() > name.len() && line[name.len()] == b':' && line[..name.len()].eq_ignore_ascii_case(name.as_bytes());
        if !is_it {
            kept.extend_from_slice(line);
        }
    }
    kept.extend_from_slice(&bytes[head..]);
    kept
}

/// The three digits of an answer's first line.
pub fn status(answer: &[u8]) -> u16 {
    let first = String::from_utf8_lossy(&answer[..answer.len().min(64)]).into_owned();
    first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

pub fn answer(status: u16, content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}

/// One request of the test's own, from inside the namespace of the calling thread.
pub fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").map_or(answer.len(), |end| end + 4);
    match status(&answer) {
        200..300 => Ok(String::from_utf8_lossy(&answer[end..]).into_owned()),
        code => Err(io::Error::other(format!("{method} {path}: {code} {}", String::from_utf8_lossy(&answer[end..])))),
    }
}
