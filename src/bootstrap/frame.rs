//! How kprov on this side of an SSH connection talks with `kprov host` on the other: length-prefixed JSON, and raw bytes where it says so.
//!
//! ```text
//! here -> machine   Order                     machine -> here   Report ... Done | Failed
//!                   <- Report::Need{sha256}   : exactly `size` raw bytes of that archive follow
//! ```

use super::spec::{HostSpec, Image, Marker};
use crate::error::{Context, Error, Kind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, Read, Write};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What the machine is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    Install(Box<HostSpec>),
    /// Keeps these archives on a control plane, for the loop inside to send on; those that are there are not asked for.
    Archives(Vec<Image>),
    /// Stops the services and takes the files away.
    Remove,
    /// Sends back the files in /etc/kprov/pki of a control plane (a secret, over the same verified connection).
    Keys,
}

/// What the machine answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Report {
    Step(Step),
    /// Short text for people, replaced by the next.
    Doing(String),
    Need {
        sha256: String,
    },
    Keys(Vec<super::spec::File>),
    Done(Option<Box<Marker>>),
    Failed(Failure),
}

/// One "ensure" that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    pub name: String,
    pub changed: bool,
    pub millis: u64,
    /// Tolerated trouble, e.g. a sysctl that cannot be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// An error on its way from the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub message: String,
    pub cause: Option<String>,
    pub hints: Vec<String>,
    pub kind: Kind,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let chain = error.chain();
        let cause = chain.strip_prefix(&format!("{error}: ")).map(str::to_string);
        Failure { message: error.to_string(), cause, hints: error.hints().to_vec(), kind: error.kind }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let error = Error::new(failure.kind, failure.message);
        let error = failure.hints.into_iter().fold(error, Error::hint);
        match failure.cause {
            Some(cause) => error.because(cause),
            None => error,
        }
    }
}

/// Every frame opens a line with this; a login shell's chatter before the first frame does not.
const MAGIC: &str = "kprov-frame ";
/// A control plane's whole spec is some 30 KB; a frame beyond this is not ours.
const LARGEST: usize = 16 << 20;
/// Noise tolerated before the first frame (motd, a shell profile that prints).
const NOISE_LINES: usize = 200;

pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let body = serde_json::to_vec(message).expect("our own messages always serialise");
    let mut frame = format!("{MAGIC}{}\n", body.len()).into_bytes();
    frame.extend_from_slice(&body);
    frame.push(b'\n');
    frame
}

/// Blocking, for the machine's side.
pub fn write(out: &mut impl Write, message: &impl Serialize) -> std::io::Result<()> {
    out.write_all(&encode(message))?;
    out.flush()
}

/// Blocking, for the machine's side. `None` at the end of the stream.
pub fn read<T: DeserializeOwned>(input: &mut impl BufRead) -> Result<Option<T>> {
    let failed = || "could not read from the connection";
    for _ in 0..NOISE_LINES {
        let mut line = Vec::new();
        if input.take(LARGEST as u64).read_until(b'\n', &mut line).or_fail(Kind::Transient, failed)? == 0 {
            return Ok(None);
        }
        if let Some(length) = length(&line)? {
            let mut body = vec![0; length + 1];
            input.read_exact(&mut body).or_fail(Kind::Transient, failed)?;
            return decode(&body).map(Some);
        }
    }
    Err(Error::host("could not read from the connection: what arrives is not kprov's"))
}

/// The same for this side.
pub async fn read_async<T: DeserializeOwned>(input: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<T>> {
    let failed = || "could not read from the machine";
    for _ in 0..NOISE_LINES {
        let mut line = Vec::new();
        if (&mut *input).take(LARGEST as u64).read_until(b'\n', &mut line).await.or_fail(Kind::Transient, failed)? == 0 {
            return Ok(None);
        }
        if let Some(length) = length(&line)? {
            let mut body = vec![0; length + 1];
            input.read_exact(&mut body).await.or_fail(Kind::Transient, failed)?;
            return decode(&body).map(Some);
        }
    }
    Err(Error::host("could not read from the machine: what arrives is not kprov's")
        .hint("a shell profile on the machine may print without end"))
}

/// The same for this side.
pub async fn write_async(out: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> Result<()> {
    let failed = || "could not send to the machine";
    out.write_all(&encode(message)).await.or_fail(Kind::Transient, failed)?;
    out.flush().await.or_fail(Kind::Transient, failed)
}

/// The body's length, if the line is a frame's head.
fn length(line: &[u8]) -> Result<Option<usize>> {
    let Some(number) = line.strip_prefix(MAGIC.as_bytes()) else { return Ok(None) };
    let number = std::str::from_utf8(number).ok().and_then(|text| text.trim_end().parse::<usize>().ok());
    match number {
        Some(length) if length <= LARGEST => Ok(Some(length)),
        _ => Err(Error::host("could not understand what was sent: a frame of impossible length")),
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).or_fail(Kind::Host, || "could not understand what was sent: the other side runs another version of kprov")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str) -> Report {
        Report::Step(Step { name: name.into(), changed: true, millis: 3, note: None })
    }

    #[test]
    fn frames_arrive_as_sent_and_raw_bytes_between_them_stay_raw() {
        let mut stream = encode(&step("one"));
        stream.extend_from_slice(b"kprov-frame 7\nraw");
        stream.extend_from_slice(&encode(&step("two")));
        let mut input = stream.as_slice();
        assert!(matches!(read(&mut input).unwrap(), Some(Report::Step(Step { name, .. })) if name == "one"));
        let mut raw = [0; 17];
        Read::read_exact(&mut input, &mut raw).unwrap();
        assert!(matches!(read(&mut input).unwrap(), Some(Report::Step(Step { name, .. })) if name == "two"));
        assert!(read::<Report>(&mut input).unwrap().is_none());
    }

    #[test]
    fn a_chatty_shell_profile_is_passed_over() {
        let mut stream = b"Welcome to machine 7!\n\n".to_vec();
        stream.extend_from_slice(&encode(&step("one")));
        assert!(read::<Report>(&mut stream.as_slice()).unwrap().is_some());
    }

    #[test]
    fn endless_noise_and_impossible_lengths_end_in_an_error() {
        let noise = b"blah\n".repeat(1_000);
        assert!(read::<Report>(&mut noise.as_slice()).is_err());
        for head in ["kprov-frame 99999999999\n", "kprov-frame x\n", "kprov-frame -1\n"] {
            assert!(read::<Report>(&mut head.as_bytes()).is_err(), "{head}");
        }
    }

    #[test]
    fn a_frame_cut_off_is_worth_another_try() {
        let frame = encode(&step("one"));
        assert_eq!(read::<Report>(&mut &frame[..frame.len() - 5]).unwrap_err().kind, Kind::Transient);
    }

    #[test]
    fn an_error_keeps_its_cause_and_hints_over_the_wire() {
        let error = Error::host("could not start containerd").because("exit status 1").hint("read its log");
        let failure: Failure = serde_json::from_slice(&serde_json::to_vec(&Failure::from(&error)).unwrap()).unwrap();
        let arrived = Error::from(failure);
        assert_eq!(arrived.chain(), error.chain());
        assert_eq!(arrived.hints(), error.hints());
        assert_eq!(arrived.kind, Kind::Host);
    }
}
